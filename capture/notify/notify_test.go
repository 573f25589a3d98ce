package notify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func watch(t *testing.T, dir string) *Watcher {
	t.Helper()
	w, err := Open([]Mount{{"/", dir}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// until reads events until all of want have been there.
func until(t *testing.T, w *Watcher, want ...Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for left := slices.Clone(want); len(left) > 0; {
		got, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("%v; not reported: %+v", err, left)
		}
		left = slices.DeleteFunc(left, func(e Event) bool {
			return slices.ContainsFunc(got, func(g Event) bool { return g.Path == e.Path && (g.Below || !e.Below) })
		})
	}
}

func TestChanges(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/b", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w := watch(t, dir)
	at := func(p string) string { return filepath.Join(dir, p) }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.WriteFile(at("a/file"), []byte("x"), 0o644))
	until(t, w, Event{Path: "/a/file"})
	check(os.Chmod(at("a/file"), 0o600))
	until(t, w, Event{Path: "/a/file"})
	check(unix.Setxattr(at("a/file"), "user.x", []byte("y"), 0))
	until(t, w, Event{Path: "/a/file"})
	f, err := os.OpenFile(at("a/file"), os.O_WRONLY, 0)
	check(err)
	_, err = f.WriteString("more")
	check(err)
	until(t, w, Event{Path: "/a/file"}) // while it is open
	check(f.Close())
	check(os.Rename(at("a/file"), at("c/moved")))
	until(t, w, Event{Path: "/a/file"}, Event{Path: "/c/moved"})
	check(os.Link(at("c/moved"), at("c/link")))
	check(os.Symlink("nowhere", at("c/symlink")))
	until(t, w, Event{Path: "/c/link"}, Event{Path: "/c/symlink"})
	// A folder's new path counts at once, although its old one was known.
	check(os.WriteFile(at("a/b/deep"), nil, 0o644))
	until(t, w, Event{Path: "/a/b/deep"})
	check(os.Rename(at("a"), at("z")))
	until(t, w, Event{Path: "/a"}, Event{Path: "/z", Below: true})
	check(os.WriteFile(at("z/b/deep"), []byte("y"), 0o644))
	until(t, w, Event{Path: "/z/b/deep"})
	check(os.Chmod(at("z/b"), 0o700))
	until(t, w, Event{Path: "/z/b"})
	check(os.RemoveAll(at("z")))
	until(t, w, Event{Path: "/z"})
	odd := "odd \n\xff (deleted)"
	check(os.Mkdir(at(odd), 0o755))
	check(os.WriteFile(at(odd+"/x"), nil, 0o644))
	until(t, w, Event{Path: "/" + odd, Below: true}, Event{Path: "/" + odd + "/x"})
}

// What is mounted elsewhere, and several times, is found where it is.
func TestMounts(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"tmpfs", "bind", "real"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range [][3]string{{"tmpfs", "tmpfs", "tmpfs"}, {dir + "/real", "bind", ""}} {
		flags := uintptr(0)
		if m[2] == "" {
			flags = unix.MS_BIND
		}
		at := filepath.Join(dir, m[1])
		if err := unix.Mount(m[0], at, m[2], flags, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	w, err := Open([]Mount{{"/", dir}, {"/bind", dir + "/bind"}, {"/tmpfs", dir + "/tmpfs"}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for p, want := range map[string][]Event{
		"tmpfs/x": {{Path: "/tmpfs/x"}},
		"real/x":  {{Path: "/real/x"}, {Path: "/bind/x"}},
	} {
		if err := os.WriteFile(filepath.Join(dir, p), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		until(t, w, want...)
	}
}

// What the queue can't hold is said to be lost.
func TestOverflow(t *testing.T) {
	b, err := os.ReadFile("/proc/sys/fs/fanotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	var most int
	if _, err := fmt.Sscan(string(b), &most); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	w := watch(t, dir)
	for i := range most + 100 {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if _, err := w.Next(ctx); errors.Is(err, ErrLost) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	// And it goes on.
	if err := os.WriteFile(filepath.Join(dir, "after"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, w, Event{Path: "/after"})
}

func TestNextEnds(t *testing.T) {
	w, err := Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if got, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, %v", got, err)
		}
		cancel()
	}
}

// FuzzEvents: whatever the kernel writes, nothing breaks.
func FuzzEvents(f *testing.F) {
	record := make([]byte, infoHead+8+handleHead+8)
	record[0] = unix.FAN_EVENT_INFO_TYPE_DFID_NAME
	record = append(record, "name\x00"...)
	binary.NativeEndian.PutUint16(record[2:], uint16(len(record)))
	binary.NativeEndian.PutUint32(record[infoHead+8:], 8)
	event := make([]byte, metadataSize)
	event = append(event, record...)
	binary.NativeEndian.PutUint32(event, uint32(len(event)))
	binary.NativeEndian.PutUint16(event[6:], metadataSize)
	binary.NativeEndian.PutUint64(event[8:], unix.FAN_CREATE)
	f.Add(event)
	f.Add([]byte(strings.Repeat("\x18\x00\x00\x00", 20)))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := &Watcher{paths: map[string][]string{}, mounts: []*mount{{Mount: Mount{"/", "/nowhere"}, fd: -1}}}
		got := gathered{at: map[string]int{}}
		err := w.gather(b, &got)
		if err != nil && !errors.Is(err, ErrLost) && !errors.Is(err, unix.EPROTO) {
			t.Fatal(err)
		}
		for _, e := range got.events {
			t.Fatalf("a folder that can't be opened is %q", e.Path)
		}
	})
}
