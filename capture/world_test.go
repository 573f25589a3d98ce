package capture

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
	"srvfs/manifest/statcache"
	"srvfs/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	code := m.Run()
	if serverDir != "" {
		_ = os.RemoveAll(serverDir)
	}
	os.Exit(code)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v: want one that wraps %v", err, target)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Fatalf("error %v: want it to say %q", err, w)
		}
	}
}

func write(t testing.TB, name, content string, mode os.FileMode) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(name), 0o755))
	check(t, os.WriteFile(name, []byte(content), 0o600))
	check(t, os.Chmod(name, mode))
}

// age sets a file's times so far back that a change can't fall into the same
// step of the kernel's clock.
func age(t testing.TB, name string) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	check(t, os.Chtimes(name, old, old))
}

// gather builds the tree of everything below root, with the reason given.
func gather(t testing.TB, root string, cache *statcache.Cache) *tree {
	t.Helper()
	r := must(rootfs.New(root))(t)
	t.Cleanup(func() { _ = r.Close() })
	c := newClosure(r, must(mountsBelow(root))(t), nil)
	check(t, c.addTree(t.Context(), "/", Reason{ClassUser, "everything"}))
	return must(build(t.Context(), newHasher(openRoot(t, root), cache, nil), c.items))(t)
}

func openRoot(t testing.TB, root string) *os.File {
	t.Helper()
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	f := os.NewFile(uintptr(fd), root)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// publish puts everything below root into the library.
func publish(t testing.TB, lib *Library, service, root string) (*manifest.Snapshot, *tree) {
	t.Helper()
	return publishScoped(t, lib, service, root, scope{})
}

func publishScoped(t testing.TB, lib *Library, service, root string, s scope) (*manifest.Snapshot, *tree) {
	t.Helper()
	tr := gather(t, root, nil)
	snap := &manifest.Snapshot{
		Service: service, Sequence: 1, Created: 1, Source: "test", Root: tr.root, Totals: tr.totals,
		Units: []manifest.Unit{{Name: service, Kind: manifest.Simple, Start: []manifest.Command{{Argv: []string{"/bin/true"}}}}},
	}
	index := must(tr.index(root))(t)
	must(lib.publish(snap, edition{meta: tr.meta, index: index, scope: must(json.Marshal(s))(t)}))(t)
	return snap, tr
}

func digestOf(t testing.TB, tr *tree, p string) manifest.Digest {
	t.Helper()
	n, ok := tr.find(p)
	if !ok {
		t.Fatalf("no %s in the tree", p)
	}
	return n.entry.Digest
}
