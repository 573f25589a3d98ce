package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"srvfs/manifest"
	"srvfs/sandbox"
)

// ErrEnded: there is no such service any more that goes on without who started it.
var ErrEnded = errors.New("the service has ended")

// Resume takes over a service that was started with [Options.Outlive] and whose starter
// is gone: it watches its units again and can stop it. Of the options, those count that
// say what it is made of. The error wraps [ErrEnded] if there is nothing to take over;
// what is left of the service is then gone too.
//
// A unit whose main process has ended meanwhile ends the instance at once, as it would
// have with somebody there to see it.
func Resume(ctx context.Context, o Options) (*Instance, error) {
	i, err := newInstance(o)
	if err != nil {
		return nil, err
	}
	if i.dir, err = lockDir(o.Dir, false); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("service %s: %w: it was removed", o.Name, ErrEnded)
	} else if err != nil {
		return nil, err
	}
	if err := i.resume(ctx); err != nil {
		i.leave()
		i.dir.unlock()
		return nil, fmt.Errorf("service %s: %w", o.Name, err)
	}
	return i, nil
}

func (i *Instance) resume(ctx context.Context) (err error) {
	if i.rec, err = i.dir.load(); err != nil {
		return err
	}
	r := i.rec
	if !r.goesOn() || r.Root != i.o.Snapshot.Root.Digest.String() {
		return errors.Join(ErrEnded, killMarked(ctx, r.Mark))
	}
	_, i.abort = context.WithCancelCause(context.Background())
	if i.log, err = openLog(i.dir); err != nil {
		return err
	}
	i.box, err = sandbox.Attach(ctx, i.dir.in(doorName))
	if errors.Is(err, sandbox.ErrEnded) {
		return errors.Join(ErrEnded, err, killMarked(ctx, r.Mark))
	} else if err != nil {
		return err
	}
	i.watchBox()
	if _, i.task, err = findInit(r.Mark); err != nil {
		return err
	}
	if r.Owner, err = identify(os.Getpid()); err != nil {
		return err
	}
	for n, spec := range i.o.Snapshot.Units {
		u := &unit{Unit: spec, ready: make(chan struct{}, 1)}
		i.mu.Lock()
		i.units = append(i.units, u)
		i.mu.Unlock()
		if err := i.resumeUnit(ctx, u, n); err != nil {
			return err
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.remember()
}

// resumeUnit finds the unit's main process again.
func (i *Instance) resumeUnit(ctx context.Context, u *unit, n int) error {
	if u.Kind == manifest.Notify {
		socket, err := resumeNotify(i.dir.in(runName), n, func(n notice) { i.noticed(u, n) })
		if err != nil {
			return err
		}
		i.mu.Lock()
		u.notifier = socket
		i.mu.Unlock()
	}
	i.mu.Lock()
	was := process{}
	if n < len(i.rec.Mains) {
		was = i.rec.Mains[n]
	}
	i.mu.Unlock()
	if was.PID == 0 {
		return nil // it had none that was known
	}
	if was.alive() {
		if m, err := i.findProcess(ctx, innerPID(was.PID)); err == nil && m.pid == was.PID {
			i.setMain(u, m)
			return nil
		} else if ctx.Err() != nil {
			return err
		}
	}
	// A daemon may have replaced itself while nobody looked.
	if u.Kind == manifest.Forking && u.PIDFile != "" {
		if m, err := i.pidFileProcess(ctx, u, nil); err == nil {
			i.setMain(u, m)
			return nil
		}
	}
	i.end(&commandError{unit: u.Name, err: fmt.Errorf("the main process (%d) ended while nobody watched it", was.PID)})
	return nil
}

// leave lets go of a service that could not be taken over: it goes on, or has ended.
func (i *Instance) leave() {
	i.mu.Lock()
	select {
	case <-i.stop:
	default:
		close(i.stop)
	}
	i.mu.Unlock()
	for _, u := range i.units {
		if u.notifier != nil {
			u.notifier.close()
		}
	}
	if i.box != nil {
		i.box.Detach()
	}
	if i.log != nil {
		_ = i.log.Close()
	}
}

// resumeNotify makes the socket anew that the one before has left.
func resumeNotify(run string, index int, handle func(notice)) (*notifier, error) {
	if err := os.Remove(filepath.Join(run, notifyFolder, "notify."+strconv.Itoa(index))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return listenNotify(run, index, handle)
}

// outlive lets the service go on without this process, if it is to.
func (i *Instance) outlive() error {
	if !i.o.Outlive {
		return nil
	}
	// Recorded first: so it is found, whenever this process is killed. As long as it is not
	// recorded that it is ready it is ended by who finds it.
	i.mu.Lock()
	i.rec.Outlives = true
	err := i.dir.save(i.rec)
	i.mu.Unlock()
	if err != nil {
		return err
	}
	return i.box.Outlive(i.dir.in(doorName))
}

// goesOn reports whether the record is of a service that goes on without its starter.
func (r *record) goesOn() bool {
	return r.Outlives && !r.Ready.IsZero() && r.Stopped.IsZero() && r.Init.alive()
}

// remember records the units as they stand. It needs mu.
func (i *Instance) remember() error {
	i.settled = true
	i.rec.Units, i.rec.Mains = i.unitStates(), make([]process, len(i.units))
	for n, u := range i.units {
		if u.main != nil {
			if p, err := identify(u.main.pid); err == nil {
				i.rec.Mains[n] = p
			}
		}
	}
	return i.dir.save(i.rec)
}
