package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/sandbox"
)

const kill = unix.SIGKILL

// A mainProcess is the process whose end is the end of its unit.
type mainProcess struct {
	pid, inside int // its numbers on the host and in the sandbox
	ended       <-chan struct{}
	exit        func() string // how it ended, when it has
	signal      func(syscall.Signal) error
}

// exitOf tells how a process ended that has ended.
func exitOf(p *sandbox.Process) string {
	status, err := p.Wait(context.Background())
	if errors.Is(err, sandbox.ErrEnded) {
		return "the sandbox ended"
	} else if err != nil {
		return err.Error()
	}
	return status.String()
}

// ofProcess makes a process of the sandbox the main process of a unit.
func ofProcess(p *sandbox.Process) *mainProcess {
	return &mainProcess{pid: p.Pid(), inside: p.Inside(), ended: p.Ended(), exit: func() string { return exitOf(p) }, signal: func(sig syscall.Signal) error {
		if err := p.Signal(sig); !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return nil
	}}
}

// findProcess finds a process by its number inside. If it is an orphan, the
// sandbox's process 1 will tell how it ended. It need not be one: a database's
// pid file names the server, which is a child of the script that guards it.
func (i *Instance) findProcess(ctx context.Context, inside int) (*mainProcess, error) {
	p, err := i.box.Adopt(ctx, inside)
	if err == nil {
		return ofProcess(p), nil
	}
	if inside <= 1 || ctx.Err() != nil {
		return nil, err
	}
	pids, e := i.box.Pids()
	if e != nil {
		return nil, e
	}
	for _, pid := range pids {
		if innerPID(pid) != inside {
			continue
		}
		h, e := hold(pid)
		if e != nil {
			return nil, err
		}
		if !h.alive() || innerPID(pid) != inside {
			h.close()
			return nil, err
		}
		return i.ofHandle(h, inside), nil
	}
	return nil, err
}

// ofHandle makes a process that is nobody's orphan the main process of a unit.
// How it ended, only its parent learns.
func (i *Instance) ofHandle(h *handle, inside int) *mainProcess {
	ended := make(chan struct{})
	i.watched.Go(func() {
		// Everything in a sandbox ends when it is stopped, so this ends too.
		defer h.close()
		if h.wait(context.Background()) == nil {
			close(ended)
		}
	})
	return &mainProcess{pid: h.PID, inside: inside, ended: ended, exit: func() string { return "it ended" }, signal: h.signal}
}

// setMain makes m the main process of the unit and watches it.
func (i *Instance) setMain(u *unit, m *mainProcess) {
	i.mu.Lock()
	u.main = m
	if i.settled { // it is not the first one: who comes after us must find it
		if err := i.remember(); err != nil {
			i.slog.Warn("the unit's new main process is not recorded", "unit", u.Name, "reason", err)
		}
	}
	i.mu.Unlock()
	i.watched.Go(func() {
		select {
		case <-m.ended:
			i.mainEnded(u, m)
		case <-i.stop:
		}
	})
}

// mainEnded ends the instance, unless the unit has another main process now.
func (i *Instance) mainEnded(u *unit, m *mainProcess) {
	select {
	case <-i.stop:
		return
	case <-i.box.Done():
		i.end(errors.New("the sandbox ended"))
		return
	default:
	}
	i.mu.Lock()
	current := u.main == m
	i.mu.Unlock()
	if !current {
		return
	}
	// A daemon that replaces itself writes its successor's number before it ends.
	if u.Kind == manifest.Forking && u.PIDFile != "" {
		if next, err := i.pidFileProcess(context.Background(), u, nil); err == nil && next.inside != m.inside {
			i.slog.Info("the unit has a new main process", "unit", u.Name, "pid", next.pid)
			i.setMain(u, next)
			return
		}
	}
	i.end(&commandError{unit: u.Name, argv: u.Start[0].Argv, exit: m.exit(), err: fmt.Errorf("the main process (%d) ended: %s", m.pid, m.exit())})
}
