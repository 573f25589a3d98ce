package capture

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// look compares what a replica shows, seen through an open folder, with the
// source: every name, attribute and byte.
func look(t *testing.T, root string, tr *tree, c stageConfig) {
	t.Helper()
	s := must(newStage(t.Context(), c))(t)
	defer func() { check(t, s.close(context.WithoutCancel(t.Context()))) }()
	seen := "/proc/self/fd/" + strconv.Itoa(int(s.root.Fd()))
	var again []string
	check(t, fs.WalkDir(os.DirFS(seen), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		p = filepath.Join("/", p)
		if isPseudo(p) || p == "/var" || p == "/sys" { // furnished by the stage
			if d.IsDir() && isPseudo(p) {
				return fs.SkipDir
			}
			return nil
		}
		again = append(again, p)
		return nil
	}))
	for _, n := range tr.nodes {
		if !slices.Contains(again, n.path) && n.path != "/" {
			t.Errorf("%q is missing", n.path)
			continue
		}
		var want, have unix.Stat_t
		check(t, unix.Lstat(filepath.Join(root, n.path), &want))
		check(t, unix.Lstat(seen+"/."+n.path, &have))
		if want.Mode != have.Mode || want.Uid != have.Uid || want.Gid != have.Gid || want.Rdev != have.Rdev || n.entry.Type != manifest.Dir && (want.Size != have.Size || uint64(n.entry.Links) != have.Nlink) {
			t.Errorf("%q: %+v, want %+v", n.path, have, want)
		}
		if mtime := (manifest.Time{Sec: have.Mtim.Sec, Nsec: uint32(have.Mtim.Nsec)}); n.path != "/" && mtime != n.entry.Mtime {
			t.Errorf("%q: modified %v, want %v", n.path, mtime, n.entry.Mtime)
		}
		if n.path == "/" {
			continue
		}
		xs := must(xattrs(seen+"/."+n.path, n.path))(t)
		if !slices.Equal(xs, n.entry.Xattrs) {
			t.Errorf("%q: attributes %q, want %q", n.path, xs, n.entry.Xattrs)
		}
		if n.entry.Type == manifest.File {
			a, b := must(os.ReadFile(filepath.Join(root, n.path)))(t), must(os.ReadFile(seen+"/."+n.path))(t)
			if !bytes.Equal(a, b) {
				t.Errorf("%q has other content", n.path)
			}
		}
	}
	if len(again) != len(tr.nodes) {
		t.Errorf("%d names, want %d", len(again), len(tr.nodes))
	}
	// What is written there reaches nobody.
	check(t, os.WriteFile(seen+"/etc/plain", []byte("changed"), 0o644))
	if b := must(os.ReadFile(filepath.Join(root, "etc/plain")))(t); string(b) != "plain" {
		t.Errorf("the source now has %q", b)
	}
}

func TestReplicaShowsTheSnapshot(t *testing.T) {
	root := zoo(t)
	// Names that the snapshot does not have must not show.
	tr := gather(t, root, nil)
	write(t, root+"/etc/other", "later", 0o644)
	write(t, root+"/later/file", "later", 0o644)
	mounts := must(mountsBelow(root))(t)
	for _, copies := range []bool{false, true} {
		r := &replica{meta: tr.meta, mounts: mounts}
		if copies {
			r.copyFrom = openRoot(t, root)
		}
		look(t, root, tr, stageConfig{mounts: mounts, copies: copies, build: func(dir string) error {
			return r.make(t.Context(), &tr.root, tr.totals.Entries, dir)
		}})
	}
}

// A source with a file system of its own on a folder: its files are redirected
// to it, and names are the same at both places.
func TestReplicaOverSeveralFileSystems(t *testing.T) {
	root := zoo(t)
	write(t, root+"/srv/hidden", "below the mount", 0o644)
	write(t, root+"/plain", "of the root", 0o644)
	check(t, unix.Mount("srvfs-capture-test", root+"/srv", "tmpfs", 0, ""))
	t.Cleanup(func() { check(t, unix.Unmount(root+"/srv", unix.MNT_DETACH)) })
	write(t, root+"/srv/plain", "of the mount", 0o600)
	write(t, root+"/srv/dir/file", "deep", 0o600)
	tr := gather(t, root, nil)
	if _, ok := tr.find("/srv/dir/file"); !ok {
		t.Fatal("the mount was not entered")
	}
	mounts := must(mountsBelow(root))(t)
	if len(mounts) != 2 || !mounts[1].real || mounts[1].path != "/srv" {
		t.Fatalf("mounts %+v", mounts)
	}
	r := &replica{meta: tr.meta, mounts: mounts}
	look(t, root, tr, stageConfig{mounts: mounts, build: func(dir string) error {
		return r.make(t.Context(), &tr.root, tr.totals.Entries, dir)
	}})
}

func TestStageOverTheSource(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/plain", "plain", 0o644)
	write(t, root+"/run/pid", "1", 0o644)
	s := must(newStage(t.Context(), stageConfig{mounts: must(mountsBelow(root))(t), folders: []folder{{path: "/run/web/deep", mode: 0o2750, uid: 7, gid: 8}, {path: "/var/lib/web", mode: 0o700, uid: 9}}}))(t)
	inside := "/proc/self/fd/" + strconv.Itoa(int(s.root.Fd()))
	for p, want := range map[string]unix.Stat_t{"/run/web": {Mode: 0o755}, "/run/web/deep": {Mode: 0o2750, Uid: 7, Gid: 8}, "/var/lib/web": {Mode: 0o700, Uid: 9}, "/tmp": {Mode: 0o1777}, "/proc": {Mode: 0o555}} {
		var st unix.Stat_t
		check(t, unix.Stat(inside+p, &st))
		if st.Mode&0o7777 != want.Mode || st.Uid != want.Uid || st.Gid != want.Gid {
			t.Errorf("%s: %o %d %d", p, st.Mode, st.Uid, st.Gid)
		}
	}
	if _, err := s.readFile("/run/pid"); err == nil {
		t.Error("the running instance's PID file shows")
	}
	if b := must(s.readFile("/etc/plain"))(t); string(b) != "plain" {
		t.Errorf("%q", b)
	}
	check(t, os.Remove(inside+"/etc/plain"))
	check(t, s.close(t.Context()))
	check(t, s.close(t.Context()))
	must(os.Stat(root + "/etc/plain"))(t)
	if names := must(os.ReadDir(root))(t); len(names) != 2 {
		t.Errorf("the source now has %v", names)
	}
}

func TestStageReportsWhatFails(t *testing.T) {
	_, err := newStage(t.Context(), stageConfig{mounts: []sourceMount{{path: "/", host: t.TempDir() + "/none"}}})
	wantErr(t, err, unix.ENOENT, "none")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root := t.TempDir()
	_, err = newStage(ctx, stageConfig{mounts: []sourceMount{{path: "/", host: root}}})
	wantErr(t, err, context.Canceled)
}

func TestMounts(t *testing.T) {
	infos := []*mountinfo.Info{
		{Mountpoint: "/", FSType: "ext4"}, {Mountpoint: "/r", FSType: "xfs"}, {Mountpoint: "/r/proc", FSType: "proc"}, {Mountpoint: "/r/var/lib", FSType: "ext4"},
		{Mountpoint: "/r/var/lib/sub", FSType: "ext4"}, {Mountpoint: "/r/run", FSType: "tmpfs"}, {Mountpoint: "/rest", FSType: "ext4"}, {Mountpoint: "/r/mnt", FSType: "fuse.srvfs"},
		{Mountpoint: "/r/var/lib", FSType: "btrfs"},
	}
	got := arrangeMounts("/r", infos)
	want := []sourceMount{
		{"/", "/r", true}, {"/mnt", "/r/mnt", false}, {"/proc", "/r/proc", false}, {"/run", "/r/run", false}, {"/var/lib", "/r/var/lib", true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for p, m := range map[string]string{"/var/library": "/", "/var/lib": "/var/lib", "/var/lib/x/y": "/var/lib", "/": "/"} {
		if got := mountOf(want, p).path; got != m {
			t.Errorf("%s is on %s", p, got)
		}
	}
}
