package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"srvfs/manifest"
	"srvfs/probe"
	"srvfs/sandbox"
)

// An Instance is one running service. Its methods may be called from several
// goroutines.
type Instance struct {
	o      Options
	dir    *dir
	rec    *record
	log    *logFile
	slog   *slog.Logger
	box    *sandbox.Sandbox
	helper *os.File // what the sandbox's own processes say
	units  []*unit  // those that were begun, in order
	probes []*probe.Probe
	fresh  bool   // the upper was made by this start
	task   string // the /proc folder of a thread in the root

	abort   context.CancelCauseFunc // of the start, when a unit dies in it
	stop    chan struct{}           // closed when Stop begins: ends are expected now
	done    chan struct{}           // see Done
	watched sync.WaitGroup          // the goroutines that watch units

	stopping sync.Mutex // held by the one that stops
	stopped  bool       // under stopping
	mu       sync.Mutex // guards all below, rec, units and their main processes
	settled  bool       // all units have started, and are recorded
	ended    bool       // done is closed
	err      error
}

// Done returns a channel that is closed when the service has ended, by Stop or
// by itself: when the main process of a unit has ended, or the sandbox died.
// What is left of the service goes on until Stop is called.
func (i *Instance) Done() <-chan struct{} { return i.done }

// Err says why the service ended by itself; nil while it runs and when it was
// stopped.
func (i *Instance) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.err
}

// end closes done, for the reason err; the first reason counts.
func (i *Instance) end(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended {
		return
	}
	i.ended, i.err = true, err
	if err != nil {
		i.slog.Error("the service ended by itself", "service", i.o.Name, "reason", err)
		i.abort(err) // before done is closed: who sees that asks for the cause
	}
	close(i.done)
}

// Pids returns the service's processes as the host numbers them, in ascending
// order; none after it has been stopped.
func (i *Instance) Pids() ([]int, error) { return i.box.Pids() }

// Check asks each probe of the snapshot once, and returns the reasons of those
// that do not answer.
func (i *Instance) Check(ctx context.Context) error {
	errs := make([]error, len(i.probes))
	var all sync.WaitGroup
	for n, p := range i.probes {
		all.Go(func() {
			if err := p.Check(ctx, i.probeEnv()); err != nil {
				errs[n] = fmt.Errorf("probe %s: %w", p, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// probeEnv lets probes run commands inside. Network probes need nothing: the
// network is the host's.
func (i *Instance) probeEnv() probe.Env {
	return probe.Env{Exec: func(ctx context.Context, argv []string) ([]byte, int, error) {
		c := sandbox.Command{Argv: argv, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Umask: 0o022}
		return i.box.Output(ctx, c)
	}}
}

// A State tells of a running service, or of one that ran.
type State struct {
	Name     string          `json:"name"`
	Running  bool            `json:"running"` // it was started and neither stopped nor ended by itself
	Reason   string          `json:"reason,omitempty"`
	Since    time.Time       `json:"since"`            // when the start began
	Ready    time.Time       `json:"ready,omitzero"`   // when the probes answered
	Stopped  time.Time       `json:"stopped,omitzero"` // when it was stopped
	Snapshot manifest.Digest `json:"-"`                // root digest of the snapshot that the upper stands over
	Sequence uint64          `json:"sequence"`         // and its number
	Units    []UnitState     `json:"units,omitempty"`
	LogFile  string          `json:"log_file"`
	Upper    string          `json:"upper"`      // the folder of what the service changed
	UpperUse int64           `json:"upper_size"` // bytes that it takes on disk
	Placed   Placed          `json:"placed"`     // what of it was put there before the first start
	Layered  bool            `json:"layered"`    // the kernel serves content from the store itself
	Outlives bool            `json:"outlives"`   // it goes on without the process that started it
}

// A UnitState tells of one unit.
type UnitState struct {
	Name   string `json:"name"`
	PID    int    `json:"pid,omitempty"`    // of the main process, as the host numbers it; 0: it has none or it is not known
	Status string `json:"status,omitempty"` // what the unit said of itself, by sd_notify
}

// State tells how the instance stands. It walks the upper to tell its size.
func (i *Instance) State() State {
	i.mu.Lock()
	s := i.dir.state(i.rec)
	s.Units = i.unitStates()
	s.Running = !i.ended
	if i.err != nil {
		s.Reason = i.err.Error()
	}
	i.mu.Unlock()
	s.UpperUse = usage(s.Upper)
	return s
}

// unitStates needs mu.
func (i *Instance) unitStates() []UnitState {
	var all []UnitState
	for _, u := range i.units {
		s := UnitState{Name: u.Name, Status: u.status}
		if u.main != nil {
			s.PID = u.main.pid
		}
		all = append(all, s)
	}
	return all
}

func (d *dir) state(r *record) State {
	s := State{
		Name: r.Name, Since: r.Since, Ready: r.Ready, Stopped: r.Stopped, Sequence: r.Sequence, Units: slices.Clone(r.Units),
		LogFile: d.in(logName), Upper: d.in(upperName), Layered: r.Layered, Placed: r.Placed, Outlives: r.Outlives,
	}
	s.Snapshot, _ = manifest.ParseDigest(r.Root)
	return s
}

// Inspect tells of the service in dir from what is recorded there, without the
// process that started it. The error is fs.ErrNotExist when no service was
// started there.
func Inspect(path string) (State, error) {
	d := &dir{path: path}
	if _, err := os.Lstat(d.in(stateName)); err != nil {
		return State{}, fmt.Errorf("service directory: %w", err)
	}
	r, err := d.load()
	if err != nil {
		return State{}, err
	}
	s := d.state(r)
	s.Running = r.goesOn() || r.Stopped.IsZero() && r.Owner.alive() && (r.Ready.IsZero() || r.Init.alive()) // or it is starting
	if !s.Running && r.Stopped.IsZero() {
		s.Reason = "the process that watched it was killed"
	}
	s.UpperUse = usage(s.Upper)
	return s, nil
}

// discard is the logger of who gave none.
func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
