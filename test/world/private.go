package world

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const privateEnv = "SRVFS_WORLD_PRIVATE"

// Private makes the program go on in a mount namespace of its own, so that
// whatever it mounts vanishes with it, however it ends. Call it at the
// beginning of main or TestMain, after sandbox.Init: the process of a wire is
// this program too, and goes no further.
func Private() {
	if os.Args[0] == linkName {
		carry()
	}
	if os.Getenv(privateEnv) != "" {
		err := os.Unsetenv(privateEnv)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err != nil {
			fail(fmt.Errorf("make mounts private: %w", err))
		}
		return
	}
	runtime.LockOSThread() // Pdeathsig is tied to this thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), privateEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	// The copy cleans up when it is told to end, which it can't once this process
	// is gone.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	err := cmd.Start()
	if err == nil {
		go func() {
			for sig := range signals {
				_ = cmd.Process.Signal(sig)
			}
		}()
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		os.Exit(exit.ExitCode())
	}
	fail(fmt.Errorf("start in a mount namespace of its own (are you root?): %w", err))
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
	os.Exit(1)
}

// disk mounts a new ext4 file system at dir, in a sparse file beside it: what a
// host has, and empty, with room for two million files. On a disk on which many
// files were just deleted ext4 takes a millisecond to make each new one; and it
// must not zero its inode tables in the background while others measure.
func disk(dir string) error {
	image := dir + ".img"
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(16<<30), f.Close(), os.Mkdir(dir, 0o755)); err != nil {
		return err
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-m", "0", "-i", "8192", image}, {"mount", "-o", "loop,noinit_itable", image, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
		}
	}
	return nil
}

// removeDisk takes a disk away again.
func removeDisk(dir string) error {
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return errors.Join(os.Remove(dir), os.Remove(dir+".img"))
}
