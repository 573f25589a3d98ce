package service

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

func TestSimple(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		o := w.options(serving("a"))
		o.Snapshot.Probes = []string{probing("a")}
		var steps []string
		o.Progress = func(step string, took time.Duration) {
			steps = append(steps, step)
			if took <= 0 {
				t.Errorf("step %s took %v", step, took)
			}
		}
		i := w.start(o)
		if want := []string{"root", "unit a", "probes"}; !slices.Equal(steps, want) {
			t.Errorf("steps %v", steps)
		}
		r := w.ask("a")
		if r.UID != 0 || r.Host != "source.example" || r.Dir != "/" || r.Null != "" || len(r.Env) != 0 {
			t.Errorf("%+v", r)
		}
		if err := i.Check(soon(t)); err != nil {
			t.Error(err)
		}
		s := i.State()
		if !s.Running || s.Ready.Before(s.Since) || len(s.Units) != 1 || s.Layered != w.layered() || s.Sequence != 7 || s.Snapshot != o.Snapshot.Root.Digest {
			t.Errorf("%+v", s)
		}
		if pids, err := i.Pids(); err != nil || !slices.Equal(pids, []int{s.Units[0].PID}) {
			t.Errorf("processes %v (%v), main process %d", pids, err, s.Units[0].PID)
		}
		if seen, err := Inspect(w.dir); err != nil || !seen.Running || !reflect.DeepEqual(seen.Units, s.Units) {
			t.Errorf("inspect: %+v, %v", seen, err)
		}
		if b, err := os.ReadFile(s.LogFile); err != nil || !strings.Contains(string(b), "serving /run/a\n") {
			t.Errorf("log %q, %v", b, err)
		}
		if info, err := os.Stat(s.LogFile); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("log has mode %v", info.Mode())
		}
		w.stop(i)
		if seen, err := Inspect(w.dir); err != nil || seen.Running || seen.Stopped.IsZero() || seen.Reason != "" {
			t.Errorf("inspect after stop: %+v, %v", seen, err)
		}
		select {
		case <-i.Done():
		default:
			t.Error("not done after stop")
		}
		if i.Err() != nil {
			t.Error(i.Err())
		}
		if left, err := i.Pids(); err != nil || len(left) != 0 {
			t.Errorf("after stop: %v, %v", left, err)
		}
	})
}

// A port of the service is a port of the host.
func TestNetworkIsTheCallers(t *testing.T) {
	w := newWorld(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := free.Addr().String()
	must(t, free.Close())
	u := manifest.Unit{Name: "a", Kind: manifest.Simple, Start: []manifest.Command{cmd("/bin/server", "listen", addr)}}
	o := w.options(u)
	o.Snapshot.Probes = []string{"tcp://" + addr}
	i := w.start(o)
	must(t, i.Check(soon(t)))
	w.stop(i)
	if err := i.Check(soon(t)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("the probe of a stopped service: %v", err)
	}
}

// As whom, where and with what a unit runs is the unit's word alone.
func TestCommandAttributes(t *testing.T) {
	w := newWorld(t)
	u := serving("data/a")
	u.User = manifest.User{Name: "www-data", UID: 33, GID: 34, Groups: []uint32{4, 50}}
	u.Env, u.Dir, u.Umask = []string{"A=1", "B=two words", "EMPTY=", "A=2"}, "/var/lib", 0o027
	u.Folders = []manifest.Folder{{Path: "/run/data", Mode: 0o2770, UID: 33, GID: 50}, {Path: "/var/lib/data", Mode: 0o700, UID: 33, GID: 33}, {Path: "/var/run/far/data", Mode: 0o751, UID: 33, GID: 33}, {Path: "/var/lib/new/deep", Mode: 0o1750, UID: 33, GID: 34}}
	privileged := cmd("/bin/server", "write", "/etc/root-only", "x")
	privileged.Privileged = true
	u.Pre = []manifest.Command{privileged, cmd("/bin/server", "write", "/var/lib/new/deep/file", "x")}
	o := w.options(u)
	o.Env = []string{"B=3", "C=4"}
	o.Snapshot.Probes = []string{probing("data/a")}
	i := w.start(o)
	r := w.ask("data/a")
	slices.Sort(r.Env)
	slices.Sort(r.Groups)
	want := report{UID: 33, GID: 34, PID: r.PID, Groups: r.Groups, Umask: 0o027, Dir: "/var/lib", Host: "source.example", Env: []string{"A=2", "B=3", "C=4", "EMPTY=", "LOGNAME=www-data", "USER=www-data"}}
	if !reflect.DeepEqual(r, want) || !slices.Contains(r.Groups, 4) || !slices.Contains(r.Groups, 50) || slices.Contains(r.Groups, 0) {
		t.Errorf("got %+v\nwant %+v", r, want)
	}
	for name, want := range map[string]unix.Stat_t{
		"run/data":               {Mode: unix.S_IFDIR | 0o2770, Uid: 33, Gid: 50},
		"run/far/data":           {Mode: unix.S_IFDIR | 0o751, Uid: 33, Gid: 33},
		"run/far":                {Mode: unix.S_IFDIR | 0o755},
		"run/lock":               {Mode: unix.S_IFDIR | 0o1777},
		"upper/var/lib/new":      {Mode: unix.S_IFDIR | 0o755},
		"upper/var/lib/new/deep": {Mode: unix.S_IFDIR | 0o1750, Uid: 33, Gid: 34},
		"upper/etc/root-only":    {Mode: unix.S_IFREG | 0o640},
		"upper":                  {Mode: unix.S_IFDIR | 0o755},
	} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(w.dir, name), &st))
		if st.Mode != want.Mode || st.Uid != want.Uid || st.Gid != want.Gid {
			t.Errorf("%s: mode %o, owner %d:%d", name, st.Mode, st.Uid, st.Gid)
		}
	}
	if _, err := os.Lstat(filepath.Join(w.dir, "upper/var/lib/data")); err == nil {
		t.Error("a folder that the tree has was touched")
	}
	w.stop(i)
}

func TestWritesGoToUpper(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		before := listing(t, filepath.Dir(w.tree))
		u := serving("a")
		u.Pre = []manifest.Command{
			cmd("/bin/server", "append", "/etc/greeting", " and more"),
			cmd("/bin/server", "write", "/var/lib/data/new", "new"),
			cmd("/bin/sh", "-c", "echo gone > /dev/null && echo kept > /tmp/kept && read x < /tmp/kept && test $x = kept && : > /dev/shm/x && test -r /proc/self/status"),
		}
		o := w.options(u)
		o.Snapshot.Probes = []string{probing("a")}
		i := w.start(o)
		if got := w.upper("etc/greeting"); got != "hello from the tree and more\n" {
			t.Errorf("upper has %q", got)
		}
		if got := w.upper("var/lib/data/new"); got != "new" {
			t.Errorf("upper has %q", got)
		}
		if use := i.State().UpperUse; use < 8192 || use > 1<<20 {
			t.Errorf("the upper takes %d bytes", use)
		}
		w.stop(i)
		if after := listing(t, filepath.Dir(w.tree)); !reflect.DeepEqual(before, after) {
			t.Errorf("a layer changed:\n%v\n%v", before, after)
		}
		// What was written is there at the next start.
		u.Pre = []manifest.Command{cmd("/bin/server", "same", "/var/lib/data/new", "new")}
		o.Snapshot.Units = []manifest.Unit{u}
		w.start(o)
		for _, e := range []string{"proc", "dev", "run", "tmp"} {
			if _, err := os.Lstat(filepath.Join(w.dir, upperName, e)); err == nil {
				t.Errorf("%s was touched in the upper", e)
			}
		}
	})
}

// listing returns names, sizes and times of all below folder but the service's
// own directory.
func listing(t *testing.T, folder string) map[string]string {
	t.Helper()
	m := map[string]string{}
	must(t, filepath.WalkDir(folder, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Name() == "web" {
			return filepath.SkipDir
		}
		info, err := e.Info()
		if err != nil || p == folder {
			return err
		}
		m[p] = info.Mode().String() + info.ModTime().String()
		return nil
	}))
	return m
}

func TestForking(t *testing.T) {
	for name, tc := range map[string]struct{ pidFile, arg string }{
		"pid file":           {"/run/a.pid", "/run/a.pid"},
		"pid file by link":   {"/var/run/a.pid", "/var/run/a.pid"},
		"pid file in upper":  {"/var/lib/data/a.pid", "/var/lib/data/a.pid"},
		"no pid file":        {"", ""},
		"pid file elsewhere": {"/var/lib/other/a.pid", "/var/lib/data/a.pid"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			u := manifest.Unit{Name: "a", Kind: manifest.Forking, PIDFile: tc.pidFile, Start: []manifest.Command{cmd("/bin/server", "daemon", "/run/a", tc.arg)}}
			o := w.options(u)
			o.Snapshot.Probes = []string{probing("a")}
			i := w.start(o)
			main := i.State().Units[0].PID
			if main == 0 || innerPID(main) != w.ask("a").PID {
				t.Errorf("main process %d (%d inside), the server is %d inside", main, innerPID(main), w.ask("a").PID)
			}
			killed(t, main)
			<-i.Done()
			if err := i.Err(); err == nil || !strings.Contains(err.Error(), "signal 9") {
				t.Errorf("it ended: %v", err)
			}
			w.stop(i)
			if err := i.Err(); err == nil {
				t.Error("stop forgot why it ended")
			}
		})
	}
}

// A pid file from before the start says nothing, and the process that it names
// need not be an orphan.
func TestForkingGuarded(t *testing.T) {
	w := newWorld(t)
	must(t, os.WriteFile(filepath.Join(w.tree, "var/lib/data/a.pid"), []byte("1\n"), 0o644))
	u := manifest.Unit{Name: "a", Kind: manifest.Forking, PIDFile: "/var/lib/data/b.pid", Start: []manifest.Command{cmd("/bin/server", "guard", "/run/a", "/var/lib/data/b.pid")}}
	o := w.options(u)
	for range 2 { // the second time, the first one's pid file is in the upper
		i := w.start(o)
		main := i.State().Units[0].PID
		if got := w.ask("a").PID; innerPID(main) != got {
			t.Errorf("main process %d, %d inside; the server is %d inside", main, innerPID(main), got)
		}
		killed(t, main)
		<-i.Done()
		w.stop(i)
	}
}

func TestShellDaemon(t *testing.T) {
	w := newWorld(t)
	u := manifest.Unit{Name: "a", Kind: manifest.Forking, Start: []manifest.Command{cmd("/bin/sh", "-c", "/bin/server serve /run/a & while ! test -S /run/a; do :; done")}}
	o := w.options(u)
	o.Snapshot.Probes = []string{probing("a")}
	i := w.start(o)
	if main := i.State().Units[0].PID; innerPID(main) != w.ask("a").PID {
		t.Errorf("main process %d", main)
	}
}

func TestNotify(t *testing.T) {
	for _, verb := range []string{"notify", "handover"} {
		t.Run(verb, func(t *testing.T) {
			w := newWorld(t)
			u := manifest.Unit{Name: "a", Kind: manifest.Notify, User: manifest.User{UID: 33, GID: 33}, Start: []manifest.Command{cmd("/bin/server", verb, "/run/data/a")},
				Folders: []manifest.Folder{{Path: "/run/data", Mode: 0o755, UID: 33, GID: 33}}}
			i := w.start(w.options(u))
			s := i.State().Units[0]
			r := w.ask("data/a")
			if innerPID(s.PID) != r.PID {
				t.Errorf("main process %d, the server is %d inside", s.PID, r.PID)
			}
			if verb == "notify" && s.Status != "at your service" {
				t.Errorf("status %q", s.Status)
			}
			if !slices.ContainsFunc(r.Env, func(e string) bool { return strings.HasPrefix(e, "NOTIFY_SOCKET=/run/") }) {
				t.Errorf("environment %q", r.Env)
			}
			select {
			case <-i.Done():
				t.Errorf("it ended: %v", i.Err())
			default:
			}
		})
	}
}

func TestOneshot(t *testing.T) {
	w := newWorld(t)
	once := manifest.Unit{Name: "once", Kind: manifest.Oneshot, Start: []manifest.Command{cmd("/bin/server", "append", "/var/lib/data/log", "one"), cmd("/bin/server", "append", "/var/lib/data/log", "two")},
		Post: []manifest.Command{cmd("/bin/server", "append", "/var/lib/data/log", "three")}}
	second := serving("a")
	second.Pre = []manifest.Command{cmd("/bin/server", "append", "/var/lib/data/log", "four")}
	w.start(w.options(once, second))
	if got := w.upper("var/lib/data/log"); got != "one\ntwo\nthree\nfour\n" {
		t.Errorf("order: %q", got)
	}
}

// Services stand beside one another, each with its own root, on one tree.
func TestSeveralAtOnce(t *testing.T) {
	w := newWorld(t)
	w.layer()
	var all sync.WaitGroup
	for _, name := range []string{"x", "y", "z"} {
		all.Go(func() {
			o := w.options(serving(name))
			o.Name, o.Dir = name, filepath.Join(filepath.Dir(w.tree), "svc-"+name)
			o.Snapshot.Probes = []string{probing(name)}
			i, err := Start(soon(t), o)
			if err != nil {
				t.Error(err)
				return
			}
			if pids, err := i.Pids(); err != nil || len(pids) != 1 {
				t.Errorf("%s: processes %v, %v", name, pids, err)
			}
			w.stop(i)
			if err := Remove(soon(t), o.Dir); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestOddPaths(t *testing.T) {
	w := newWorld(t)
	w.layer()
	odd := filepath.Join(filepath.Dir(w.tree), `a:b,c\d "e"`+"\t"+`é#=`)
	must(t, os.Mkdir(odd, 0o755))
	for _, p := range []*string{&w.Tree, &w.Gate, &w.Blobs} {
		to := filepath.Join(odd, filepath.Base(*p))
		must(t, os.Rename(*p, to))
		*p = to
	}
	o := w.options(serving("a"))
	o.Layers, o.Dir = w.Layers, filepath.Join(odd, "web")
	u := &o.Snapshot.Units[0]
	u.Pre = []manifest.Command{cmd("/bin/server", "write", "/var/lib/data/x", "x")}
	i, err := Start(soon(t), o)
	must(t, err)
	if b, err := os.ReadFile(filepath.Join(o.Dir, "upper/var/lib/data/x")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	w.stop(i)
	must(t, Remove(soon(t), o.Dir))
}
