package sandbox

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// controlFD is where process 1 finds its control socket.
const controlFD = 3

// A pid1 is the state of process 1.
type pid1 struct {
	wire    sync.Mutex
	control *net.UnixConn     // guarded by wire
	door    *net.UnixListener // where another caller comes when one is gone; nil: none does
	stages  *launcher

	// mu orders starting and reaping: a child that ends at once is entered into
	// children before it is looked up there.
	mu       sync.Mutex
	children map[int]uint64 // pid -> number that the caller gave it
	spare    *spare         // nil: there is none
	coming   chan struct{}  // closed when a spare that was asked for is there; nil: none was
}

// runInit is the life of process 1. It returns an exit code when the control
// socket has closed or is of no use.
func runInit() int {
	_ = unix.CloseRange(controlFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	control, err := packetConn(controlFD)
	if err != nil {
		return complain("control socket: %v", err)
	}
	p := &pid1{control: control, children: make(map[int]uint64)}
	if len(os.Args) > 1 {
		p.anticipate() // it comes to life while the root is built
	}
	var r request
	fds, _, err := receive(control, &r)
	if errors.Is(err, io.EOF) {
		return 0 // prepared, and not needed
	}
	if err != nil || r.Verb != verbBuild || len(fds) < len(r.Layout.Brought) {
		return complain("no layout (%v)", err)
	}
	n := len(r.Layout.Brought)
	r.Layout.trees = fds[:n]
	if log := fds[n:]; len(log) > 0 {
		_ = unix.Dup3(log[0], 2, 0)
		closeAll(log)
	}
	heedSignals()

	// Signals that processes inside may send to their process 1 must not end
	// it. Handled, not ignored: that would be inherited by what it starts.
	noise := make(chan os.Signal, 1)
	signal.Notify(noise, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGPWR)
	go func() {
		for range noise { // swallowed
		}
	}()
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, unix.SIGCHLD)

	built := make(chan *fault, 1)
	go func() {
		var f *fault
		p.stages, f = r.Layout.build(p.awaitSpare)
		built <- f
	}()
	requests := make(chan incoming)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var in incoming
			var err error
			in.fds, _, err = receive(p.channel(), &in.request)
			switch {
			case err != nil:
				if !p.nextCaller() {
					return
				}
			case in.Verb == verbOutlive: // here, before the end of the channel is seen
				p.openDoor(in.fds)
			default:
				requests <- in
			}
		}
	}()
	select {
	case f := <-built:
		p.report(report{Verb: verbBuild, Fault: f})
		if f != nil {
			<-gone // the caller hangs up when it has read it
			return 1
		}
	case <-gone: // it gave up, or died
		return 1
	}
	for {
		select {
		case in := <-requests:
			p.serve(in)
		case <-deaths:
			p.reap()
		case <-gone:
			return 0
		}
	}
}

type incoming struct {
	request
	fds []int
}

func complain(format string, args ...any) int {
	_, _ = fmt.Fprintf(os.Stderr, "srvfs sandbox: "+format+"\n", args...)
	return 1
}

// report fails only when the caller is gone, which is noticed elsewhere.
func (p *pid1) report(r report) { _ = send(p.channel(), r) }

func (p *pid1) serve(in incoming) {
	defer closeAll(in.fds)
	switch in.Verb {
	case verbStart:
		if err := p.start(in.ID, in.fds); err != nil {
			f := failure("start the helper", "", err, "")
			if f.Errno == unix.ENOENT {
				f.Note = "its loader or libraries are not on the file system of /; a program built with CGO_ENABLED=0 needs none"
			}
			p.report(report{Verb: verbExit, ID: in.ID, Status: 127 << 8, Fault: f})
		}
	case verbAnticipate:
		p.anticipate()
	case verbAdopt:
		p.report(report{Verb: verbAdopt, ID: in.ID, Fault: p.adopt(in.ID, in.Pid)})
	case verbSignal:
		p.signal(in)
	case verbAttach:
		p.report(report{Verb: verbAttach})
	}
}

// start starts a command, or the stage that becomes it. Its standard descriptors
// and those that it needs come from the caller, in order.
func (p *pid1) start(id uint64, fds []int) error {
	if len(fds) < callerFiles {
		return fmt.Errorf("%d descriptors instead of %d", len(fds), callerFiles)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if pid, hello, ok := p.stages.execute(fds); ok {
		p.children[pid] = id
		return hello()
	}
	if s := p.takeSpare(fds); s != nil {
		p.children[s.pid] = id
		err := s.become(append(slices.Clone(fds), p.stages.root))
		if err == nil {
			return nil
		}
		delete(p.children, s.pid) // it died, or is about to
		_ = unix.Kill(s.pid, unix.SIGKILL)
	}
	pid, err := p.stages.launch(fds)
	if err != nil {
		return err
	}
	p.children[pid] = id
	return nil
}

// takeSpare returns the spare if there is one, or is about to be, that can serve
// this command. It is called with mu held, and lets go of it to wait.
func (p *pid1) takeSpare(fds []int) *spare {
	if p.coming == nil || len(fds) != callerFiles {
		return nil
	}
	coming := p.coming
	p.mu.Unlock()
	<-coming
	p.mu.Lock()
	s := p.spare
	p.spare, p.coming = nil, nil
	return s
}

// awaitSpare waits until a spare that was asked for is there, or will never be.
func (p *pid1) awaitSpare() {
	p.mu.Lock()
	coming := p.coming
	p.mu.Unlock()
	if coming != nil {
		<-coming
	}
}

// anticipate has a stage ready. Without one a command starts all the same.
func (p *pid1) anticipate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.coming != nil {
		return
	}
	coming := make(chan struct{})
	p.coming = coming
	fork := syscall.ForkExec
	exe := "/proc/self/exe" // as the caller sees it: there is no root yet
	if p.stages != nil {
		fork, exe = func(path string, argv []string, attr *syscall.ProcAttr) (int, error) {
			return p.stages.fork(path, argv, 0, attr)
		}, "self/exe"
	}
	go func() {
		defer close(coming)
		s, err := startSpare(exe, fork)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.spare = s
		p.mu.Unlock()
	}()
}

// adopt makes the end of an orphan known to the caller.
func (p *pid1) adopt(id uint64, pid int) *fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	parent, err := parentOf(".", pid)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return failure("find", "", unix.ESRCH, "")
		}
		return failure("find", "", err, "")
	}
	if parent != 1 {
		return failure("find", "", nil, fmt.Sprintf("it is a child of process %d, not an orphan", parent))
	}
	if _, taken := p.children[pid]; taken {
		return failure("find", "", nil, "it is watched already")
	}
	p.children[pid] = id
	return nil
}

func (p *pid1) signal(in incoming) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case in.Pid == -1 || in.Pid > 1:
		_ = unix.Kill(in.Pid, unix.Signal(in.Signal))
	case in.Pid == 0:
		for pid, id := range p.children {
			if id == in.ID {
				_ = unix.Kill(pid, unix.Signal(in.Signal)) // not reaped, so still itself
			}
		}
	}
}

// reap takes all children that have ended: commands, and orphans, most of which
// nobody asked about.
func (p *pid1) reap() {
	for {
		var status syscall.WaitStatus
		p.mu.Lock()
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		id, known := p.children[pid]
		delete(p.children, pid)
		if p.spare != nil && p.spare.pid == pid {
			_ = unix.Close(p.spare.sock)
			p.spare, p.coming = nil, nil
		}
		p.mu.Unlock()
		switch {
		case err == syscall.EINTR:
		case err != nil || pid <= 0:
			return
		case known:
			p.report(report{Verb: verbExit, ID: id, Status: uint32(status)})
		}
	}
}
