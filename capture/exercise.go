package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"srvfs/manifest"
	"srvfs/probe"
	"srvfs/sandbox"
)

// alive returns a channel that is closed when a main process of the service, or
// all of it, has ended.
func (in *instance) alive(ctx context.Context) <-chan struct{} {
	gone := make(chan struct{})
	for _, d := range in.daemons {
		if d.process == nil || d.unit.Kind == manifest.Oneshot {
			continue
		}
		go func() {
			select {
			case <-d.process.Ended():
				select {
				case gone <- struct{}{}: // one of several closes it
				case <-ctx.Done():
				}
			case <-ctx.Done():
			}
		}()
	}
	closed := make(chan struct{})
	go func() {
		select {
		case <-gone:
			close(closed)
		case <-in.stage.sb.Done():
			close(closed)
		case <-ctx.Done():
		}
	}()
	return closed
}

// exercise waits until the probes answer and asks each once more, or without
// probes until the service is quiet.
func (in *instance) exercise(ctx context.Context) error {
	wait := in.timeout
	if wait == 0 {
		wait = longestStart
		for _, u := range in.units {
			if d := time.Duration(u.StartMax); d > 0 && d < wait {
				wait = d
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	alive := in.alive(ctx)
	if len(in.probes) == 0 {
		return in.settle(ctx, alive)
	}
	env := probe.Env{Dial: in.stage.sb.Dial, Exec: in.exec}
	if err := probe.Await(ctx, env, in.probes, alive); err != nil {
		select {
		case <-alive:
			return &startError{unit: in.units[len(in.units)-1].Name, err: fmt.Errorf("its process ended: %w", err)}
		default:
			return &probeError{err}
		}
	}
	for _, p := range in.probes {
		if err := p.Check(ctx, env); err != nil {
			return &probeError{fmt.Errorf("asked a second time: %w", err)}
		}
	}
	// What answers may be a child that the main process has left behind. Its end
	// may be noticed only now.
	if in.ended() {
		return &startError{unit: in.units[len(in.units)-1].Name, err: errors.New("its process ended, though something it left behind answers")}
	}
	return nil
}

// ended reports whether a main process of the service has ended.
func (in *instance) ended() bool {
	for _, d := range in.daemons {
		if d.process == nil || d.unit.Kind == manifest.Oneshot {
			continue
		}
		select {
		case <-d.process.Ended():
			return true
		default:
		}
	}
	return false
}

// settle waits until nothing new was touched for the time quiet.
func (in *instance) settle(ctx context.Context, alive <-chan struct{}) error {
	last, since := -1, time.Now()
	tick := time.NewTicker(quiet / 10)
	defer tick.Stop()
	for time.Since(since) < quiet {
		if n := len(in.tracer.Accesses()); n != last {
			last, since = n, time.Now()
		}
		select {
		case <-tick.C:
		case <-alive:
			return &startError{unit: in.units[len(in.units)-1].Name, err: errors.New("its process ended")}
		case <-ctx.Done():
			return &startError{unit: in.units[len(in.units)-1].Name, err: fmt.Errorf("it goes on opening files; give it a probe: %w", ctx.Err())}
		}
	}
	return nil
}

// exec runs the command of a probe, under trace as well: the standby will run
// it in the service's root.
func (in *instance) exec(ctx context.Context, argv []string) ([]byte, int, error) {
	out, err := os.CreateTemp("", "srvfs-probe-")
	if err != nil {
		return nil, 0, err
	}
	defer func() { _, _ = out.Close(), os.Remove(out.Name()) }()
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C.UTF-8"}
	p, err := in.tracer.Start(ctx, sandbox.Command{Argv: argv, Env: env, Umask: 0o022, Stdout: out, Stderr: out})
	if err != nil {
		return nil, 0, err
	}
	status, err := p.Wait(ctx)
	if err != nil {
		return nil, 0, err
	}
	b, err := io.ReadAll(io.NewSectionReader(out, 0, 1<<20))
	return b, status.Code, err
}
