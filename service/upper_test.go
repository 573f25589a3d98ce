package service

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// prepared returns files for the world's tree: data, whose copy lies at from, and
// an empty log.
func (w *world) prepared(from, content string) []Prepared {
	w.t.Helper()
	must(w.t, os.WriteFile(from, []byte(content), 0o600))
	folder := func(name string) manifest.Entry {
		return manifest.Entry{Name: name, Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: manifest.EmptyDigest, Mtime: manifest.Time{Sec: 12345, Nsec: 678}}
	}
	data := folder("data")
	data.Mode, data.UID, data.GID = 0o2750, 71, 72
	data.Xattrs = []manifest.Xattr{{Name: "user.folder", Value: "1"}}
	folders := []manifest.Entry{folder("var"), folder("lib"), data}
	file := manifest.Entry{Name: "db", Type: manifest.File, Mode: 0o4640, UID: 81, GID: 82, Links: 1, Size: int64(len(content)), Digest: manifest.Sum([]byte(content)),
		Mtime: manifest.Time{Sec: 54321, Nsec: 987}, Xattrs: []manifest.Xattr{{Name: "user.file", Value: "2"}}}
	log := manifest.Entry{Name: "log", Type: manifest.File, Mode: 0o600, UID: 91, GID: 92, Links: 1, Digest: manifest.EmptyDigest}
	take := func(to string) (bool, error) {
		err := os.Rename(from, to)
		return err == nil, err
	}
	return []Prepared{{Path: "/var/lib/data/db", Entry: file, Folders: folders, Take: take}, {Path: "/var/lib/data/log", Entry: log, Folders: folders}}
}

func (w *world) inUpper(name string) *syscall.Stat_t {
	w.t.Helper()
	info, err := os.Lstat(filepath.Join(w.dir, upperName, name))
	if err != nil {
		return nil
	}
	return info.Sys().(*syscall.Stat_t)
}

// What is prepared is the service's own from the beginning, with all attributes,
// beside what the tree has in the same folders.
func TestPreparedIsTheServices(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		must(t, os.WriteFile(filepath.Join(w.Tree, "var/lib/data/beside"), nil, 0o644))
		from := filepath.Join(filepath.Dir(w.tree), "copy")
		// A start that was killed while it made the upper.
		must(t, os.MkdirAll(filepath.Join(w.dir, newUpper, "var"), 0o700))
		unit := manifest.Unit{Name: "w", Kind: manifest.Simple, Pre: []manifest.Command{cmd("/bin/sh", "-ec", `
			test -e /var/lib/data/beside; test -u /var/lib/data/db; test -e /etc/greeting
			read line < /var/lib/data/db; echo "$line" > /var/lib/seen
			echo more >> /var/lib/data/db; echo started >> /var/lib/data/log`)},
			Start: []manifest.Command{cmd("/bin/server", "serve", "/run/w")}}
		o := w.options(unit)
		o.Prepared = w.prepared(from, "the copy\n")
		i := w.start(o)
		if placed, now := i.Placed(); placed.Files != 2 || !now {
			t.Errorf("placed: %+v %v", placed, now)
		}
		if got := w.upper("var/lib/seen") + w.upper("var/lib/data/db") + w.upper("var/lib/data/log"); got != "the copy\nthe copy\nmore\nstarted\n" {
			t.Errorf("the service read and wrote %q", got)
		}
		if st := w.inUpper("var/lib/data/log"); st.Uid != 91 || st.Gid != 92 || st.Mode&0o7777 != 0o600 {
			t.Errorf("the log: %+v", st)
		}
		if st := w.inUpper("var/lib/data"); st.Uid != 71 || st.Gid != 72 || st.Mode&0o7777 != 0o2750 || st.Mtim.Sec != 12345 || st.Mtim.Nsec != 678 {
			t.Errorf("the folder: %+v", st)
		}
		for name, want := range map[string]string{"var/lib/data": "user.folder", "var/lib/data/db": "user.file"} {
			if n, err := unix.Lgetxattr(filepath.Join(w.dir, upperName, name), want, nil); n != 1 || err != nil {
				t.Errorf("%s of %s: %d %v", want, name, n, err)
			}
		}
		if n, err := unix.Lgetxattr(filepath.Join(w.dir, upperName, "var/lib/data"), "trusted.overlay.opaque", nil); err == nil {
			t.Errorf("the folder is opaque: %d", n)
		}
		if _, err := os.Lstat(filepath.Join(w.dir, newUpper)); err == nil {
			t.Error("upper.new is left")
		}
		w.stop(i)

		// A second start leaves the upper alone.
		o.Snapshot.Units[0].Pre = nil
		o.Prepared = w.prepared(from, "another\n")
		i = w.start(o)
		if got := w.upper("var/lib/data/db"); got != "the copy\nmore\n" {
			t.Errorf("after a restart: %q", got)
		}
		if _, err := os.Lstat(from); err != nil {
			t.Errorf("the second start took a copy: %v", err)
		}
		if placed, now := i.Placed(); placed.Files != 2 || now {
			t.Errorf("placed: %+v %v", placed, now)
		}
	})
}

// What can't be placed never costs the start, and leaves no half of itself.
func TestPreparedThatFails(t *testing.T) {
	for name, spoil := range map[string]func(*Prepared){
		"no copy":       func(p *Prepared) { p.Take = func(string) (bool, error) { return false, nil } },
		"take fails":    func(p *Prepared) { p.Take = func(string) (bool, error) { return false, errors.New("no") } },
		"too short":     func(p *Prepared) { p.Entry.Size++ },
		"leads out":     func(p *Prepared) { p.Path = "/../db" },
		"way leads out": func(p *Prepared) { p.Folders[0].Name = ".."; p.Path = "/lib/data/db" },
		"several names": func(p *Prepared) { p.Entry.Links, p.Entry.Link = 2, 7 },
		"foreign name":  func(p *Prepared) { p.Entry.Name = "other" },
		"not on this disk": func(p *Prepared) {
			p.Take = func(to string) (bool, error) { return false, os.Rename("/proc/version", to) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			o := w.options(serving("w"))
			o.Prepared = w.prepared(filepath.Join(filepath.Dir(w.tree), "copy"), "the copy\n")[:1]
			spoil(&o.Prepared[0])
			i := w.start(o)
			if placed, _ := i.Placed(); placed.Files != 0 {
				t.Errorf("placed: %+v", placed)
			}
			if w.inUpper("var") != nil {
				t.Error("a folder without its attributes is left in the upper")
			}
		})
	}
}

// A root that was made without copies gets them while the service runs; what is no
// file is left alone.
func TestCopyUp(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		o := w.options(serving("w"))
		i := w.start(o)
		if err := i.CopyUp(soon(t), []string{"/etc/greeting", "/var/lib/data", "/none", "/dev/null", "/var/run"}); err != nil {
			t.Fatal(err)
		}
		if got := w.upper("etc/greeting"); !strings.Contains(got, "hello") {
			t.Errorf("in the upper: %q", got)
		}
		w.stop(i)
		if err := i.CopyUp(soon(t), []string{"/bin/server"}); err != nil {
			t.Errorf("after the stop: %v", err)
		}
	})
}
