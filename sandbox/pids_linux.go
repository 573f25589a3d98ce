package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Pids returns the processes inside, process 1 not counted, in ascending order
// and in the numbering of the caller's pid namespace. It sees a moment: one
// may have ended or started since.
func (s *Sandbox) Pids() ([]int, error) {
	select {
	case <-s.done:
		return nil, nil
	default:
	}
	init := s.init.Process.Pid
	space, err := pidSpace(init)
	if err != nil {
		return nil, fmt.Errorf("processes of the sandbox: %w", s.because(err))
	}
	folders, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("processes of the sandbox: %w", err)
	}
	inside := map[int]bool{init: true}
	parents := make(map[int]int)
	for _, f := range folders {
		pid, err := strconv.Atoi(f.Name())
		if err != nil {
			continue
		}
		parent, err := parentOf("/proc", pid)
		if err != nil {
			continue // it ended meanwhile
		}
		parents[pid] = parent
		if sp, err := pidSpace(pid); err == nil && sp == space {
			inside[pid] = true
		}
	}
	// A process may have made a pid namespace of its own: its descendants are
	// inside as well.
	for grown := true; grown; {
		grown = false
		for pid, parent := range parents {
			if inside[parent] && !inside[pid] {
				inside[pid], grown = true, true
			}
		}
	}
	delete(inside, init)
	pids := make([]int, 0, len(inside))
	for pid := range inside {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

// pidSpace identifies the pid namespace of a process.
func pidSpace(pid int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/pid", pid), &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// parentOf returns the number of a process's parent, from the procfs at dir.
func parentOf(dir string, pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("%s/%d/stat", dir, pid))
	if err != nil {
		return 0, err
	}
	// "7 (any name) S 1 ...": the name may hold spaces and parentheses.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0, fmt.Errorf("%s/%d/stat: unknown form %q", dir, pid, b)
	}
	return strconv.Atoi(string(fields[1]))
}

// outside returns the number that the caller has for process pid of the
// sandbox.
func (s *Sandbox) outside(inside int) (int, error) {
	pids, err := s.Pids()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			// One number for each namespace from the reader's inwards.
			numbers, ok := strings.CutPrefix(line, "NSpid:")
			if f := strings.Fields(numbers); ok && len(f) == 2 && f[1] == strconv.Itoa(inside) {
				return pid, nil
			}
		}
	}
	return 0, fmt.Errorf("process %d of the sandbox: %w", inside, os.ErrProcessDone)
}

// stuck describes the processes that are left, for people.
func (s *Sandbox) stuck() string {
	pids, err := s.Pids()
	if err != nil {
		return err.Error()
	}
	if len(pids) == 0 {
		return fmt.Sprintf("%d (process 1)", s.init.Process.Pid)
	}
	var names []string
	for _, pid := range pids {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		names = append(names, fmt.Sprintf("%d (%s)", pid, bytes.TrimSpace(name)))
	}
	return strings.Join(names, ", ")
}

// Adopt finds a process that another left behind, by its number inside, as a
// daemon writes it to its PID file, so that its end can be awaited. It must be
// an orphan: a child of process 1. The error is os.ErrProcessDone if there is
// no such process.
func (s *Sandbox) Adopt(ctx context.Context, inside int) (*Process, error) {
	p, err := s.adopt(ctx, inside)
	if err != nil {
		return nil, fmt.Errorf("adopt process %d of the sandbox: %w", inside, err)
	}
	return p, nil
}

func (s *Sandbox) adopt(ctx context.Context, inside int) (*Process, error) {
	if inside <= 1 {
		return nil, fmt.Errorf("not a process of the service: %w", os.ErrProcessDone)
	}
	p := &Process{s: s, name: fmt.Sprintf("process %d", inside), inside: inside, execed: make(chan struct{}), ended: make(chan struct{})}
	close(p.execed)
	s.register(p)
	answer := make(chan report, 1)
	s.mu.Lock()
	s.answers[p.id] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.answers, p.id)
		s.mu.Unlock()
	}()
	err := send(s.control, request{Verb: verbAdopt, ID: p.id, Pid: inside})
	if err == nil {
		select {
		case r := <-answer:
			if r.Fault == nil {
				p.pid, err = s.outside(inside)
				break
			}
			err = r.Fault
			if errors.Is(err, unix.ESRCH) {
				err = os.ErrProcessDone
			}
		case <-s.done:
			err = ErrEnded
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		s.forget(p)
		return nil, s.because(err)
	}
	return p, nil
}
