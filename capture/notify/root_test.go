package notify

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Where the root is a folder of a file system, what happens in the others of that is
// nobody's: the kernel calls each of them "/".
func TestRootThatIsAPart(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"/root/proc", "/root/in", "/outside"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	rooted := make(chan error, 1)
	written := make(chan error, 1)
	var all []string
	go func() {
		runtime.LockOSThread() // and it ends with this
		if err := errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount(dir+"/root", dir+"/root", "", unix.MS_BIND, ""),
			unix.Mount("/proc", dir+"/root/proc", "", unix.MS_BIND|unix.MS_REC, ""),
			unix.Chroot(dir+"/root"),
			os.Chdir("/"),
		); err != nil {
			rooted <- err
			return
		}
		w, err := Open([]Mount{{"/", "/"}})
		rooted <- err
		if err != nil {
			return
		}
		defer func() { _ = w.Close() }()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for err == nil && !slices.Contains(all, "/last") {
			var events []Event
			events, err = w.Next(ctx)
			for _, e := range events {
				all = append(all, e.Path)
			}
		}
		written <- err
	}()
	if err := <-rooted; err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/outside/a", "/root/in/b", "/outside/c", "/root/last"} {
		if err := os.WriteFile(dir+p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-written; err != nil {
		t.Fatalf("%v; reported: %q", err, all)
	}
	if !slices.Contains(all, "/in/b") || slices.ContainsFunc(all, func(p string) bool { return strings.HasSuffix(p, "/a") || strings.HasSuffix(p, "/c") }) {
		t.Errorf("reported: %q, want /in/b and /last", all)
	}
}
