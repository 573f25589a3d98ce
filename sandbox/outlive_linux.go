package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Outlive lets the sandbox go on when the caller ends, however that does. Process 1 then
// waits at door, the path of a socket that is made now, for another caller: see [Attach].
// The folder that door lies in must be closed to everybody else: who reaches the
// socket commands the sandbox. When the sandbox ends the socket stays behind.
func (s *Sandbox) Outlive(door string) error {
	if err := s.outlive(door); err != nil {
		return fmt.Errorf("let a sandbox outlive its caller: %w", err)
	}
	return nil
}

func (s *Sandbox) outlive(door string) error {
	if err := os.Remove(door); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	folder, err := os.Open(filepath.Dir(door))
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }()
	l, err := net.ListenUnix("unixpacket", doorIn(folder, door))
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }()
	if err := os.Chmod(door, 0o600); err != nil {
		return err
	}
	f, err := l.File()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := send(s.control, request{Verb: verbOutlive}, int(f.Fd())); err != nil {
		return s.because(err)
	}
	return nil
}

// doorIn names a socket by a descriptor of its folder: the name of a socket is limited to
// 107 bytes, a path is not.
func doorIn(folder *os.File, door string) *net.UnixAddr {
	return &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), filepath.Base(door)), Net: "unixpacket"}
}

// Attach takes over a sandbox that has outlived its caller. The processes in it go on;
// those that the caller before has started are found by [Sandbox.Adopt]. While that
// caller lives Attach waits, until ctx ends. The error wraps [ErrEnded] if there is no
// sandbox any more.
func Attach(ctx context.Context, door string) (*Sandbox, error) {
	s, err := attach(ctx, door)
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrEnded, err)
		}
		return nil, fmt.Errorf("attach to the sandbox at %s: %w", door, err)
	}
	return s, nil
}

func attach(ctx context.Context, door string) (*Sandbox, error) {
	folder, err := os.Open(filepath.Dir(door))
	if err != nil {
		return nil, err
	}
	defer func() { _ = folder.Close() }()
	control, err := net.DialUnix("unixpacket", nil, doorIn(folder, door))
	if err != nil {
		return nil, err
	}
	s := &Sandbox{
		control: control, done: make(chan struct{}), ready: make(chan error, 1),
		processes: make(map[uint64]*Process), answers: make(map[uint64]chan report),
	}
	stop := context.AfterFunc(ctx, func() { _ = control.Close() })
	err = s.meet()
	if !stop() && err != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = s.openNet()
	}
	if err != nil {
		_ = control.Close()
		if s.foreign != nil {
			_ = s.foreign.Close()
		}
		return nil, err
	}
	go s.attend()
	return s, nil
}

// meet learns who process 1 is. It is asked twice: what answers after it was taken hold of
// by its number is what is held.
func (s *Sandbox) meet() error {
	if err := askCredentials(s.control); err != nil {
		return err
	}
	ask := func() (int, error) {
		if err := send(s.control, request{Verb: verbAttach}); err != nil {
			return 0, err
		}
		for {
			var r report
			fds, pid, err := receive(s.control, &r)
			closeAll(fds)
			if err != nil || r.Verb == verbAttach {
				return pid, err
			}
		}
	}
	pid, err := ask()
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	s.init = &exec.Cmd{Process: p}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	s.foreign = os.NewFile(uintptr(fd), "process 1")
	if again, err := ask(); err != nil || again != pid {
		return errors.Join(err, ErrEnded)
	}
	return nil
}

// Detach leaves a sandbox that was attached to, to the next one that does so. What is in
// it goes on.
func (s *Sandbox) Detach() {
	s.mu.Lock()
	s.left = true
	s.mu.Unlock()
	_ = s.control.Close()
}

// awaitFirst returns when process 1 has ended. One that another caller started is not
// our child.
func (s *Sandbox) awaitFirst() {
	if s.foreign == nil {
		_ = s.init.Wait() // it was killed, or has ended: its state says how
		return
	}
	p := []unix.PollFd{{Fd: int32(s.foreign.Fd()), Events: unix.POLLIN}}
	_ = uninterrupted(func() error { _, err := unix.Poll(p, -1); return err })
	_ = s.foreign.Close()
	_ = s.init.Process.Release()
}

func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openDoor keeps the socket at which another caller will come, in process 1.
func (p *pid1) openDoor(fds []int) {
	if len(fds) != 1 {
		return
	}
	f := os.NewFile(uintptr(fds[0]), "door")
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		return
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		p.door = u
	}
}

// nextCaller waits for another caller when one is gone. It returns false if none can come.
func (p *pid1) nextCaller() bool {
	if p.door == nil {
		return false
	}
	_ = p.channel().Close()
	p.mu.Lock()
	clear(p.children) // the numbers were those of the caller that is gone
	p.mu.Unlock()
	c, err := p.door.AcceptUnix()
	if err != nil {
		return false
	}
	p.wire.Lock()
	p.control = c
	p.wire.Unlock()
	return true
}

// channel returns the connection to the caller of the moment.
func (p *pid1) channel() *net.UnixConn {
	p.wire.Lock()
	defer p.wire.Unlock()
	return p.control
}
