package service

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// killed kills a process of a service.
func killed(t *testing.T, pid int) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("process %d", pid)
	}
	must(t, unix.Kill(pid, unix.SIGKILL))
}

func TestStopOrderAndCommands(t *testing.T) {
	w := newWorld(t)
	a, b := serving("a"), serving("b")
	a.Stop = []manifest.Command{cmd("/bin/server", "append", "/var/lib/data/log", "stop a $MAINPID", "${MAINPID}"), cmd("/bin/server", "fail", "1"), cmd("/bin/server", "die", "/run/a")}
	b.Stop = []manifest.Command{cmd("/bin/sh", "-c", "echo stop b $MAINPID >> /var/lib/data/log")}
	i := w.start(w.options(a, b))
	pa, pb := w.ask("a").PID, w.ask("b").PID
	w.stop(i)
	want := "stop b " + strconv.Itoa(pb) + "\nstop a $MAINPID " + strconv.Itoa(pa) + "\n"
	if got := w.upper("var/lib/data/log"); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(w.dir, logName)); err != nil || !strings.Contains(string(b), "I was told to die") {
		t.Errorf("log %q, %v", b, err)
	}
}

func TestStopKillsTheStubborn(t *testing.T) {
	for name, limit := range map[string]time.Duration{"unit's bound": 0, "caller's bound": 300 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			u := manifest.Unit{Name: "a", Kind: manifest.Simple, Start: []manifest.Command{cmd("/bin/server", "stubborn", "/run/a")}, StopMax: 300e6}
			o := w.options(u)
			o.Snapshot.Probes = []string{probing("a")}
			ctx := soon(t)
			if limit > 0 {
				o.Snapshot.Units[0].StopMax = 60e9
			}
			i := w.start(o)
			if limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, limit)
				defer cancel()
			}
			began := time.Now()
			if err := i.Stop(ctx); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took < 250*time.Millisecond || took > 5*time.Second {
				t.Errorf("stopped in %v", took)
			}
		})
	}
}

// The signal is the unit's; children of the main process end with the sandbox.
func TestStopSignal(t *testing.T) {
	w := newWorld(t)
	u := manifest.Unit{Name: "a", Kind: manifest.Simple, Signal: int(unix.SIGQUIT), StopMax: 20e9,
		Start: []manifest.Command{cmd("/bin/sh", "-c", `trap 'echo quit > /var/lib/data/quit; exit 0' QUIT; trap : TERM; /bin/server stubborn /run/b & /bin/server sleep & wait; wait; wait`)}}
	o := w.options(u)
	o.Snapshot.Probes = []string{probing("b")}
	i := w.start(o)
	w.stop(i)
	if got := w.upper("var/lib/data/quit"); got != "quit\n" {
		t.Errorf("%q", got)
	}
}

func TestDoneWhenTheSandboxDies(t *testing.T) {
	w := newWorld(t)
	i := w.start(w.options(serving("a")))
	i.mu.Lock()
	first := i.rec.Init.PID
	i.mu.Unlock()
	killed(t, first)
	<-i.Done()
	if i.Err() == nil {
		t.Error("no reason")
	}
	if s := i.State(); s.Running || s.Reason == "" {
		t.Errorf("%+v", s)
	}
	w.stop(i)
}

func TestDoneWhenAUnitDies(t *testing.T) {
	w := newWorld(t)
	i := w.start(w.options(serving("a"), serving("b")))
	c := w.dial("b")
	if _, err := c.Write([]byte("die\n")); err != nil {
		t.Fatal(err)
	}
	<-i.Done()
	if err := i.Err(); err == nil || !strings.Contains(err.Error(), "unit b") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("it ended: %v", err)
	}
	if got := w.ask("a"); got.PID == 0 {
		t.Error("the other unit does not go on")
	}
	_ = c.Close()
	w.stop(i)
}

func TestOneAtATime(t *testing.T) {
	w := newWorld(t)
	o := w.options(serving("a"))
	var started sync.WaitGroup
	var mu sync.Mutex
	var up []*Instance
	for range 4 {
		started.Go(func() {
			i, err := Start(soon(t), o)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				up = append(up, i)
			} else if !errors.Is(err, ErrRunning) {
				t.Error(err)
			}
		})
	}
	started.Wait()
	if len(up) != 1 {
		t.Fatalf("%d started", len(up))
	}
	if err := Remove(soon(t), w.dir); !errors.Is(err, ErrRunning) {
		t.Errorf("remove while it runs: %v", err)
	}
	w.ask("a")
	var stopped sync.WaitGroup
	for range 3 {
		stopped.Go(func() { w.stop(up[0]) })
	}
	stopped.Wait()
}
