package service

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// markSize is the number of random bytes in a mark.
const markSize = 8

// A mark is the source name of a root's overlay mount. It is random and written
// to state.json before the mount is made, so that every process that lives in
// this root can be found, whoever started it.
func newMark(name string) string {
	var b [markSize]byte
	_, _ = rand.Read(b[:]) // it never fails
	return "srvfs-" + name + "-" + hex.EncodeToString(b[:])
}

// validMark reports whether a mark could be one of ours: it decides which
// processes are killed.
func validMark(mark string) bool {
	name, ok := strings.CutPrefix(mark, "srvfs-")
	i := strings.LastIndexByte(name, '-')
	if !ok || i < 0 || len(name)-i-1 != 2*markSize {
		return false
	}
	_, err := hex.DecodeString(name[i+1:])
	return err == nil && manifest.ValidService(name[:i])
}

// marked returns the processes that live in the mount namespace of the root
// with the mark, as the host numbers them.
func marked(mark string) ([]int, error) {
	if mark == "" {
		return nil, nil
	}
	spaces, err := mountSpaces()
	if err != nil {
		return nil, fmt.Errorf("look for processes of the service: %w", err)
	}
	for _, pids := range spaces {
		for _, pid := range pids {
			if task, _ := seesMark(pid, mark); task != "" {
				slices.Sort(pids)
				return pids, nil
			}
		}
	}
	return nil, nil
}

// mountSpaces returns the processes of each mount namespace but our own, in
// which no root is ever mounted.
func mountSpaces() (map[string][]int, error) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	spaces := map[string][]int{}
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		if space, err := os.Readlink("/proc/" + n.Name() + "/ns/mnt"); err == nil && space != own { // or it has ended
			spaces[space] = append(spaces[space], pid)
		}
	}
	return spaces, nil
}

// seesMark returns the /proc folder of a thread of the process that sees the
// mount with the mark, if there is one, and whether that mount is its root. The
// threads of a process may have different roots, and one that lives in a chroot
// does not see what lies outside.
func seesMark(pid int, mark string) (task string, asRoot bool) {
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*")
	if err != nil {
		return "", false
	}
	for _, t := range tasks {
		b, err := os.ReadFile(t + "/mountinfo")
		if err != nil {
			continue
		}
		for line := range bytes.Lines(b) {
			if !bytes.Contains(line, []byte(" - overlay "+mark+" ")) {
				continue
			}
			if f := bytes.Fields(line); len(f) > 4 && string(f[4]) == "/" {
				return t, true
			}
			task = t
		}
	}
	return task, false
}

// findInit returns process 1 of the sandbox whose root has the mark, and a
// /proc folder of which "root" is that root.
func findInit(mark string) (process, string, error) {
	pids, err := marked(mark)
	if err != nil {
		return process{}, "", err
	}
	for _, pid := range pids {
		if innerPID(pid) != 1 {
			continue
		}
		task, asRoot := seesMark(pid, mark)
		if !asRoot {
			break
		}
		p, err := identify(pid)
		return p, task, err
	}
	return process{}, "", fmt.Errorf("process 1 of the sandbox is not among %v", pids)
}

// killMarked ends the processes that are left in a root and waits until they
// are gone. Processes that somebody else sent into the root, from outside its
// pid namespace, are not ours to kill; the error names them.
func killMarked(ctx context.Context, mark string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := marked(mark)
		if err != nil || len(pids) == 0 {
			return err
		}
		var foreign []string
		for _, pid := range pids {
			if innerPID(pid) == 0 {
				name, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
				foreign = append(foreign, fmt.Sprintf("%d (%s)", pid, bytes.TrimSpace(name)))
				continue
			}
			if err := killOne(pid, mark); err != nil {
				return err
			}
		}
		if len(foreign) == len(pids) {
			return fmt.Errorf("processes that entered the root from outside: %s: end them first: %w", strings.Join(foreign, ", "), ErrRunning)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("processes of the service do not end: %v: %w", pids, context.Cause(ctx))
		}
	}
}

// killOne kills a process if it sees the mark. The number was read a moment
// ago and may be another's by now, so it is held first and looked at again.
func killOne(pid int, mark string) error {
	h, err := hold(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	defer h.close()
	still, err := marked(mark)
	if err != nil || !slices.Contains(still, pid) {
		return err
	}
	return h.signal(unix.SIGKILL)
}

// unmountBelow takes away every mount at or below a folder, the last made
// first. A root is never mounted on the host, but what somebody mounted there
// by hand must not be removed with the folder.
func unmountBelow(folder string) error {
	real, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		return fmt.Errorf("mounts below %s: %w", folder, err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}
