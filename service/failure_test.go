package service

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"srvfs/manifest"
)

func TestFailures(t *testing.T) {
	fail := cmd("/bin/server", "fail", "7", "no", "such", "luck")
	mayFail := fail
	mayFail.MayFail = true
	with := func(change func(*manifest.Unit)) manifest.Unit {
		u := serving("a")
		change(&u)
		return u
	}
	cases := map[string]struct {
		unit   manifest.Unit
		probes []string
		exit   string
		words  []string // in the error
		is     error
	}{
		"pre fails":  {unit: with(func(u *manifest.Unit) { u.Pre = []manifest.Command{mayFail, fail} }), exit: "exit status 7", words: []string{"unit a", "/bin/server fail 7", "exit status 7", "no such luck"}},
		"post fails": {unit: with(func(u *manifest.Unit) { u.Post = []manifest.Command{fail} }), exit: "exit status 7"},
		"oneshot fails": {unit: with(func(u *manifest.Unit) {
			u.Kind, u.Start = manifest.Oneshot, []manifest.Command{cmd("/bin/server"), fail}
		}), exit: "exit status 2"},
		"forking fails":     {unit: with(func(u *manifest.Unit) { u.Kind, u.Start = manifest.Forking, []manifest.Command{fail} }), exit: "exit status 7"},
		"ends at once":      {unit: with(func(u *manifest.Unit) { u.Start = []manifest.Command{fail} }), probes: []string{probing("a")}, exit: "exit status 7", words: []string{"main process", "no such luck"}},
		"ends with success": {unit: with(func(u *manifest.Unit) { u.Start = []manifest.Command{cmd("/bin/sh", "-c", "exit 0")} }), probes: []string{probing("a")}, exit: "exit status 0"},
		"ends while probed": {unit: with(func(u *manifest.Unit) { u.Start = []manifest.Command{cmd("/bin/sh", "-c", "echo ouch; exit 4")} }), probes: []string{probing("a")}, exit: "exit status 4", words: []string{"ouch"}},
		"no program":        {unit: with(func(u *manifest.Unit) { u.Start = []manifest.Command{cmd("/bin/nothing")} }), is: fs.ErrNotExist, words: []string{"/bin/nothing"}},
		"wrong user": {unit: with(func(u *manifest.Unit) {
			u.User = manifest.User{Name: "ghost", UID: 4242, GID: 4242}
			u.Start[0] = cmd("/bin/server", "write", "/etc/x", "x")
		}), probes: []string{probing("a")}, exit: "exit status 1", words: []string{"permission denied"}},
		"no folder":        {unit: with(func(u *manifest.Unit) { u.Dir = "/nowhere" }), is: fs.ErrNotExist, words: []string{"/nowhere"}},
		"folder is a file": {unit: with(func(u *manifest.Unit) { u.Folders = []manifest.Folder{{Path: "/etc/greeting", Mode: 0o755}} }), words: []string{"/etc/greeting", "something else"}},
		"never ready":      {unit: with(func(u *manifest.Unit) { u.Kind, u.StartMax = manifest.Notify, 3e9 }), words: []string{"READY=1", "3s", "serving /run/a"}},
		"notify ends":      {unit: with(func(u *manifest.Unit) { u.Kind, u.Start = manifest.Notify, []manifest.Command{fail} }), exit: "exit status 7"},
		"pre never ends":   {unit: with(func(u *manifest.Unit) { u.StartMax, u.Pre = 300e6, []manifest.Command{cmd("/bin/server", "sleep")} }), words: []string{"300ms", "sleep"}},
		"no pid file": {unit: with(func(u *manifest.Unit) {
			u.Kind, u.PIDFile, u.StartMax, u.Start[0] = manifest.Forking, "/run/x.pid", 3e9, cmd("/bin/server", "daemon", "/run/a", "")
		}), words: []string{"/run/x.pid", "3s"}},
		"probe silent":      {unit: serving("a"), probes: []string{probing("b")}, words: []string{"2s passed", "ask /run/b", "serving /run/a"}},
		"probe of a second": {unit: serving("a"), probes: []string{probing("a"), "exec:/bin/server fail 9"}, words: []string{"9"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			o := w.options(c.unit)
			o.Snapshot.Probes, o.ReadyTimeout = c.probes, 2*time.Second
			i, err := Start(soon(t), o)
			se := w.failed(i, err)
			if se == nil {
				if name != "folder is a file" {
					t.Fatalf("not a StartError: %v", err)
				}
				se = &StartError{}
			}
			if se.Exit != c.exit {
				t.Errorf("exit %q", se.Exit)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("it is not %v", c.is)
			}
			for _, word := range c.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("the error lacks %q", word)
				}
			}
		})
	}
}

func TestOtherSnapshot(t *testing.T) {
	w := newWorld(t)
	u := serving("a")
	u.Pre = []manifest.Command{cmd("/bin/server", "write", "/var/lib/data/mine", "mine")}
	o := w.options(u)
	w.stop(w.start(o))
	o.Snapshot.Root.Digest, o.Snapshot.Sequence = manifest.Sum([]byte("another")), 8
	if _, err := Start(soon(t), o); !errors.Is(err, manifest.ErrStale) || !strings.Contains(err.Error(), "snapshot 7, not 8") {
		t.Errorf("start over another snapshot: %v", err)
	}
	if got := w.upper("var/lib/data/mine"); got != "mine" {
		t.Errorf("%q", got)
	}
	if s, err := Inspect(w.dir); err != nil || s.Sequence != 7 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A start that fails over an upper from before loses nothing of it.
func TestFailureKeepsUpper(t *testing.T) {
	w := newWorld(t)
	u := serving("a")
	u.Pre = []manifest.Command{cmd("/bin/server", "write", "/var/lib/data/mine", "mine")}
	o := w.options(u)
	w.stop(w.start(o))
	o.Snapshot.Units[0].Pre = []manifest.Command{cmd("/bin/server", "fail", "1")}
	if _, err := Start(soon(t), o); err == nil {
		t.Fatal("it started")
	}
	if got := w.upper("var/lib/data/mine"); got != "mine" {
		t.Errorf("%q", got)
	}
	o.Snapshot.Units[0].Pre = []manifest.Command{cmd("/bin/server", "same", "/var/lib/data/mine", "mine")}
	w.start(o)
}

func TestCancelledStart(t *testing.T) {
	w := newWorld(t)
	u := serving("a")
	u.Pre = []manifest.Command{cmd("/bin/server", "serve", "/run/pre")}
	ctx, cancel := context.WithCancel(soon(t))
	go func() {
		for { // until it waits for the command that never ends
			if c, err := net.Dial("unix", filepath.Join(w.dir, "run/pre")); err == nil {
				_ = c.Close()
				cancel()
				return
			}
			if ctx.Err() != nil {
				return
			}
		}
	}()
	i, err := Start(ctx, w.options(u))
	w.failed(i, err)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestRefusesOptions(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*Options){
		"no snapshot":      func(o *Options) { o.Snapshot = nil },
		"name leads out":   func(o *Options) { o.Name = "../x" },
		"relative dir":     func(o *Options) { o.Dir = "web" },
		"unclean dir":      func(o *Options) { o.Dir += "/../x" },
		"no tree":          func(o *Options) { o.Tree = "" },
		"gate alone":       func(o *Options) { o.Gate = o.Tree },
		"bad probe":        func(o *Options) { o.Snapshot.Probes = []string{"gopher://x"} },
		"bad variable":     func(o *Options) { o.Env = []string{"=x"} },
		"paths too long":   func(o *Options) { o.Tree = "/" + strings.Repeat("x/", 2040) + "x" },
		"tree not there":   func(o *Options) { o.Tree = w.tree + "-not" },
		"no folder for it": func(o *Options) { o.Dir = "/nowhere/at/all" },
	} {
		o := w.options(serving("a"))
		change(&o)
		i, err := Start(soon(t), o)
		if err == nil {
			w.stop(i)
			t.Errorf("%s: it started", name)
		}
		t.Logf("%s: %v", name, err)
	}
	if _, err := os.Lstat(w.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
}
