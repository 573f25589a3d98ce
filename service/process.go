package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// procStat reads what we need of /proc/PID/stat.
func procStat(pid int) (parent int, start uint64, state byte, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, 0, err
	}
	return parseStat(string(b))
}

// parseStat reads a line of /proc/PID/stat. The program's name in it is
// chosen by the program, and may hold blanks and parentheses.
func parseStat(s string) (parent int, start uint64, state byte, err error) {
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return 0, 0, 0, fmt.Errorf("process status %.200q: cut short", s)
	}
	if parent, err = strconv.Atoi(f[1]); err != nil {
		return 0, 0, 0, fmt.Errorf("process status: parent: %w", err)
	}
	if start, err = strconv.ParseUint(f[19], 10, 64); err != nil {
		return 0, 0, 0, fmt.Errorf("process status: start: %w", err)
	}
	return parent, start, f[0][0], nil
}

// identify returns the process that has the number now.
func identify(pid int) (process, error) {
	_, start, _, err := procStat(pid)
	return process{PID: pid, Start: start}, err
}

// alive reports whether the process is there and no zombie.
func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	_, start, state, err := procStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// innerPID returns the number that a process has in a sandbox that this
// process started, or 0.
func innerPID(pid int) int {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if f := strings.Fields(rest); len(f) > 1 {
				n, _ := strconv.Atoi(f[1])
				return n
			}
		}
	}
	return 0
}

// A handle holds a process: it names this process even when its number has
// been given to another.
type handle struct {
	process
	fd *os.File // a pidfd, in the runtime's poller
}

// hold opens a handle. The error is unix.ESRCH when there is no such process.
func hold(pid int) (*handle, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	p, err := identify(pid)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("process %d: %w", pid, unix.ESRCH), f.Close())
	}
	return &handle{process: p, fd: f}, nil
}

// wait returns when the process has ended: nil, or the context's cause.
func (h *handle) wait(ctx context.Context) error {
	c, err := h.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", h.PID, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = h.fd.Close() })
	defer stop()
	ended := false
	err = c.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, e := unix.Poll(p, 0)
		ended = e == nil && n > 0
		return ended || e != nil && e != unix.EINTR
	})
	switch {
	case ended:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil:
		err = errors.New("poll failed")
	}
	return fmt.Errorf("wait for process %d: %w", h.PID, err)
}

// signal sends sig; a process that has ended is no error.
func (h *handle) signal(sig syscall.Signal) error {
	c, err := h.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %d: %w", h.PID, err)
	}
	var sent error
	if err := c.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("signal process %d: %w", h.PID, err)
	}
	if sent != nil && !errors.Is(sent, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", h.PID, sent)
	}
	return nil
}

func (h *handle) close() { _ = h.fd.Close() }
