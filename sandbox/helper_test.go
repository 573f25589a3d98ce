package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHelper: a process that was prepared becomes process 1, once, and sees what
// was mounted since if that is brought to it.
func TestHelper(t *testing.T) {
	h, err := Prepare(false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	pid := h.s.init.Process.Pid
	late := t.TempDir()
	if err := unix.Mount("late", late, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(late, 0); err != nil {
			t.Errorf("the caller's mount: %v", err)
		}
	}()
	if err := os.WriteFile(filepath.Join(late, "file"), []byte("seen"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := h.Bring(late); err != nil {
		t.Fatal(err)
	}
	c := testRoot(t)
	c.Helper = h
	c.Mounts = append(c.Mounts, TmpfsMount("/mnt", 0o755), BindMount(late, "/mnt/late", true))
	s := begin(t, c)
	if len(h.mounts) != 0 {
		t.Error("the mount that was brought is still held")
	}
	if s.init.Process.Pid != pid {
		t.Error("another process was started")
	}
	if got := output(t, s, shell("cat /mnt/late/file")); got != "seen" {
		t.Errorf("read %q", got)
	}
	second := begin(t, c) // it has served: a new one, which sees the mount anyway
	if got := output(t, second, shell("cat /mnt/late/file")); got != "seen" {
		t.Errorf("read %q", got)
	}
	stop(t, second)
	stop(t, s)
}

// TestHelperUnused: one that is not needed, or that something has ended, costs
// nobody anything.
func TestHelperUnused(t *testing.T) {
	h, err := Prepare(false, false)
	if err != nil {
		t.Fatal(err)
	}
	pid := h.s.init.Process.Pid
	h.Close()
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("process %d is left: %v", pid, err)
	}
	h.Close()

	if h, err = Prepare(false, false); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	killed := h.s
	killed.kill()
	<-killed.done
	c := testRoot(t)
	c.Helper = h
	s := begin(t, c)
	if s == killed || output(t, s, shell("echo here")) != "here\n" {
		t.Error("no sandbox")
	}
	stop(t, s)
}
