package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/probe"
	"srvfs/sandbox"
)

// Bounds that have no place in a snapshot.
const (
	defaultReady = 30 * time.Second
	// undoMax is how long the clean-up after a failed start may take.
	undoMax = 30 * time.Second
	// settle is how long a service without probes must stay alive to count as
	// started: there is nothing else to go by.
	settle = 100 * time.Millisecond
)

// Start builds the root, starts the units in order, and returns when all
// probes of the snapshot have answered. On any failure it undoes what it did,
// apart from what the service wrote to service.log and, if there was an upper
// before, into that; the error is a [*StartError] when the service itself
// failed, and wraps [ErrRunning] when the directory is in use, and
// [manifest.ErrStale] when the upper was written over another snapshot.
//
// ctx bounds the start only: the instance lives until Stop, or until the
// calling process dies, by which everything in the root dies too, unless it is to
// outlive that (see [Options]).
func Start(ctx context.Context, o Options) (*Instance, error) {
	i, err := newInstance(o)
	if err != nil {
		return nil, err
	}
	if i.dir, err = lockDir(o.Dir, true); err != nil {
		return nil, err
	}
	old, err := i.dir.load()
	if err == nil {
		err = i.bringUp(ctx, old)
	}
	if err == nil {
		return i, nil
	}
	return nil, i.undo(err, old)
}

// newInstance checks the options.
func newInstance(o Options) (*Instance, error) {
	switch {
	case o.Snapshot == nil:
		return nil, fmt.Errorf("service %.80q: no snapshot: %w", o.Name, manifest.ErrInvalid)
	case !manifest.ValidService(o.Name):
		return nil, fmt.Errorf("%.80q is not a service name: %w", o.Name, manifest.ErrInvalid)
	case unix.Geteuid() != 0:
		return nil, fmt.Errorf("service %s: starting it needs root: %w", o.Name, fs.ErrPermission)
	}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("service %s: %w", o.Name, err)
	}
	for _, v := range o.Env {
		if strings.IndexByte(v, '=') <= 0 || strings.Contains(v, "\x00") {
			return nil, fmt.Errorf("service %s: %.80q is no variable: %w", o.Name, v, manifest.ErrInvalid)
		}
	}
	if o.Log == nil {
		o.Log = discard()
	}
	if o.Progress == nil {
		o.Progress = func(string, time.Duration) {}
	}
	if o.ReadyTimeout == 0 {
		o.ReadyTimeout = defaultReady
	}
	i := &Instance{o: o, slog: o.Log, stop: make(chan struct{}), done: make(chan struct{})}
	for _, u := range o.Snapshot.Probes {
		p, err := probe.Parse(u)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", o.Name, err)
		}
		i.probes = append(i.probes, p)
	}
	return i, nil
}

// bringUp does all that Start does; what it leaves when it fails, undo takes
// away.
func (i *Instance) bringUp(ctx context.Context, old *record) (err error) {
	ctx, i.abort = context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			i.abort(err)
		}
	}()
	if i.log, err = openLog(i.dir); err != nil {
		return err
	}
	step := i.steps()
	if err := i.buildRoot(ctx, old); err != nil {
		return fmt.Errorf("service %s: root: %w", i.o.Name, err)
	}
	step("root")
	for n := range i.o.Snapshot.Units {
		if err := i.startUnit(ctx, n); err != nil {
			return i.explain(ctx, err)
		}
		step("unit " + i.o.Snapshot.Units[n].Name)
	}
	if err := i.awaitProbes(ctx); err != nil {
		return i.explain(ctx, err)
	}
	step("probes")
	if err := i.outlive(); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended {
		return i.explain(ctx, i.err)
	}
	i.rec.Ready = time.Now()
	return i.remember()
}

// steps returns a function that reports how long each step took.
func (i *Instance) steps() func(string) {
	last := time.Now()
	return func(name string) {
		now := time.Now()
		i.o.Progress(name, now.Sub(last))
		last = now
	}
}

// buildRoot makes the folders and the sandbox with the root in it. Each effect
// outside this process is recorded before it happens.
func (i *Instance) buildRoot(ctx context.Context, old *record) error {
	d, s := i.dir, i.o.Snapshot
	// A process that was killed has left nothing that lives, but it may be dying.
	if err := killMarked(ctx, old.Mark); err != nil {
		return err
	}
	if err := i.prepareUpper(old); err != nil {
		return err
	}
	i.rec = &record{
		Name: i.o.Name, Root: s.Root.Digest.String(), Sequence: s.Sequence, Since: time.Now(),
		Layered: i.o.layered(), Mark: newMark(i.o.Name), Placed: old.Placed,
	}
	var err error
	if i.rec.Owner, err = identify(os.Getpid()); err != nil {
		return err
	}
	if err := d.save(i.rec); err != nil {
		return err
	}
	if i.fresh {
		if err := i.makeUpper(); err != nil {
			return err
		}
		if err := d.save(i.rec); err != nil {
			return err
		}
	}
	if err := unmountBelow(d.in(rootName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range []string{workName, rootName} {
		if err := os.RemoveAll(d.in(name)); err != nil {
			return err
		}
		if err := os.Mkdir(d.in(name), 0o700); err != nil {
			return err
		}
	}
	var inRoot, all []manifest.Folder
	for _, u := range s.Units {
		for _, f := range u.Folders {
			all = append(all, f)
			if _, ok := belowRun(f.Path); !ok {
				inRoot = append(inRoot, f)
			}
		}
	}
	if err := makeRun(d.in(runName), all); err != nil {
		return err
	}
	mounts, err := i.mounts()
	if err != nil {
		return err
	}
	said, err := i.listen()
	if err != nil {
		return err
	}
	i.box, err = sandbox.Start(ctx, sandbox.Config{Root: d.in(rootName), Mounts: mounts, Hostname: hostname(s.Source), Log: said, Helper: i.o.Helper})
	_ = said.Close() // the sandbox has its own
	if err != nil {
		return fmt.Errorf("%w%s", err, i.mountHint(err))
	}
	i.watchBox()
	first, task, err := findInit(i.rec.Mark)
	if err != nil {
		return err
	}
	i.mu.Lock()
	i.rec.Init, i.task = first, task
	i.mu.Unlock()
	if len(inRoot) > 0 {
		return makeFolders(ctx, task, inRoot)
	}
	return nil
}

// watchBox ends the instance when the sandbox ends.
func (i *Instance) watchBox() {
	i.watched.Go(func() {
		select {
		case <-i.box.Done():
			select {
			case <-i.stop:
			default:
				i.end(errors.New("the sandbox ended"))
			}
		case <-i.stop:
		}
	})
}

// listen passes what the sandbox's own processes complain of to the log of this
// process: it is not the service that speaks.
func (i *Instance) listen() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	i.helper = r
	i.watched.Go(func() {
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			i.slog.Warn("a helper of the sandbox complains", "service", i.o.Name, "said", lastLines(lines.Text(), 1))
		}
		// A line that is too long ends the scan, but must not block who writes it.
		_, _ = io.Copy(io.Discard, r)
	})
	return w, nil
}

// mountHint says what to look at when the kernel refuses the root: it tells the
// reason only to its own log.
func (i *Instance) mountHint(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Sprintf(" (is the view mounted? tree %q, gate %q, blobs %q)", i.o.Tree, i.o.Gate, i.o.Blobs)
	case errors.Is(err, unix.EINVAL):
		return fmt.Sprintf(" (does %s lie on a file system that overlayfs can write to? another overlay, NFS and FAT are none)", i.dir.path)
	}
	return ""
}

// mounts lists what the root is made of.
func (i *Instance) mounts() ([]sandbox.Mount, error) {
	d := i.dir
	data, err := overlayData(i.o.Layers, d.in(upperName), d.in(workName))
	if err != nil {
		return nil, err
	}
	run := sandbox.BindMount(d.in(runName), "/run", false)
	run.Flags |= unix.MS_NOSUID | unix.MS_NODEV
	m := []sandbox.Mount{{Source: i.rec.Mark, Target: "/", Type: "overlay", Data: data}, sandbox.ProcMount()}
	m = append(m, sandbox.DevMounts()...)
	return append(m, run, sandbox.TmpfsMount("/tmp", 0o1777)), nil
}

// prepareUpper sees whether there is an upper, and whether it belongs to this
// snapshot: what overlayfs keeps in it (attributes without content, renamed
// folders) refers to the tree below, and over another tree would say something
// else.
func (i *Instance) prepareUpper(old *record) error {
	names, err := os.ReadDir(i.dir.in(upperName))
	if errors.Is(err, fs.ErrNotExist) {
		i.fresh = true
		return nil
	} else if err != nil {
		return err
	}
	root := i.o.Snapshot.Root.Digest.String()
	if len(names) > 0 && old.Root != "" && old.Root != root {
		return fmt.Errorf("what the service wrote (%s) stands over snapshot %d, not %d: start that one, or hand back or remove what was written: %w", i.dir.in(upperName), old.Sequence, i.o.Snapshot.Sequence, manifest.ErrStale)
	}
	if len(names) > 0 && old.Layered && !i.o.layered() {
		file, err := withoutContent(i.dir.in(upperName))
		if err != nil {
			return err
		}
		if file != "" {
			return fmt.Errorf("of %s only the attributes were written, in a root whose content the kernel served; served by the view it would have none: start it as it was (--reads kernel), or remove what was written: %w", file, manifest.ErrStale)
		}
	}
	return nil
}

// hostname returns the source's name for the service to see, if it can be one:
// a mail server introduces itself by it.
func hostname(source string) string {
	if len(source) > 64 || strings.ContainsFunc(source, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return source
}

// awaitProbes waits until every probe answers, or without probes until the
// service has stayed alive for a moment.
func (i *Instance) awaitProbes(ctx context.Context) error {
	if len(i.probes) == 0 {
		moment := time.NewTimer(settle)
		defer moment.Stop()
		select {
		case <-moment.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, i.o.ReadyTimeout, fmt.Errorf("%v passed", i.o.ReadyTimeout))
	defer cancel()
	if err := probe.Await(ctx, i.probeEnv(), i.probes, i.done); err != nil {
		return fmt.Errorf("its probes: %w", err)
	}
	return nil
}

// explain makes a StartError of what went wrong, with what the service wrote
// last. When a unit died meanwhile, that is the reason.
func (i *Instance) explain(ctx context.Context, err error) error {
	var of *commandError
	if cause := context.Cause(ctx); errors.As(cause, &of) {
		err = cause // the rest is a consequence
	} else {
		errors.As(err, &of)
	}
	s := &StartError{Service: i.o.Name, Log: i.log.tail(), LogFile: i.dir.in(logName), Err: err}
	if of != nil {
		s.Unit, s.Argv, s.Exit, s.Err = of.unit, of.argv, of.exit, of.err
	}
	return s
}

// undo takes away what a start that failed has done, and returns why it
// failed. Units that stand over an upper from before are stopped gently: there
// is something to lose.
func (i *Instance) undo(why error, old *record) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoMax)
	defer cancel()
	err := i.tearDown(ctx, !i.fresh)
	if i.box == nil && i.rec != nil {
		// A sandbox that failed to start may still be ending.
		err = errors.Join(err, killMarked(ctx, i.rec.Mark))
	}
	if i.fresh {
		err = errors.Join(err, os.RemoveAll(i.dir.in(upperName)), os.RemoveAll(i.dir.in(newUpper)))
	}
	if i.rec != nil && err == nil {
		if old.Mark == "" {
			err = os.Remove(i.dir.in(stateName))
		} else {
			err = i.dir.save(old)
		}
	}
	if info, e := os.Stat(i.dir.in(logName)); e == nil && info.Size() == 0 {
		err = errors.Join(err, os.Remove(i.dir.in(logName)))
	}
	if names, e := os.ReadDir(i.dir.path); e == nil && i.dir.made && len(names) == 1 { // the lock
		err = errors.Join(err, os.RemoveAll(i.dir.path))
	}
	i.dir.unlock()
	if err != nil {
		return fmt.Errorf("%w; and what the start did could not be undone: %w: remove the service", why, err)
	}
	return why
}
