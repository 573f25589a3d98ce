package sandbox

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A Helper is a process that waits to become process 1 of a sandbox. To start
// a program costs tens of milliseconds when it is as large as the caller's is:
// whoever knows beforehand that a sandbox will be needed can have that done
// meanwhile.
//
// It has the mounts of the moment when it was prepared. One that the sandbox's
// root is made from and that was mounted since has to be brought to it.
type Helper struct {
	newNet bool
	mu     sync.Mutex
	s      *Sandbox
	mounts []brought
}

// A brought mount is one that process 1 gets to see at the caller's path.
type brought struct {
	path string
	tree *os.File
}

// Prepare starts a Helper for a sandbox of which NewNet and Anticipate are known
// (see [Config]). The caller closes it.
func Prepare(newNet, anticipate bool) (*Helper, error) {
	s, err := spawn(newNet, anticipate)
	if err != nil {
		return nil, err
	}
	return &Helper{newNet: newNet, s: s}, nil
}

// Bring lets the sandbox see the mount at path, an absolute path, and all mounts
// below it, which were made after the Helper was. It may be called on nil.
func (h *Helper) Bring(path string) error {
	if h == nil {
		return nil
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("bring mount %s to a sandbox: %w", path, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mounts = append(h.mounts, brought{path, os.NewFile(uintptr(fd), path)})
	return nil
}

// take returns the process if it is of use, and what was brought to it, which is
// then the caller's to close; it may be called on nil.
func (h *Helper) take(newNet bool) (*Sandbox, []brought) {
	if h == nil || newNet != h.newNet {
		return nil, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.s
	if s == nil {
		return nil, nil
	}
	select {
	case <-s.done: // something has ended it
		return nil, nil
	default:
	}
	mounts := h.mounts
	h.s, h.mounts = nil, nil
	return s, mounts
}

// Close ends the process if no sandbox has been made of it, and waits for that. It
// lets go of what was brought: until then those file systems can't end.
func (h *Helper) Close() {
	h.mu.Lock()
	s, mounts := h.s, h.mounts
	h.s, h.mounts = nil, nil
	h.mu.Unlock()
	for _, m := range mounts {
		_ = m.tree.Close()
	}
	if s != nil {
		s.kill() // harmless if it has ended
		<-s.done
	}
}
