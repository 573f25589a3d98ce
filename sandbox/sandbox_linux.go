package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Sandbox is a set of namespaces with a root and a process 1. Its methods may
// be called from several goroutines.
type Sandbox struct {
	init    *exec.Cmd
	foreign *os.File // a pidfd of process 1 if another caller started it; else nil
	control *net.UnixConn
	netns   *os.File // its network namespace
	newNet  bool
	ready   chan error // gets one answer: the root stands, or why not
	done    chan struct{}
	work    sync.WaitGroup

	mu        sync.Mutex
	last      uint64
	processes map[uint64]*Process
	answers   map[uint64]chan report // to verbAdopt
	ended     bool
	left      bool // it is somebody else's now
}

// Start builds a sandbox. It returns when the root stands and is entered; the
// error names the step inside the helper that failed, and wraps its errno.
// When ctx ends before, the helper is killed. Afterwards the sandbox lives
// until Stop is called or the caller ends.
func Start(ctx context.Context, c Config) (*Sandbox, error) {
	s, err := start(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("start a sandbox on %s: %w", c.Root, err)
	}
	return s, nil
}

func start(ctx context.Context, c Config) (*Sandbox, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	s, mounts := c.Helper.take(c.NewNet)
	if s == nil {
		var err error
		if s, err = spawn(c.NewNet, c.Anticipate); err != nil {
			return nil, err
		}
	}
	err := s.build(ctx, c, mounts)
	for _, m := range mounts { // whoever unmounts them must not wait for us
		_ = m.tree.Close()
	}
	if err != nil {
		s.kill()
		return nil, err
	}
	return s, nil
}

// spawn starts process 1, which then waits for its layout, and if it is asked to
// anticipates a command meanwhile.
func spawn(newNet, anticipate bool) (*Sandbox, error) {
	if name := os.Args[0]; name == initName || name == stageName {
		return nil, errors.New("this is a helper that ran on into the program: main, or TestMain, must call sandbox.Init first")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	ours, theirs, err := packetPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	s := &Sandbox{
		control: ours, newNet: newNet, done: make(chan struct{}), ready: make(chan error, 1),
		processes: make(map[uint64]*Process), answers: make(map[uint64]chan report),
	}
	s.init = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{initName}, Env: helperEnv(), Dir: "/",
		Stdin: null, Stdout: null, Stderr: null, ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Cloneflags: cloneFlags(newNet)},
	}
	if anticipate {
		s.init.Args = append(s.init.Args, spareArg)
	}
	if err := s.init.Start(); err != nil {
		_ = ours.Close()
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("new namespaces: %w; this needs root", err)
		}
		return nil, fmt.Errorf("new namespaces: %w", err)
	}
	go s.attend()
	return s, nil
}

// build has process 1 build the root, and waits for it.
func (s *Sandbox) build(ctx context.Context, c Config, mounts []brought) (err error) {
	l := layout{Root: c.Root, Hostname: c.Hostname, Mounts: c.Mounts, NewNet: c.NewNet, Addresses: c.Addresses}
	var fds []int
	for _, m := range mounts {
		l.Brought = append(l.Brought, m.path)
		fds = append(fds, int(m.tree.Fd()))
	}
	if c.Log != nil {
		fds = append(fds, int(c.Log.Fd()))
	}
	if err := send(s.control, request{Verb: verbBuild, Layout: l}, fds...); err != nil {
		return err
	}
	select {
	case err = <-s.ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	return s.openNet()
}

func cloneFlags(newNet bool) uintptr {
	flags := uintptr(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC)
	if newNet {
		flags |= unix.CLONE_NEWNET
	}
	return flags
}

// attend reads what process 1 reports, then waits for its end. The kernel lets
// process 1 end only after all other processes of its namespace have.
func (s *Sandbox) attend() {
	for {
		var r report
		fds, _, err := receive(s.control, &r)
		closeAll(fds)
		if err != nil {
			break
		}
		switch r.Verb {
		case verbBuild:
			if r.Fault != nil {
				s.ready <- r.Fault
			} else {
				s.ready <- nil
			}
		case verbAdopt:
			s.mu.Lock()
			answer := s.answers[r.ID]
			s.mu.Unlock()
			if answer != nil {
				answer <- r
			}
		case verbExit:
			s.exited(r)
		}
	}
	s.mu.Lock()
	left := s.left
	s.mu.Unlock()
	if left {
		_ = s.foreign.Close()
	} else {
		_ = s.init.Process.Kill()
		s.awaitFirst()
	}
	select {
	case s.ready <- fmt.Errorf("the helper ended before the root stood (%v); does main call sandbox.Init first?", s.init.ProcessState):
	default: // Start has its answer
	}
	s.finish()
}

// exited settles a process, once.
func (s *Sandbox) exited(r report) {
	s.mu.Lock()
	p := s.processes[r.ID]
	delete(s.processes, r.ID)
	s.mu.Unlock()
	if p == nil {
		return
	}
	p.status = exitStatus(syscall.WaitStatus(r.Status))
	if r.Fault != nil {
		p.fault = r.Fault
	}
	close(p.ended)
}

func (s *Sandbox) finish() {
	s.mu.Lock()
	left := s.processes
	s.processes, s.ended = nil, true
	s.mu.Unlock()
	for _, p := range left {
		p.status = ExitStatus{Code: statusUnknown}
		close(p.ended)
	}
	close(s.done)
	s.work.Wait()
	_ = s.control.Close()
}

// register gives p its number.
func (s *Sandbox) register(p *Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	p.id = s.last
	if s.ended {
		p.status = ExitStatus{Code: statusUnknown}
		close(p.ended)
		return
	}
	s.processes[p.id] = p
}

func (s *Sandbox) forget(p *Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.processes, p.id)
}

// because returns ErrEnded in place of an error that is only its consequence.
func (s *Sandbox) because(err error) error {
	select {
	case <-s.done:
		return ErrEnded
	default:
	}
	if errors.Is(err, unix.EPIPE) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
		return ErrEnded
	}
	return err
}

// Done returns a channel that is closed when the sandbox has ended: all its
// processes are gone.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// SignalAll sends a signal to every process inside but process 1.
func (s *Sandbox) SignalAll(sig syscall.Signal) error {
	return s.SignalInside(-1, sig)
}

// SignalInside sends a signal to the process with that number inside, as PID
// files have it. There is no error if there is none.
func (s *Sandbox) SignalInside(pid int, sig syscall.Signal) error {
	if pid != -1 && pid <= 1 {
		return fmt.Errorf("signal process %d of the sandbox: not a process of the service", pid)
	}
	if err := send(s.control, request{Verb: verbSignal, Pid: pid, Signal: int(sig)}); err != nil {
		return fmt.Errorf("signal process %d of the sandbox: %w", pid, s.because(err))
	}
	return nil
}

// Stop kills every process of the sandbox and waits until all are gone, and
// their mounts and namespaces with them. It may be called again. When ctx ends
// first, the error names what is left: a process that waits in the kernel for a
// file system that does not answer can't be killed before that answers or is
// aborted.
//
// To end a service gently, signal its process, wait, and then call Stop.
func (s *Sandbox) Stop(ctx context.Context) error {
	s.kill()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop the sandbox: %w; processes that can't be killed: %s", ctx.Err(), s.stuck())
	}
}

// kill ends process 1. The kernel kills the rest.
func (s *Sandbox) kill() {
	_ = s.init.Process.Kill()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.netns != nil {
		_ = s.netns.Close()
		s.netns = nil
	}
}
