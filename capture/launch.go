package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"srvfs/capture/trace"
	"srvfs/manifest"
	"srvfs/probe"
	"srvfs/sandbox"
)

// An instance is a disposable run of a service on a stage, under trace.
type instance struct {
	units   []*manifest.Unit
	probes  []*probe.Probe
	timeout time.Duration
	stage   *stage
	tracer  *trace.Tracer
	log     *os.File
	// lacks, if not nil, reports whether one of the accesses, which are all that
	// came since it was last called, was of something that should have been there.
	lacks func([]trace.Access) bool
	// answered, if not nil, is called when the probes were answered and before
	// the service is stopped, with what has come of the run so far.
	answered func(outcome)

	// reads, if not nil, says of which files it is traced what is read.
	reads func(path string) bool

	daemons []daemon
	left    int // commands that have not been started
}

// An outcome is what came of a run.
type outcome struct {
	accesses []trace.Access
	started  int           // how many of them came before the probes were answered; 0 if they were not
	took     time.Duration // until then, from the first command on
	reads    []trace.Read  // until then
	gaps     []trace.Gap
	err      error
}

// A daemon is the main process of a unit that has started.
type daemon struct {
	unit    *manifest.Unit
	process *sandbox.Process
}

const (
	longestStart = 90 * time.Second // systemd's own default
	longestStop  = 10 * time.Second // it is thrown away: nothing is lost by killing it
	// quiet is how long a service without probes must open nothing to count as
	// started.
	quiet = 300 * time.Millisecond
)

// run starts the units in their order, waits until the probes answer, asks each
// once more, and stops the units in the opposite order. What was touched is
// returned also when it fails.
func (in *instance) run(ctx context.Context) (out outcome) {
	in.tracer = trace.New(in.stage.sb)
	if in.reads != nil {
		in.tracer = trace.NewWithReads(in.stage.sb, in.reads)
	}
	for _, u := range in.units {
		in.left += len(u.Pre) + len(u.Start) + len(u.Post)
	}
	served, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	if in.lacks != nil {
		watch.Go(func() { in.watch(served, cancel) })
	}
	err := in.serve(served, &out)
	if errors.Is(context.Cause(served), errLacks) {
		err = errLacks
	}
	cancel(nil)
	watch.Wait()
	if size, full := in.stage.full(); full && err != nil {
		err = fmt.Errorf("%w; what it writes goes to memory, of which it may take %s, and that is full (a first write to a large file copies it whole): --scratch gives it more", err, megabytes(size))
	}
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), longestStop)
	defer stop()
	if stopped := in.stage.close(end); err == nil {
		err = stopped
	}
	accesses, traced := in.tracer.Finish(end)
	if err == nil && traced != nil {
		err = traced
	}
	out.accesses, out.gaps, out.err = accesses, in.tracer.Gaps(), err
	return out
}

// errLacks: the run was given up, since something that should be there is not.
var errLacks = errors.New("something that it looked for is missing")

// watch gives a run up once it lacks something and has come to rest without
// being finished: it would only wait for the end of its time.
func (in *instance) watch(ctx context.Context, giveUp context.CancelCauseFunc) {
	tick := time.NewTicker(quiet / 10)
	defer tick.Stop()
	lacks, seen, since := false, 0, time.Now()
	for !lacks || time.Since(since) < quiet {
		if all := in.tracer.Accesses(); len(all) > seen {
			lacks = in.lacks(all[seen:]) || lacks
			seen, since = len(all), time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	giveUp(errLacks)
}

func (in *instance) serve(ctx context.Context, out *outcome) error {
	begin := time.Now()
	for _, u := range in.units {
		if err := in.start(ctx, u); err != nil {
			return &startError{unit: u.Name, err: err}
		}
	}
	if err := in.exercise(ctx); err != nil {
		return err
	}
	out.took = time.Since(begin)
	out.accesses = in.tracer.Accesses()
	out.started, out.reads = len(out.accesses), in.tracer.Reads()
	if in.answered != nil {
		in.answered(*out)
	}
	for _, d := range slices.Backward(in.daemons) {
		in.stop(ctx, d)
	}
	return nil
}

// A startError: the service did not start.
type startError struct {
	unit string
	err  error
}

func (e *startError) Error() string { return fmt.Sprintf("unit %s did not start: %v", e.unit, e.err) }
func (e *startError) Unwrap() error { return e.err }

// A probeError: it started, and does not do its job.
type probeError struct{ err error }

func (e *probeError) Error() string { return e.err.Error() }
func (e *probeError) Unwrap() error { return e.err }

func (in *instance) limit(u *manifest.Unit) time.Duration {
	d := time.Duration(u.StartMax)
	if d <= 0 || d > longestStart {
		d = longestStart
	}
	if in.timeout > 0 {
		d = in.timeout
	}
	return d
}

// start runs one unit up to the point where it counts as started.
func (in *instance) start(ctx context.Context, u *manifest.Unit) error {
	ctx, cancel := context.WithTimeoutCause(ctx, in.limit(u), fmt.Errorf("no end within %v", in.limit(u)))
	defer cancel()
	main := 0
	for _, c := range u.Pre {
		if err := in.toEnd(ctx, u, c, main); err != nil {
			return err
		}
	}
	var d daemon
	d.unit = u
	for _, c := range u.Start {
		p, err := in.launch(ctx, u, c, main, u.Sockets)
		if err != nil {
			return err
		}
		switch u.Kind {
		case manifest.Simple:
			d.process = p
		case manifest.Notify:
			d.process = p
			if err := in.awaitReady(ctx, p); err != nil {
				return fmt.Errorf("%s: %w", c.Argv[0], err)
			}
		default:
			if err := ended(ctx, c, p); err != nil {
				return err
			}
		}
	}
	if u.Kind == manifest.Forking {
		d.process = in.adopt(ctx, u)
	}
	if d.process != nil {
		main = d.process.Inside()
	}
	in.daemons = append(in.daemons, d)
	for _, c := range u.Post {
		if err := in.toEnd(ctx, u, c, main); err != nil {
			return err
		}
	}
	return nil
}

// launch starts one command under trace. The trace belongs to the instance,
// not to ctx, which ends with the start.
func (in *instance) launch(ctx context.Context, u *manifest.Unit, c manifest.Command, main int, sockets []manifest.Socket) (*sandbox.Process, error) {
	cmd := sandbox.Command{Argv: slices.Clone(c.Argv), Env: slices.Clone(u.Env), Dir: u.Dir, Umask: u.Umask, Stdout: in.log, Stderr: in.log}
	if !c.Privileged {
		cmd.UID, cmd.GID, cmd.Groups = u.User.UID, u.User.GID, u.User.Groups
	}
	for _, s := range sockets {
		cmd.Sockets = append(cmd.Sockets, sandbox.Socket(s))
	}
	if u.Kind == manifest.Notify {
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notifySocket)
	}
	if main != 0 {
		cmd.Env = append(cmd.Env, "MAINPID="+strconv.Itoa(main))
	}
	pid := strings.NewReplacer("${MAINPID}", strconv.Itoa(main), "$MAINPID", strconv.Itoa(main))
	for i, a := range cmd.Argv {
		cmd.Argv[i] = pid.Replace(a)
	}
	started := make(chan struct{})
	defer close(started)
	whole, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() { // until it has started, ctx counts
		select {
		case <-ctx.Done():
			cancel()
		case <-started:
		}
		<-in.stage.sb.Done()
		cancel()
	}()
	p, err := in.tracer.Start(whole, cmd)
	if in.left--; in.left > 0 {
		in.tracer.Anticipate() // this one runs meanwhile
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return p, err
}

// toEnd runs a command that must succeed, unless it may fail.
func (in *instance) toEnd(ctx context.Context, u *manifest.Unit, c manifest.Command, main int) error {
	p, err := in.launch(ctx, u, c, main, nil)
	if err == nil {
		err = ended(ctx, c, p)
	}
	if c.MayFail && ctx.Err() == nil {
		return nil
	}
	return err
}

func ended(ctx context.Context, c manifest.Command, p *sandbox.Process) error {
	status, err := p.Wait(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w", strings.Join(c.Argv, " "), err)
	}
	if !status.Success() && !c.MayFail {
		return fmt.Errorf("%s: %v", strings.Join(c.Argv, " "), status)
	}
	return nil
}

// awaitReady waits until the unit says READY=1.
func (in *instance) awaitReady(ctx context.Context, p *sandbox.Process) error {
	ready := make(chan error, 1)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := in.stage.notify.Read(b)
			if err != nil {
				ready <- err
				return
			}
			if slices.Contains(strings.Split(string(b[:n]), "\n"), "READY=1") {
				ready <- nil
				return
			}
		}
	}()
	var err error
	select {
	case err := <-ready:
		return err
	case <-p.Ended():
		status, _ := p.Wait(ctx)
		err = fmt.Errorf("it ended (%v) before it said READY=1 to NOTIFY_SOCKET", status)
	case <-ctx.Done():
		err = fmt.Errorf("it did not say READY=1 to NOTIFY_SOCKET: %w", context.Cause(ctx))
	}
	_ = in.stage.notify.SetReadDeadline(time.Now())
	<-ready
	_ = in.stage.notify.SetReadDeadline(time.Time{})
	return err
}

// adopt finds the main process of a forking unit by its PID file, if it names
// one. The file may come a moment after the start command has returned; a
// service without it is still served by its probes.
func (in *instance) adopt(ctx context.Context, u *manifest.Unit) *sandbox.Process {
	if u.PIDFile == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond) // the folder may not exist yet, so there is nothing to watch
	defer tick.Stop()
	for {
		if b, err := in.stage.readFile(u.PIDFile); err == nil {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(b))); err == nil {
				if p, err := in.stage.sb.Adopt(ctx, pid); err == nil {
					return p
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// stop runs the unit's stop commands, or sends its signal, so that what the
// service touches while it stops is seen. That it stops well does not matter.
func (in *instance) stop(ctx context.Context, d daemon) {
	limit := time.Duration(d.unit.StopMax)
	if limit <= 0 || limit > longestStop {
		limit = longestStop
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	main := 0
	if d.process != nil {
		main = d.process.Inside()
	}
	for _, c := range d.unit.Stop {
		c.MayFail = true
		_ = in.toEnd(ctx, d.unit, c, main)
	}
	if d.process == nil {
		return
	}
	if len(d.unit.Stop) == 0 {
		sig := syscall.Signal(d.unit.Signal)
		if sig == 0 {
			sig = syscall.SIGTERM
		}
		if err := d.process.Signal(sig); err != nil {
			return
		}
	}
	_, _ = d.process.Wait(ctx)
}

// logTail returns the last lines of what the service wrote from offset on.
func logTail(log *os.File, from int64) string {
	const most = 4 << 10
	info, err := log.Stat()
	if err != nil || info.Size() <= from {
		return ""
	}
	start := max(from, info.Size()-most)
	b := make([]byte, info.Size()-start)
	n, _ := log.ReadAt(b, start)
	lines := strings.Split(strings.TrimSpace(string(b[:n])), "\n")
	if len(lines) > 12 {
		lines = lines[len(lines)-12:]
	}
	return "\n" + filepath.Base(log.Name()) + ": " + strings.Join(lines, "\n"+filepath.Base(log.Name())+": ")
}
