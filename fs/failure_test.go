package fs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/fs"
	"srvfs/fs/fstest"
	"srvfs/manifest"
)

// hang waits for the end of the operation, as an origin that does not answer.
func hang(ops ...string) func(context.Context, fstest.Call) error {
	return func(ctx context.Context, c fstest.Call) error {
		for _, op := range ops {
			if c.Op == op {
				<-ctx.Done()
				return ctx.Err()
			}
		}
		return nil
	}
}

func TestSilentOriginEndsInEIO(t *testing.T) {
	const deadline = 600 * time.Millisecond
	for _, op := range []string{"meta", "open", "read"} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t, func(dir string) {
				must(t, os.MkdirAll(dir+"/srv", 0o755))
				must(t, os.WriteFile(dir+"/srv/file", pattern(2<<20, 1), 0o644))
			})
			w.source.SetHook(hang(op))
			w.mount(fs.Options{Deadline: deadline})
			start := time.Now()
			_, err := os.ReadFile(w.mnt + "/srv/file")
			took := time.Since(start)
			if !errors.Is(err, unix.EIO) {
				t.Errorf("got %v, want EIO", err)
			}
			// One deadline, although the kernel tries a failed page once more.
			if took < deadline || took > deadline+deadline/2 {
				t.Errorf("took %v, the deadline is %v", took, deadline)
			}
			if log := w.log.String(); !strings.Contains(log, "path=/srv") || !strings.Contains(log, "no answer within 600ms") {
				t.Errorf("the log does not name path and cause:\n%s", log)
			}
			// The origin is back.
			w.source.SetHook(nil)
			if err := eventually(func() error { _, err := os.ReadFile(w.mnt + "/srv/file"); return err }); err != nil {
				t.Errorf("the origin is back: %v", err)
			}
			sameBytes(t, w.origin+"/srv/file", w.mnt+"/srv/file")
		})
	}
}

// eventually waits until fn succeeds.
func eventually(fn func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(limit)
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-end:
			return err
		case <-tick.C:
		}
	}
}

func TestErrorsBecomeErrnos(t *testing.T) {
	for _, c := range []struct {
		err  error
		want unix.Errno
	}{
		{manifest.ErrNotFound, unix.EIO}, {manifest.ErrCorrupt, unix.EIO}, {manifest.ErrUnavailable, unix.EIO}, {manifest.ErrInvalid, unix.EIO},
		{manifest.ErrNoSpace, unix.ENOSPC}, {manifest.ErrDenied, unix.EACCES}, {manifest.ErrStale, unix.ESTALE}, {errors.New("other"), unix.EIO},
	} {
		w := newWorld(t, func(dir string) { write(t, dir+"/dir/file", "x") })
		w.source.SetHook(func(context.Context, fstest.Call) error { return fmt.Errorf("origin: %w", c.err) })
		w.mount(fs.Options{})
		if _, err := os.Lstat(w.mnt + "/dir"); !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.err, err, c.want)
		}
		if !strings.Contains(w.log.String(), c.err.Error()) {
			t.Errorf("%v is not in the log:\n%s", c.err, w.log)
		}
		// Nothing of it is remembered.
		w.source.SetHook(nil)
		if _, err := os.Lstat(w.mnt + "/dir/file"); err != nil {
			t.Errorf("after %v: %v", c.err, err)
		}
	}
}

func TestPanicIsOneFailedOperation(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/dir/file", "content") })
	w.source.SetHook(func(_ context.Context, c fstest.Call) error {
		if c.Op == "read" || c.Op == "open" {
			panic("a defect")
		}
		return nil
	})
	w.mount(fs.Options{})
	if _, err := os.ReadFile(w.mnt + "/dir/file"); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
	if !strings.Contains(w.log.String(), "a defect") {
		t.Error("the panic is not in the log")
	}
	if _, err := os.ReadDir(w.mnt + "/dir"); err != nil {
		t.Errorf("the view is gone: %v", err)
	}
}

// One fetch, however many wait; and the impatience of one is not the others'.
func TestDirectoryIsLoadedOnce(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/dir/file", "content") })
	w.mount(fs.Options{})
	_, err := os.Lstat(w.mnt + "/dir")
	must(t, err)
	before := w.source.Metas.Load()
	release, started := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.source.SetHook(func(ctx context.Context, c fstest.Call) error {
		once.Do(func() { close(started) })
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			if _, err := os.Lstat(fmt.Sprintf("%s/dir/%d", w.mnt, i)); !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		})
	}
	<-started
	// A process that is killed while it waits goes at once.
	cmd := exec.Command("stat", w.mnt+"/dir/file")
	must(t, cmd.Start())
	must(t, eventually(func() error { return blocked(cmd.Process.Pid) }))
	start := time.Now()
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a killed process took %v to end", took)
	}
	close(release)
	wg.Wait()
	if n := w.source.Metas.Load() - before; n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// blocked reports whether a process waits for FUSE.
func blocked(pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	if err != nil {
		return err
	}
	stack, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	if err != nil {
		return err
	}
	if s := string(stack); !strings.Contains(s, "request_wait_answer") && !strings.Contains(s, "folio") && !strings.Contains(s, "fuse") {
		return fmt.Errorf("waits in %s (%s)", s, b)
	}
	return nil
}

// The last waiter's end is the fetch's end.
func TestNobodyWaitsNothingIsFetched(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/dir/file", "content") })
	began := make(chan struct{}, 10)
	var ended atomic.Bool
	w.source.SetHook(func(ctx context.Context, c fstest.Call) error {
		began <- struct{}{}
		<-ctx.Done()
		ended.Store(true)
		return ctx.Err()
	})
	w.mount(fs.Options{Deadline: limit})
	cmd := exec.Command("cat", w.mnt+"/dir/file")
	must(t, cmd.Start())
	// What nobody has taken from the kernel yet ends there, and is never asked for.
	select {
	case <-began:
	case <-time.After(limit):
		t.Fatal("nothing is fetched")
	}
	must(t, eventually(func() error { return blocked(cmd.Process.Pid) }))
	must(t, cmd.Process.Signal(unix.SIGTERM))
	_ = cmd.Wait()
	must(t, eventually(func() error {
		if !ended.Load() {
			return errors.New("the fetch goes on")
		}
		return nil
	}))
}

// A signal that is handled does not fail an open, as it does not on a disk.
func TestHandledSignalDoesNotInterrupt(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/dir/file", "content\n") })
	release := make(chan struct{})
	w.source.SetHook(func(ctx context.Context, c fstest.Call) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	w.mount(fs.Options{Deadline: limit})
	cmd := exec.Command("sh", "-c", `trap : USR1; echo handled; read x < "$0" && echo "got $x"`, w.mnt+"/dir/file")
	pipe, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	said := bufio.NewReader(pipe)
	line, err := said.ReadString('\n') // not before is the signal handled
	must(t, err)
	must(t, eventually(func() error { return blocked(cmd.Process.Pid) }))
	must(t, cmd.Process.Signal(unix.SIGUSR1))
	timer := time.AfterFunc(300*time.Millisecond, func() { close(release) })
	defer timer.Stop()
	rest, err := io.ReadAll(said)
	must(t, err)
	if err := cmd.Wait(); err != nil || line+string(rest) != "handled\ngot content\n" {
		t.Errorf("%v: %q", err, line+string(rest))
	}
}

// A tree that says more than its snapshot counts is refused.
func TestHostileTreeIsRefused(t *testing.T) {
	w := newWorld(t, func(dir string) {
		for i := range 10 {
			write(t, fmt.Sprintf("%s/d/%d", dir, i), "x")
		}
	})
	s := w.source.Tree.Snapshot("web")
	s.Totals.Entries = 5
	w.mount(fs.Options{Snapshot: s})
	if _, err := os.ReadDir(w.mnt + "/d"); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
}

// Names that are said to be one file and differ are files of their own.
func TestLinkNamesThatDiffer(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/x", "x") })
	tree := w.source.Tree
	a := manifest.Entry{Name: "a", Type: manifest.File, Mode: 0o600, Links: 3, Link: 7, Size: 1, Digest: manifest.Sum([]byte("x"))}
	b := manifest.Entry{Name: "b", Type: manifest.FIFO, Mode: 0o600, Links: 3, Link: 7}
	c := a
	c.Name = "c"
	tree.Root.Digest = directory(t, tree, []manifest.Entry{a, b, c})
	tree.Totals.Entries += 3
	w.mount(fs.Options{})
	var st [3]unix.Stat_t
	for i, name := range []string{"/a", "/b", "/c"} {
		must(t, unix.Lstat(w.mnt+name, &st[i]))
	}
	if st[0].Ino != st[2].Ino || st[0].Ino == st[1].Ino || st[1].Mode != unix.S_IFIFO|0o600 || st[2].Size != 1 {
		t.Errorf("%+v", st)
	}
}
