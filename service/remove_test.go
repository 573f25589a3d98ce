package service

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// An assignment is the part of Options that a victim gets.
type assignment struct {
	Name, Dir string
	Layers    Layers
	Snapshot  *manifest.Snapshot
	Outlive   bool
}

// victim is what this program does in the process that a test kills: it starts
// the service that its environment describes, says so, and waits.
func victim(order string) {
	var a assignment
	err := json.Unmarshal([]byte(order), &a)
	if err == nil {
		_, err = Start(context.Background(), Options{Name: a.Name, Dir: a.Dir, Layers: a.Layers, Snapshot: a.Snapshot, Outlive: a.Outlive})
	}
	fmt.Println("started", err)
	select {}
}

// startElsewhere starts a service in another process, and returns the function
// that kills it.
func (w *world) startElsewhere(o Options) (murder func()) {
	w.t.Helper()
	order, err := json.Marshal(assignment{o.Name, o.Dir, o.Layers, o.Snapshot, o.Outlive})
	must(w.t, err)
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), "SERVICE_TEST_VICTIM="+string(order))
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	must(w.t, err)
	must(w.t, c.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "started <nil>\n" {
		_, _ = c.Process.Kill(), c.Wait()
		w.t.Fatalf("start elsewhere: %q, %v", line, err)
	}
	return func() { _, _ = c.Process.Kill(), c.Wait() }
}

// vanish waits until no process of the service is left.
func (w *world) vanish() {
	w.t.Helper()
	began := time.Now()
	for len(insiders(w.t, filepath.Dir(w.tree))) > 0 {
		if time.Since(began) > 5*time.Second {
			w.t.Fatalf("processes outlive their starter: %v", insiders(w.t, filepath.Dir(w.tree)))
		}
	}
	w.t.Logf("all processes were gone after %v", time.Since(began))
}

func TestStarterIsKilled(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		u := manifest.Unit{Name: "a", Kind: manifest.Forking, PIDFile: "/run/a.pid", Start: []manifest.Command{cmd("/bin/server", "daemon", "/run/a", "/run/a.pid")}}
		o := w.options(u, serving("b"))
		o.Snapshot.Units[1].Pre = []manifest.Command{cmd("/bin/server", "append", "/var/lib/data/log", "again")}
		o.Snapshot.Probes = []string{probing("a"), probing("b")}
		murder := w.startElsewhere(o)
		if s, err := Inspect(w.dir); err != nil || !s.Running || len(s.Units) != 2 || s.Units[0].PID == 0 {
			t.Errorf("%+v, %v", s, err)
		}
		if i, err := Start(soon(t), o); !errors.Is(err, ErrRunning) {
			t.Errorf("start beside it: %v", err)
			if err == nil {
				w.stop(i)
			}
		}
		if err := Remove(soon(t), w.dir); !errors.Is(err, ErrRunning) {
			t.Errorf("remove while it runs: %v", err)
		}
		w.ask("a")
		murder()
		w.vanish()
		if s, err := Inspect(w.dir); err != nil || s.Running || s.Reason == "" {
			t.Errorf("%+v, %v", s, err)
		}
		// What it left is good enough to start from.
		i := w.start(o)
		if got := w.upper("var/lib/data/log"); got != "again\nagain\n" {
			t.Errorf("%q", got)
		}
		w.stop(i)
		// And once more without that: the removal finds all of it.
		murder = w.startElsewhere(o)
		murder()
		must(t, Remove(soon(t), w.dir))
		if pids := insiders(t, filepath.Dir(w.tree)); len(pids) > 0 {
			t.Errorf("processes are left: %v", pids)
		}
	})
}

func TestRemoveNothing(t *testing.T) {
	w := newWorld(t)
	must(t, Remove(soon(t), w.dir))
	if err := Remove(soon(t), "relative"); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if err := Remove(soon(t), filepath.Join(w.tree, "etc/greeting")); err == nil {
		t.Error("a file was taken for a service directory")
	}
	if err := Remove(soon(t), w.tree); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(w.tree, "etc/greeting")); err != nil {
		t.Error("a folder was taken for a service directory")
	}
}

// What is mounted below the directory is somebody's: it is unmounted and stays.
func TestRemoveSparesMounts(t *testing.T) {
	w := newWorld(t)
	u := serving("a")
	u.Pre = []manifest.Command{cmd("/bin/server", "write", "/var/lib/data/x", "x")}
	w.stop(w.start(w.options(u)))
	precious := t.TempDir()
	must(t, os.WriteFile(filepath.Join(precious, "precious"), []byte("x"), 0o600))
	for range 2 { // one on top of the other
		must(t, unix.Mount(precious, filepath.Join(w.dir, "upper/var/lib/data"), "", unix.MS_BIND, ""))
	}
	must(t, Remove(soon(t), w.dir))
	if _, err := os.Stat(filepath.Join(precious, "precious")); err != nil {
		t.Error(err)
	}
}

func TestRemoveDamagedRecord(t *testing.T) {
	w := newWorld(t)
	w.stop(w.start(w.options(serving("a"))))
	state := filepath.Join(w.dir, stateName)
	good, err := os.ReadFile(state)
	must(t, err)
	must(t, os.WriteFile(state, good[:len(good)/2], 0o600))
	if err := Remove(soon(t), w.dir); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if _, err := Start(soon(t), w.options(serving("a"))); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, upperName)); err != nil {
		t.Error(err)
	}
	must(t, os.WriteFile(state, good, 0o600))
}

// A process that an administrator sent into the root is named, not killed.
func TestRemoveNamesForeigners(t *testing.T) {
	w := newWorld(t)
	murder := w.startElsewhere(w.options(serving("a")))
	s, err := Inspect(w.dir)
	must(t, err)
	guest := exec.Command("nsenter", "--mount", "--root", "--wd", "--target", strconv.Itoa(s.Units[0].PID), "/bin/server", "serve", "/run/guest")
	must(t, guest.Start())
	for ctx := soon(t); ; {
		if _, err := os.Lstat(filepath.Join(w.dir, "run/guest")); err == nil {
			break
		}
		must(t, ctx.Err())
	}
	murder()
	if err := Remove(soon(t), w.dir); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), strconv.Itoa(guest.Process.Pid)+" (server)") {
		t.Errorf("%v", err)
	}
	if guest.ProcessState != nil {
		t.Error("the guest ended")
	}
	_, _ = guest.Process.Kill(), guest.Wait()
}

func TestRemoveCutShort(t *testing.T) {
	w := newWorld(t)
	w.stop(w.start(w.options(serving("a"))))
	ctx, cancel := context.WithCancel(soon(t))
	cancel()
	if err := Remove(ctx, w.dir); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, stateName)); err != nil {
		t.Error(err)
	}
}
