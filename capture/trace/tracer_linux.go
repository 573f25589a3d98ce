package trace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"srvfs/sandbox"
)

// A Tracer traces commands in one sandbox, and keeps what they touched in one
// list. Its methods may be called from several goroutines.
type Tracer struct {
	sb     *sandbox.Sandbox
	record *record
	reads  *reads // nil: not traced

	mu      sync.Mutex
	threads []*thread
}

// New returns a Tracer for commands in sb. It does nothing until Start.
func New(sb *sandbox.Sandbox) *Tracer { return &Tracer{sb: sb, record: newRecord()} }

// NewWithReads is New for a trace that also learns which parts of some files
// are read: those for which wanted, which is asked once for each canonical path,
// returns true. Each read of any file then costs a stop.
func NewWithReads(sb *sandbox.Sandbox, wanted func(path string) bool) *Tracer {
	t := New(sb)
	t.reads = &reads{wanted: wanted, seen: map[string]map[int64]struct{}{}}
	return t
}

// Anticipate says that Start will be called soon; it saves the time in which the
// sandbox makes itself ready for it.
func (t *Tracer) Anticipate() { t.sb.Anticipate() }

// Start starts a command under trace: it and all its descendants, as long as
// they live. It returns when the program has been executed; the error says why
// it could not be. The fields Traced and Seccomp of cmd are the tracer's.
//
// Wait on the process returned ends with this process; daemons that it leaves
// behind stay traced. Several commands may be traced, one after the other or
// together. When ctx ends, even long after Start has returned, the
// command and its descendants are killed.
func (t *Tracer) Start(ctx context.Context, cmd sandbox.Command) (*sandbox.Process, error) {
	if err := supported(); err != nil {
		return nil, fmt.Errorf("trace a command: %w", err)
	}
	cmd.Traced, cmd.Listen = true, listens()
	cmd.Seccomp = filter(t.reads != nil, cmd.Listen)
	p, err := t.sb.Run(ctx, cmd)
	if err != nil {
		return nil, err
	}
	th := newThread(t.record, t.reads)
	if err := th.start(ctx, p.Pid()); err != nil {
		// It waits for a tracer that can't come.
		if killErr := p.Signal(syscall.SIGKILL); killErr != nil && !errors.Is(killErr, sandbox.ErrEnded) {
			err = errors.Join(err, killErr)
		}
		return nil, fmt.Errorf("trace %s: %w", cmd.Argv[0], err)
	}
	t.mu.Lock()
	t.threads = append(t.threads, th)
	t.mu.Unlock()
	err = p.Release()
	if err == nil && cmd.Listen {
		var l *os.File
		if l, err = p.Listener(ctx); err == nil {
			err = th.listen(l)
		}
	}
	if err == nil {
		err = p.Executed(ctx)
	}
	if err != nil {
		if left := th.end(); left != nil {
			err = errors.Join(err, left)
		}
		return nil, fmt.Errorf("trace %s: %w", cmd.Argv[0], err)
	}
	return p, nil
}

// Accesses returns what has been touched so far, in the order of first use.
func (t *Tracer) Accesses() []Access { return t.record.accesses() }

// Reads returns which parts of the wanted files have been read so far, each part
// once, in the order of its first use.
func (t *Tracer) Reads() []Read {
	if t.reads == nil {
		return nil
	}
	return t.reads.all()
}

// Gaps returns what the trace did not see so far.
func (t *Tracer) Gaps() []Gap { return t.record.allGaps() }

// Finish waits until no traced process is left, and returns all accesses in
// the order of first use. Stop the sandbox, or the service, before. When ctx
// ends first, what is left is killed, and the error is that of ctx. Another
// error means that the trace broke off; the accesses are those until then.
// Finish may be called again, and after more calls of Start.
func (t *Tracer) Finish(ctx context.Context) ([]Access, error) {
	t.mu.Lock()
	threads := append([]*thread(nil), t.threads...)
	t.mu.Unlock()
	var failed error
	for _, th := range threads {
		select {
		case <-th.done:
		case <-ctx.Done():
			failed = ctx.Err()
			if err := th.end(); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
		}
		if th.err != nil && failed == nil {
			failed = th.err
		}
	}
	if failed != nil {
		failed = fmt.Errorf("finish the trace: %w", failed)
	}
	return t.record.accesses(), failed
}

// killGrace is how long a killed process may take to go. One that waits in the
// kernel for a file system that does not answer takes as long as that.
const killGrace = 5 * time.Second

// end kills what a thread traces and waits for it.
func (th *thread) end() error {
	th.kill()
	grace := time.NewTimer(killGrace)
	defer grace.Stop()
	select {
	case <-th.done:
		return nil
	case <-grace.C:
		return fmt.Errorf("processes that were killed %v ago are still there: a file system that they use does not answer", killGrace)
	}
}
