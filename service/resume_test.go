package service

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// outliving are units of all kinds that have a main process.
func outliving() []manifest.Unit {
	return []manifest.Unit{
		{Name: "a", Kind: manifest.Forking, PIDFile: "/run/a.pid", Start: []manifest.Command{cmd("/bin/server", "daemon", "/run/a", "/run/a.pid")}},
		{Name: "b", Kind: manifest.Notify, Start: []manifest.Command{cmd("/bin/server", "notify", "/run/b")}},
		serving("c"),
	}
}

// A service that outlives its starter goes on, and is taken over by who comes next.
func TestResume(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		o := w.options(outliving()...)
		o.Outlive = true
		o.Snapshot.Probes = []string{probing("a"), probing("b"), probing("c")}
		murder := w.startElsewhere(o)
		before := map[string]int{}
		for _, name := range []string{"a", "b", "c"} {
			before[name] = w.ask(name).PID
		}
		if _, err := Resume(soon(t), o); !errors.Is(err, ErrRunning) {
			t.Errorf("while its starter lives: %v", err)
		}
		murder()
		for name, pid := range before {
			if got := w.ask(name).PID; got != pid {
				t.Errorf("%s is process %d, was %d", name, got, pid)
			}
		}
		if st, err := Inspect(w.dir); err != nil || !st.Running || !st.Outlives {
			t.Errorf("with nobody to watch it: %+v, %v", st, err)
		}
		i, err := Resume(soon(t), o)
		must(t, err)
		t.Cleanup(func() { w.stop(i) })
		must(t, i.Check(soon(t)))
		st := i.State()
		if !st.Running || len(st.Units) != 3 {
			t.Errorf("%+v", st)
		}
		for n, u := range st.Units {
			if u.PID == 0 || innerPID(u.PID) == 0 || n == 2 && innerPID(u.PID) != before["c"] {
				t.Errorf("unit %s has main process %d", u.Name, u.PID)
			}
		}
		// It is watched again.
		p, err := hold(st.Units[2].PID)
		must(t, err)
		defer p.close()
		must(t, p.signal(unix.SIGKILL))
		select {
		case <-i.Done():
		case <-soon(t).Done():
			t.Error("the end of a unit was not seen")
		}
		if i.Err() == nil {
			t.Error("it ended for no reason")
		}
		w.stop(i)
		if pids := insiders(t, w.dir); len(pids) > 0 {
			t.Errorf("processes are left: %v", pids)
		}
		if _, err := Resume(soon(t), o); !errors.Is(err, ErrEnded) {
			t.Errorf("after a stop: %v", err)
		}
	})
}

// What has ended, or was never ready, while nobody watched is not taken for running.
func TestResumeOfWhatHasEnded(t *testing.T) {
	w := newWorld(t)
	o := w.options(serving("a"))
	o.Outlive = true
	o.Snapshot.Probes = []string{probing("a")}
	if _, err := Resume(soon(t), o); !errors.Is(err, ErrEnded) {
		t.Errorf("it never was there: %v", err)
	}

	// A unit's main process.
	murder := w.startElsewhere(o)
	st, err := Inspect(w.dir)
	must(t, err)
	p, err := hold(st.Units[0].PID)
	must(t, err)
	defer p.close()
	murder()
	must(t, p.signal(unix.SIGKILL))
	must(t, p.wait(soon(t)))
	i, err := Resume(soon(t), o)
	must(t, err)
	select {
	case <-i.Done():
	case <-soon(t).Done():
		t.Error("a unit that has ended runs on")
	}
	w.stop(i)

	// Its process 1, and with it all.
	murder = w.startElsewhere(o)
	d := &dir{path: w.dir}
	r, err := d.load()
	must(t, err)
	murder()
	first, err := hold(r.Init.PID)
	must(t, err)
	defer first.close()
	must(t, first.signal(unix.SIGKILL))
	must(t, first.wait(soon(t)))
	if _, err := Resume(soon(t), o); !errors.Is(err, ErrEnded) {
		t.Errorf("without process 1: %v", err)
	}

	// A record that does not say that it was ready, as after a death in the middle of a start.
	murder = w.startElsewhere(o)
	murder()
	r, err = d.load()
	must(t, err)
	r.Ready = time.Time{}
	must(t, d.save(r))
	if _, err := Resume(soon(t), o); !errors.Is(err, ErrEnded) {
		t.Errorf("half started: %v", err)
	}
	if pids := insiders(t, w.dir); len(pids) > 0 {
		t.Errorf("processes are left of a start that did not end: %v", pids)
	}

	// Another snapshot than it stands on.
	murder = w.startElsewhere(o)
	murder()
	other := w.options(serving("a"))
	other.Snapshot.Root.Digest = manifest.Sum([]byte("another"))
	if _, err := Resume(soon(t), other); !errors.Is(err, ErrEnded) {
		t.Errorf("of another snapshot: %v", err)
	}
	// And one that is started anew ends what is left of the one before.
	murder = w.startElsewhere(o)
	murder()
	again := w.start(o)
	must(t, again.Check(soon(t)))
	if _, err := os.Lstat(w.dir + "/" + doorName); err != nil {
		t.Error(err)
	}
}
