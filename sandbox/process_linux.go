package sandbox

import (
	"bytes"
	"cmp"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrEnded: the sandbox has ended, and everything in it with it.
var ErrEnded = errors.New("the sandbox has ended")

// A Command is a program to start inside a sandbox. It gets a session of its
// own, an empty standard input, default signal handling, and no descriptor
// that is not named here.
type Command struct {
	// Argv[0] is a path inside the root, or a bare name that is looked up in
	// the PATH of Env.
	Argv []string
	// Env is the whole environment, KEY=value.
	Env []string
	// Dir is the working directory; empty is "/". It is entered as the user.
	Dir      string
	UID, GID uint32
	// Groups are the supplementary groups; nil is none.
	Groups []uint32
	// Umask is the file mode creation mask, so usually 0o022.
	Umask uint32
	// Stdout and Stderr receive what the program writes; nil discards it. The
	// program gets a duplicate: the caller still closes its own.
	Stdout, Stderr *os.File
	// Files become the descriptors 3, 4, ...
	Files []*os.File
	// Sockets listen before the command is executed and become the descriptors 3,
	// 4, ..., as sd_listen_fds(3) expects them: LISTEN_FDS, LISTEN_FDNAMES and
	// LISTEN_PID are added to Env. A command has Files or Sockets, not both.
	Sockets []Socket
	// Traced makes the process wait, before it becomes the program, until
	// Process.Release is called: the time for a tracer to attach to
	// Process.Pid. Its main thread, the one to attach to, then installs Seccomp
	// and executes the program.
	Traced bool
	// Seccomp is a filter for this process and its descendants. It is installed
	// without no_new_privs, so setuid programs work, and before privileges are
	// dropped: the helper still has to set groups, group and user, to change into
	// Dir, to execute, and to report if it can't, so a filter that denies those
	// fails here. A tracer sees them, as calls of the helper.
	Seccomp []unix.SockFilter
	// Listen installs Seccomp with a listener, which Process.Listener returns. Until
	// somebody answers there, calls for which the filter asks it wait.
	Listen bool
}

// An ExitStatus is how a process ended: by exit with Code, or if Signal is not
// 0 by that signal; then Code is 128 and its number, as shells have it.
type ExitStatus struct {
	Code   int
	Signal syscall.Signal
}

// Success reports whether the process exited with code 0.
func (s ExitStatus) Success() bool { return s == ExitStatus{} }

// String returns "exit status 3" or "signal 9 (killed)".
func (s ExitStatus) String() string {
	if s.Signal != 0 {
		return fmt.Sprintf("signal %d (%v)", int(s.Signal), s.Signal)
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

func exitStatus(w syscall.WaitStatus) ExitStatus {
	if w.Signaled() {
		return ExitStatus{Code: 128 + int(w.Signal()), Signal: w.Signal()}
	}
	return ExitStatus{Code: w.ExitStatus()}
}

// A Process is one process in a sandbox, started by [Sandbox.Run] or found by
// [Sandbox.Adopt].
type Process struct {
	s           *Sandbox
	id          uint64
	name        string
	pid, inside int
	channel     *net.UnixConn // to the stage; nil if adopted

	listening chan struct{} // closed when listener is set
	listener  int           // its number in the stage

	execed  chan struct{} // closed when execErr is set: it is the program now, or never will be
	execErr error
	ended   chan struct{} // closed when status is set
	status  ExitStatus
	fault   error // why process 1 could not start it at all
}

// Pid returns the number of the process as the caller's pid namespace has it.
func (p *Process) Pid() int { return p.pid }

// Inside returns its number inside, as it stands in its PID file.
func (p *Process) Inside() int { return p.inside }

// Run starts a program. It returns when the program has been executed, or, if
// it is to be traced, when the process waits for Release. The error says why
// it could not be: it wraps the errno, so fs.ErrNotExist and fs.ErrPermission
// match. When ctx ends before, the process is killed; afterwards ctx has no
// hold on it.
func (s *Sandbox) Run(ctx context.Context, c Command) (*Process, error) {
	p, err := s.run(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("start %s in the sandbox: %w", c.name(), err)
	}
	return p, nil
}

func (c *Command) name() string {
	if len(c.Argv) == 0 {
		return "a command"
	}
	return c.Argv[0]
}

func (c *Command) validate() error {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return errors.New("no program is named")
	}
	for _, v := range append(append([]string{c.Dir}, c.Argv...), c.Env...) {
		if strings.Contains(v, "\x00") {
			return fmt.Errorf("%q holds a zero byte", v)
		}
	}
	if len(c.Files) > maxFiles {
		return fmt.Errorf("%d files, at most %d can be passed", len(c.Files), maxFiles)
	}
	if len(c.Sockets) > maxFiles || len(c.Sockets) > 0 && len(c.Files) > 0 {
		return fmt.Errorf("%d sockets and %d files, at most %d of one kind can be passed", len(c.Sockets), len(c.Files), maxFiles)
	}
	if len(c.Seccomp) > unix.BPF_MAXINSNS {
		return fmt.Errorf("a seccomp filter of %d instructions, at most %d are allowed", len(c.Seccomp), unix.BPF_MAXINSNS)
	}
	return nil
}

func (s *Sandbox) run(ctx context.Context, c Command) (*Process, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0) // here: the root may have none
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	ours, theirs, err := packetPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	order, err := c.order()
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	defer func() { _ = order.Close() }()
	fds := []int{int(null.Fd()), fdOf(c.Stdout, null), fdOf(c.Stderr, null), int(theirs.Fd()), int(order.Fd())}
	for _, f := range c.Files {
		fds = append(fds, fdOf(f, null))
	}
	if err := askCredentials(ours); err != nil {
		_ = ours.Close()
		return nil, err
	}
	p := &Process{s: s, name: c.name(), channel: ours, listening: make(chan struct{}), execed: make(chan struct{}), ended: make(chan struct{})}
	s.register(p)
	if err := send(s.control, request{Verb: verbStart, ID: p.id}, fds...); err != nil {
		s.forget(p)
		_ = ours.Close()
		return nil, s.because(err)
	}
	_ = theirs.Close() // so that the end of the channel means the end of the stage
	ready := make(chan struct{})
	s.work.Go(func() { p.watchStage(ready) })
	if err := p.started(ctx, ready, c.Traced); err != nil {
		_ = p.Signal(unix.SIGKILL)
		_ = ours.Close()
		return nil, err
	}
	return p, nil
}

func (p *Process) started(ctx context.Context, ready <-chan struct{}, traced bool) error {
	select {
	case <-ready:
	case <-p.execed:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !traced {
		select {
		case <-p.execed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-p.execed:
		return p.execErr
	default:
		return nil
	}
}

// watchStage follows the stage until it has become the program, when the kernel
// closes the channel, or failed to.
func (p *Process) watchStage(ready chan<- struct{}) {
	defer close(p.execed)
	defer func() { _ = p.channel.Close() }()
	for hello := false; ; {
		var r report
		_, pid, err := receive(p.channel, &r)
		switch {
		case err != nil && hello:
			if !errors.Is(err, io.EOF) {
				p.execErr = err
			}
			return
		case err != nil:
			// It never came to life; process 1 has said why, or is about to.
			select {
			case <-p.ended:
				if p.execErr = p.fault; p.fault == nil {
					p.execErr = fmt.Errorf("the helper ended at once: %v", p.status)
				}
			case <-p.s.done:
				p.execErr = ErrEnded
			}
			return
		case r.Verb == verbReady && !hello:
			hello, p.pid, p.inside = true, pid, r.Pid
			close(ready)
		case r.Verb == verbListening && hello && p.listener == 0 && r.Pid > 0:
			p.listener = r.Pid
			close(p.listening)
		case r.Fault != nil:
			p.execErr = r.Fault
			return
		}
	}
}

// Release lets a traced process go on. It returns at once; [Process.Executed]
// tells whether the program could be executed.
func (p *Process) Release() error {
	if p.channel == nil {
		return fmt.Errorf("release %s: it was not started here", p.name)
	}
	if err := send(p.channel, request{Verb: verbRelease}); err != nil {
		return fmt.Errorf("release %s: %w", p.name, err)
	}
	return nil
}

// Listener returns the listener of a released process's filter; see [Command.Listen].
// The error is that of Executed if it never came so far.
func (p *Process) Listener(ctx context.Context) (*os.File, error) {
	select {
	case <-p.listening:
	case <-p.execed:
		return nil, cmp.Or(p.execErr, fmt.Errorf("filter of %s: no listener", p.name))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	pidfd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return nil, fmt.Errorf("filter of %s: pidfd_open: %w", p.name, err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	fd, err := unix.PidfdGetfd(pidfd, p.listener, 0)
	if err != nil {
		return nil, fmt.Errorf("filter of %s: pidfd_getfd: %w", p.name, err)
	}
	return os.NewFile(uintptr(fd), "seccomp listener"), nil
}

// Executed waits until a released process has become its program, and returns
// the reason if it can't.
func (p *Process) Executed(ctx context.Context) error {
	select {
	case <-p.execed:
		return p.execErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Ended returns a channel that is closed when the process has ended, by itself
// or with the sandbox.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for the process to end, as often as it is called. The error is
// ErrEnded if the sandbox ended first, why the program was never executed, or
// that of ctx.
func (p *Process) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-p.ended:
	case <-ctx.Done():
		return ExitStatus{}, fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
	}
	if p.status.Code == statusUnknown {
		return ExitStatus{Code: 128 + int(unix.SIGKILL), Signal: unix.SIGKILL}, fmt.Errorf("wait for %s: %w", p.name, ErrEnded)
	}
	<-p.execed
	return p.status, p.execErr
}

// statusUnknown marks a process of which process 1 took the exit status to its
// grave. No process can exit with it.
const statusUnknown = -1

// Signal sends a signal to this one process. The error is os.ErrProcessDone if
// it is known to have ended; process 1 sends it, so that it can't hit another
// process that has got the same number.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.ended:
		return os.ErrProcessDone
	default:
	}
	if err := send(p.s.control, request{Verb: verbSignal, ID: p.id, Signal: int(sig)}); err != nil {
		return fmt.Errorf("signal %s: %w", p.name, p.s.because(err))
	}
	return nil
}

// An order is a Command on its way to the stage. Extra is the number of Files.
type order struct {
	Argv, Env []string
	Dir       string
	UID, GID  uint32
	Groups    []uint32
	Umask     uint32
	Extra     int
	Sockets   []Socket
	Traced    bool
	Seccomp   []unix.SockFilter
	Listen    bool
}

// order returns the command in a form that the stage can read: a file in
// memory, because the arguments may be longer than a message.
func (c *Command) order() (*os.File, error) {
	o := order{c.Argv, c.Env, c.Dir, c.UID, c.GID, c.Groups, c.Umask, len(c.Files), c.Sockets, c.Traced, c.Seccomp, c.Listen}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(o); err != nil {
		return nil, err
	}
	if b.Len() > maxOrder {
		return nil, fmt.Errorf("arguments and environment of %d bytes: %w", b.Len(), unix.E2BIG)
	}
	fd, err := unix.MemfdCreate("sandbox command", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "sandbox command")
	if _, err := f.WriteAt(b.Bytes(), 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func fdOf(f, otherwise *os.File) int {
	if f == nil {
		f = otherwise
	}
	return int(f.Fd())
}
