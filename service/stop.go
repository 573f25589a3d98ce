package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killMax is how long processes may take to vanish after SIGKILL. More than
// that takes only one that waits in the kernel for a view that is dead.
const killMax = 10 * time.Second

// Stop ends the service: the units in reverse order, each by its Stop commands
// and then its Signal to the main process, with SIGKILL after its StopMax; then
// whatever processes are left, and with the sandbox its root. When ctx ends
// first, the rest is killed at once. The upper and the log stay. Stop may be
// called more than once, and after the service has ended by itself; the error
// says what could not be undone, and what was not stopped but killed is no
// error.
func (i *Instance) Stop(ctx context.Context) error {
	i.stopping.Lock()
	defer i.stopping.Unlock()
	if i.stopped {
		return nil
	}
	if err := i.tearDown(ctx, true); err != nil {
		return fmt.Errorf("stop service %s: %w", i.o.Name, err)
	}
	i.stopped = true
	i.end(nil)
	i.mu.Lock()
	i.rec.Stopped, i.rec.Units, i.rec.Mains = time.Now(), nil, nil
	err := i.dir.save(i.rec)
	i.mu.Unlock()
	i.dir.unlock()
	return err
}

// tearDown takes away everything but the upper, the log, the record and the
// lock. It may be called again when it has failed.
func (i *Instance) tearDown(ctx context.Context, gently bool) error {
	i.mu.Lock()
	select {
	case <-i.stop:
	default:
		close(i.stop)
	}
	i.mu.Unlock()
	if i.box != nil {
		if gently {
			i.stopUnits(ctx)
		}
		for _, u := range i.units {
			i.mu.Lock()
			socket := u.notifier
			u.notifier = nil
			i.mu.Unlock()
			if socket != nil {
				socket.close()
			}
		}
		dead, cancel := context.WithTimeout(context.WithoutCancel(ctx), killMax)
		defer cancel()
		if err := i.box.Stop(dead); err != nil {
			return err
		}
	}
	if i.helper != nil {
		_ = i.helper.Close() // also when a sandbox that never stood still holds the other end
	}
	i.watched.Wait()
	if i.abort != nil {
		i.abort(nil) // nobody waits for the start any more
	}
	var errs []error
	for _, name := range []string{runName, workName, rootName, doorName} {
		if err := os.RemoveAll(i.dir.in(name)); err != nil {
			errs = append(errs, err)
		}
	}
	if i.log != nil {
		_ = i.log.Close()
	}
	return errors.Join(errs...)
}

// stopUnits stops the units gently, the last started first. What goes wrong is
// logged: the sandbox ends what is left.
func (i *Instance) stopUnits(ctx context.Context) {
	var grace time.Duration
	for _, u := range slices.Backward(i.units) {
		select {
		case <-i.box.Done():
			return
		default:
		}
		if !i.stopUnit(ctx, u) {
			grace = max(grace, u.stopMax())
		}
	}
	// A unit without a main process that is known has only what is left now.
	if grace > 0 && ctx.Err() == nil {
		i.endRest(ctx, grace)
	}
}

// stopUnit reports whether the unit had a main process, which then has ended.
func (i *Instance) stopUnit(ctx context.Context, u *unit) bool {
	i.mu.Lock()
	m := u.main
	i.mu.Unlock()
	bounded, cancel := context.WithTimeoutCause(ctx, u.stopMax(), fmt.Errorf("it did not stop within %v", u.stopMax()))
	defer cancel()
	if m != nil && hasEnded(m) {
		return true
	}
	for _, c := range u.Stop {
		if err := i.run(bounded, u, c, nil); err != nil {
			i.slog.Warn("a stop command failed", "unit", u.Name, "reason", err)
		}
	}
	if m == nil {
		return false
	}
	sig := syscall.Signal(u.Signal)
	if sig == 0 {
		sig = unix.SIGTERM
	}
	if err := m.signal(sig); err != nil {
		i.slog.Warn("a unit could not be asked to stop", "unit", u.Name, "reason", err)
	}
	select {
	case <-m.ended:
	case <-i.box.Done():
	case <-bounded.Done():
		i.slog.Warn("a unit is killed", "unit", u.Name, "reason", context.Cause(bounded))
		_ = m.signal(kill)
	}
	return true
}

func hasEnded(m *mainProcess) bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// endRest asks all that is left to end, and waits for it.
func (i *Instance) endRest(ctx context.Context, grace time.Duration) {
	if err := i.box.SignalAll(unix.SIGTERM); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if left, err := i.box.Pids(); err != nil || len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-i.box.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}
