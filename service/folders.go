package service

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// foldersName is os.Args[0] of the copy of this program that makes folders in a
// root, or opens files there.
const foldersName = "srvfs-service-folders"

// A copy that works in a root has nothing else to do: it ends here, whatever
// program this package is part of.
func init() {
	if len(os.Args) > 0 && os.Args[0] == foldersName {
		if err := foldersMain(); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// An order tells the copy what to do, on its standard input.
type order struct {
	Task    string // the /proc folder of a thread in the root
	Folders []manifest.Folder
	CopyUp  []string // files that are to be copied into the upper
}

func foldersMain() error {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return fmt.Errorf("read what to make: %w", err)
	}
	if err := unix.Chroot(o.Task + "/root"); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	unix.Umask(0)
	for _, f := range o.Folders {
		if err := makeFolder(f); err != nil {
			return err
		}
	}
	for _, p := range o.CopyUp {
		if err := copyUp(p); err != nil {
			_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", p, err)
		}
	}
	return nil
}

// makeFolder makes a folder with its owner and mode, and the missing ones above
// it, which belong to root. One that is there stays as it is.
func makeFolder(f manifest.Folder) error {
	if info, err := os.Stat(f.Path); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("folder %s: there is something else of that name", f.Path)
		}
		return nil
	}
	if err := makeFolder(manifest.Folder{Path: path.Dir(f.Path), Mode: 0o755}); err != nil {
		return err
	}
	if err := unix.Mkdir(f.Path, 0o700); err != nil {
		return fmt.Errorf("folder %s: %w", f.Path, err)
	}
	if err := unix.Lchown(f.Path, int(f.UID), int(f.GID)); err != nil {
		return fmt.Errorf("folder %s: owner: %w", f.Path, err)
	}
	if err := unix.Chmod(f.Path, f.Mode); err != nil { // after chown, which clears setgid
		return fmt.Errorf("folder %s: mode: %w", f.Path, err)
	}
	return nil
}

// makeFolders makes folders in the root of the thread with this /proc folder.
func makeFolders(ctx context.Context, task string, folders []manifest.Folder) error {
	if said, err := inRoot(ctx, order{Task: task, Folders: folders}); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("make folders in the root: %w", context.Cause(ctx))
		}
		return fmt.Errorf("make folders in the root: %s (%w)", lastLines(said, 1), err)
	}
	return nil
}

// inRoot has an order carried out by another process, which may wait for the view
// when this one must not. It returns what that said.
func inRoot(ctx context.Context, o order) (string, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	var said bytes.Buffer
	c := exec.CommandContext(ctx, "/proc/self/exe")
	c.Args, c.Env, c.Dir = []string{foldersName}, []string{"GOMAXPROCS=1"}, "/"
	c.Stdin, c.Stderr = bytes.NewReader(b), &said
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = c.Run()
	return said.String(), err
}

// belowRun returns where below /run a path lies. Programs know that folder by
// two names.
func belowRun(p string) (string, bool) {
	return strings.CutPrefix(strings.TrimPrefix(p, "/var"), "/run/")
}

// makeRun makes the folder that becomes the service's /run, with what must be
// in it before the first unit starts. It is a plain folder and no tmpfs, so
// that pid files and sockets in it can be reached without the root.
func makeRun(dir string, folders []manifest.Folder) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("empty /run of the service: %w", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("/run of the service: %w", err)
	}
	own := []manifest.Folder{{Path: "/run/lock", Mode: 0o1777}, {Path: "/run/" + notifyFolder, Mode: 0o755}}
	for _, f := range append(own, folders...) {
		name, ok := belowRun(f.Path)
		if !ok {
			continue
		}
		// Nobody else writes here yet, and the names are clean: no link leads out.
		f.Path = filepath.Join(dir, name)
		if err := makeFolder(f); err != nil {
			return fmt.Errorf("/run of the service: %w", err)
		}
	}
	return os.Chmod(dir, 0o755)
}
