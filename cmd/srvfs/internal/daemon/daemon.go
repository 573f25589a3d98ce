// Package daemon is the standby's daemon: it joins store, wire, views and
// services. One daemon holds a state folder; the command line talks to it
// through package control.
//
// What it does outside its state folder is to mount views. Each is recorded in
// the folder mounts before it is mounted, so that a daemon that was killed
// leaves a list of what the next one has to clean up. Services, and the roots
// that they run in, live in namespaces of their own, which vanish with the
// daemon however it ends; but for services that were started without FUSE, which the
// next daemon takes over.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/cmd/srvfs/internal/control"
	"srvfs/rpc"
	"srvfs/service"
	"srvfs/store"
)

// Options say how a daemon runs.
type Options struct {
	State    string        // its folder, absolute
	HostRoot string        // where identical local files are looked for; empty: nowhere
	Deadline time.Duration // of a fetch without progress; 0: store.DefaultDeadline
	// Reads says who serves the content of a service's root: ReadsAuto, ReadsKernel
	// or ReadsView; empty is ReadsAuto.
	Reads string
	// Stay keeps the daemon when it holds no view and no service. Otherwise it
	// ends soon after the last call.
	Stay    bool
	Metrics string // where monitoring is answered, [HOST]:PORT; empty: nowhere
	Log     *slog.Logger
	Ready   func() // called once, when it answers calls
}

// Who serves the content of a service's root.
const (
	ReadsAuto   = "auto"   // the kernel if it can, else the view
	ReadsKernel = "kernel" // the kernel, by data-only overlay layers, or nobody
	ReadsView   = "view"   // the view, as before Linux 6.5
)

// linger is how long a daemon that holds nothing waits for another call.
const linger = 500 * time.Millisecond

// firstCall is how long it waits for the call that it was started for.
const firstCall = 10 * time.Second

// ErrRunning: another daemon holds the state folder.
var ErrRunning = errors.New("another daemon holds it")

type daemon struct {
	Options
	identity *rpc.Identity
	sources  *rpc.Sources
	store    *store.Store

	mu        sync.Mutex
	clients   map[rpc.Fingerprint]*ways
	archives  map[control.Archive]*archived
	retired   []*ways             // to addresses that a source has no more
	views     map[string]*view    // by mountpoint
	services  map[string]*running // by name
	follows   map[string]*follow  // by followRecord.name
	serving   *serving            // other standbys; nil if it does not
	locks     map[string]chan struct{}
	copies    map[string]*store.Copies // by folder
	transfers map[*transfer]bool

	calls   atomic.Int64
	changed chan struct{} // something ended: look whether the daemon is idle
	work    sync.WaitGroup
	ctx     context.Context // of background work; ends before the store is closed
}

// Run serves the state folder until ctx ends, or until nothing is left to hold.
// At its end it stops all services and unmounts all views.
func Run(ctx context.Context, o Options) (err error) {
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	lock, err := acquire(o.State)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := Clean(ctx, o.State, o.Log); err != nil {
		o.Log.Warn("left by an earlier daemon", "error", err)
	}
	d := &daemon{Options: o, clients: map[rpc.Fingerprint]*ways{}, views: map[string]*view{}, services: map[string]*running{}, follows: map[string]*follow{},
		locks: map[string]chan struct{}{}, copies: map[string]*store.Copies{}, transfers: map[*transfer]bool{}, changed: make(chan struct{}, 1)}
	if d.identity, d.sources, err = OpenSources(o.State); err != nil {
		return err
	}
	d.store, err = store.Open(store.Options{Dir: filepath.Join(o.State, "store"), HostRoot: o.HostRoot, Deadline: o.Deadline, Log: o.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.store.Close()) }()
	l, err := control.Listen(o.State)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(control.SocketPath(o.State)) }()

	ctx, end := context.WithCancel(ctx)
	defer end()
	if err := d.serveMetrics(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	var stopWork context.CancelFunc
	d.ctx, stopWork = context.WithCancel(context.WithoutCancel(ctx))
	if err := d.resume(); err != nil { // before anybody asks for it
		o.Log.Warn("what was followed", "error", err)
	}
	if err := d.resumeServing(); err != nil {
		o.Log.Warn("other standbys are not served", "error", err)
	}
	if err := d.resumeServices(ctx); err != nil {
		o.Log.Warn("services that went on without a daemon", "error", err)
	}
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, l, d.operations()) }()
	if o.Ready != nil {
		o.Ready()
	}
	o.Log.Info("serving", "state", o.State)
	d.work.Go(func() { service.CanLayer() }) // the first run need not wait for the trial
	if o.Stay {
		if err := d.connect(); err != nil {
			o.Log.Warn("connect to the sources", "error", err)
		}
	}
	d.untilIdle(ctx)
	end()
	err = <-served
	err = errors.Join(err, d.endAll(), d.closeClients())
	stopWork()
	d.work.Wait()
	err = errors.Join(err, d.closeArchives())
	o.Log.Info("ended")
	return err
}

// untilIdle returns when ctx ends or, unless the daemon is to stay, when it has
// held nothing for a while.
func (d *daemon) untilIdle(ctx context.Context) {
	if d.Stay {
		<-ctx.Done()
		return
	}
	timer := time.NewTimer(firstCall)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.changed:
			timer.Reset(linger)
		case <-timer.C:
			if d.idle() {
				return
			}
			// A call, view or service that ends reports through changed.
		}
	}
}

func (d *daemon) idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls.Load() == 0 && len(d.views) == 0 && len(d.services) == 0 && len(d.follows) == 0 && d.serving == nil
}

// wake makes untilIdle look again.
func (d *daemon) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// lock makes the caller the only one to change the thing called key.
func (d *daemon) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		d.mu.Lock()
		held, busy := d.locks[key]
		if !busy {
			mine := make(chan struct{})
			d.locks[key] = mine
			d.mu.Unlock()
			return func() {
				d.mu.Lock()
				delete(d.locks, key)
				d.mu.Unlock()
				close(mine)
			}, nil
		}
		d.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// endAll stops the services and unmounts the views, all at the same time.
func (d *daemon) endAll() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), 45*time.Second)
	defer cancel()
	d.mu.Lock()
	var names, mountpoints []string
	for name := range d.services {
		names = append(names, name)
	}
	for mountpoint, v := range d.views {
		if v.service == "" {
			mountpoints = append(mountpoints, mountpoint)
		}
	}
	d.mu.Unlock()
	errs := make(chan error)
	for _, name := range names {
		go func() { errs <- d.stop(ctx, name, quiet{}) }()
	}
	for _, mountpoint := range mountpoints {
		go func() { errs <- d.unmount(ctx, mountpoint, true) }()
	}
	var all []error
	for range len(names) + len(mountpoints) {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// quiet is a stream that nobody reads.
type quiet struct{}

func (quiet) Step(string, time.Duration, string) {}
func (quiet) Progress(control.Progress)          {}

// acquire takes the lock of a state folder.
func acquire(state string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(state, "daemon.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state folder %s: %w", state, ErrRunning)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// OpenSources opens what this host knows of its sources.
func OpenSources(state string) (*rpc.Identity, *rpc.Sources, error) {
	dir := filepath.Join(state, "identity")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	id, err := rpc.LoadIdentity(dir)
	if err != nil {
		return nil, nil, err
	}
	sources, err := rpc.OpenSources(state)
	return id, sources, err
}

// operations are what the command line can ask for.
func (d *daemon) operations() map[string]control.Handler {
	ops := map[string]control.Handler{
		"mount": d.mountOp, "umount": d.unmountOp, "run": d.runOp, "stop": d.stopOp,
		"remove": d.removeOp, "prefetch": d.prefetchOp, "export": d.exportOp, "status": d.statusOp, "connect": d.connectOp, "diff": d.diffOp, "collect": d.collectOp, "follow": d.followOp, "unfollow": d.unfollowOp,
		"serve":       d.serveOp,
		"materialise": d.materialiseOp,
	}
	for name, op := range ops {
		ops[name] = func(ctx context.Context, c control.Call, out control.Stream) (any, error) {
			d.calls.Add(1)
			defer d.wake()
			defer d.calls.Add(-1)
			start := time.Now()
			var result any
			var err error
			if c.FromArchive() && c.Service == "" {
				c.Service, err = d.nameArchived(ctx, *c.Archive)
			}
			if err == nil {
				result, err = op(ctx, c, out)
			}
			d.Log.Info(name, "source", c.Source, "service", c.Service, "name", c.Name, "mountpoint", c.Mountpoint, "took", time.Since(start), "error", err)
			return result, err
		}
	}
	return ops
}

// listenNotify tells systemd, if that started us, that the daemon is ready.
func listenNotify(state string) error {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return nil
	}
	if addr[0] == '@' {
		addr = "\x00" + addr[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c, "READY=1\nSTATUS=serving %s", state)
	return errors.Join(err, c.Close())
}

// NotifyReady tells whoever started the daemon that it answers calls: systemd by
// its socket, `srvfs` by the pipe on descriptor 3 if there is one.
func NotifyReady(state string, pipe *os.File, log *slog.Logger) {
	if err := listenNotify(state); err != nil {
		log.Warn("tell systemd that the daemon is ready", "error", err)
	}
	if pipe != nil {
		_, _ = pipe.WriteString("ready\n")
		_ = pipe.Close()
	}
}
