package service

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// The process that starts a service may be the one that serves its view. Were
// it to touch the root while it forks, it would wait for itself.
func TestViewOfThisProcess(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		served, err := fs.NewLoopbackRoot(w.Tree)
		must(t, err)
		view := filepath.Join(filepath.Dir(w.tree), "view")
		must(t, os.Mkdir(view, 0o755))
		hour := time.Hour
		server, err := fs.Mount(view, served, &fs.Options{
			EntryTimeout: &hour, AttrTimeout: &hour,
			MountOptions: fuse.MountOptions{DirectMount: true, AllowOther: true, FsName: "service-test-view", Options: []string{"default_permissions"}},
		})
		must(t, err)
		// Rather an error in this test than a process that can't be killed.
		limit := time.AfterFunc(25*time.Second, func() { _ = unix.Unmount(view, unix.MNT_FORCE|unix.MNT_DETACH) })
		t.Cleanup(func() {
			limit.Stop()
			must(t, server.Unmount())
			server.Wait()
		})
		w.Tree = view
		for n := range 3 {
			a := manifest.Unit{Name: "a", Kind: manifest.Forking, PIDFile: "/var/lib/data/a.pid", Start: []manifest.Command{cmd("/bin/server", "daemon", "/run/a", "/var/lib/data/a.pid")},
				Folders: []manifest.Folder{{Path: "/run/a.d", Mode: 0o755}, {Path: "/var/lib/new/a", Mode: 0o700}}}
			b := manifest.Unit{Name: "b", Kind: manifest.Notify, Start: []manifest.Command{cmd("/bin/server", "notify", "/run/b")}}
			o := w.options(a, b)
			o.Snapshot.Probes = []string{probing("a"), probing("b")}
			o.Progress = func(step string, took time.Duration) { t.Logf("%d %s %v", n, step, took) }
			i := w.start(o)
			w.ask("a")
			must(t, i.Check(soon(t)))
			i.State()
			w.stop(i)
		}
	})
}
