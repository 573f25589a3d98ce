package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"srvfs/manifest"
	"srvfs/sandbox"
)

// Bounds for units that name none: systemd's.
const (
	defaultStartMax = 90 * time.Second
	defaultStopMax  = 90 * time.Second
)

// elsewhere is how long a pid file outside /run is waited for. If a link of the
// tree leads to it, it lies where it is not looked for, and never comes.
const elsewhere = 2 * time.Second

// poll is how often a pid file is looked for while its daemon starts. Daemons
// write it before they return, so that this is rarely waited for.
const poll = 10 * time.Millisecond

// A unit is one unit of an instance.
type unit struct {
	manifest.Unit
	// Guarded by the instance's mu; main is nil as long as, or if, there is no
	// main process that is known.
	main     *mainProcess
	status   string
	notifier *notifier
	named    int           // the main process by the unit's own word, as it numbers it
	ready    chan struct{} // READY=1 arrived
}

// startMax and stopMax are the unit's bounds.
func (u *unit) startMax() time.Duration { return bound(u.StartMax, defaultStartMax) }
func (u *unit) stopMax() time.Duration  { return bound(u.StopMax, defaultStopMax) }

func bound(ns int64, otherwise time.Duration) time.Duration {
	if ns == 0 {
		return otherwise
	}
	return time.Duration(ns)
}

// A commandError says which command of a unit failed and how.
type commandError struct {
	unit string
	argv []string
	exit string
	err  error
}

func (e *commandError) Error() string { return fmt.Sprintf("unit %s: %s: %v", e.unit, e.argv, e.err) }
func (e *commandError) Unwrap() error { return e.err }

// startUnit does all that makes the unit n of the snapshot run.
func (i *Instance) startUnit(ctx context.Context, n int) error {
	u := &unit{Unit: i.o.Snapshot.Units[n]}
	i.mu.Lock()
	i.units = append(i.units, u)
	i.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, u.startMax(), fmt.Errorf("it did not start within %v", u.startMax()))
	defer cancel()
	if err := i.runAll(ctx, u, u.Pre, nil); err != nil {
		return err
	}
	start := map[manifest.StartKind]func(context.Context, *unit) error{
		manifest.Simple: i.startSimple, manifest.Forking: i.startForking, manifest.Notify: i.startNotify,
		manifest.Oneshot: func(ctx context.Context, u *unit) error { return i.runAll(ctx, u, u.Start, u.Sockets) },
	}[u.Kind]
	if start == nil {
		return &commandError{unit: u.Name, err: fmt.Errorf("unknown kind of start %q: %w", u.Kind, manifest.ErrInvalid)}
	}
	if err := start(ctx, u); err != nil {
		return err
	}
	return i.runAll(ctx, u, u.Post, nil)
}

// startSimple starts the process that is the service.
func (i *Instance) startSimple(ctx context.Context, u *unit) error {
	p, err := i.launch(ctx, u, u.Start[0], u.Sockets)
	if err != nil {
		return err
	}
	i.setMain(u, ofProcess(p))
	return nil
}

// startNotify does the same and waits until the service says that it is ready.
func (i *Instance) startNotify(ctx context.Context, u *unit) error {
	u.ready = make(chan struct{}, 1)
	socket, err := listenNotify(i.dir.in(runName), slices.Index(i.units, u), func(n notice) { i.noticed(u, n) })
	if err != nil {
		return &commandError{unit: u.Name, err: err}
	}
	i.mu.Lock()
	u.notifier = socket
	i.mu.Unlock()
	p, err := i.launch(ctx, u, u.Start[0], u.Sockets)
	if err != nil {
		return err
	}
	fail := func(exit string, err error) error {
		return &commandError{unit: u.Name, argv: u.Start[0].Argv, exit: exit, err: err}
	}
	select {
	case <-u.ready:
	case <-p.Ended():
		// What it said before it ended counts: it may have handed over.
		if err := socket.flush(ctx); err != nil {
			return fail(exitOf(p), err)
		}
		select {
		case <-u.ready:
		default:
			exit := exitOf(p)
			return fail(exit, fmt.Errorf("the process ended before it said that it was ready: %s", exit))
		}
	case <-ctx.Done():
		return fail("", fmt.Errorf("%w: it never said READY=1", context.Cause(ctx)))
	}
	i.mu.Lock()
	named := u.named
	i.mu.Unlock()
	if named == 0 || named == p.Inside() {
		i.setMain(u, ofProcess(p))
		return nil
	}
	m, err := i.findProcess(ctx, named)
	if err != nil {
		return fail("", fmt.Errorf("it named process %d as the main process: %w", named, err))
	}
	i.setMain(u, m)
	return nil
}

// noticed handles a message of the unit.
func (i *Instance) noticed(u *unit, n notice) {
	i.mu.Lock()
	if n.status != "" {
		u.status = n.status
	}
	if n.mainPID != 0 {
		u.named = n.mainPID
	}
	running := u.main != nil
	moved := running && n.mainPID != 0 && n.mainPID != u.main.inside
	i.mu.Unlock()
	switch {
	case moved:
		if m, err := i.findProcess(context.Background(), n.mainPID); err == nil {
			i.setMain(u, m)
		}
	case n.ready && !running:
		select {
		case u.ready <- struct{}{}:
		default: // it has said so before
		}
	}
}

// startForking runs the start command to its end and finds the daemon that it
// has left behind: by the unit's pid file or, without one, the oldest process
// that is new and an orphan. A start that leaves no process is a success too:
// SysV scripts that only set something up look like this.
func (i *Instance) startForking(ctx context.Context, u *unit) error {
	before, err := i.orphans()
	if err != nil {
		return &commandError{unit: u.Name, err: err}
	}
	stale := pidFileInfo(i.dir, u.PIDFile)
	if err := i.runAll(ctx, u, u.Start, u.Sockets); err != nil {
		return err
	}
	if u.PIDFile != "" {
		m, err := i.awaitPIDFile(ctx, u, stale)
		if err == nil {
			i.setMain(u, m)
			return nil
		}
		if ctx.Err() != nil {
			return &commandError{unit: u.Name, argv: u.Start[0].Argv, err: fmt.Errorf("it returned, but left no daemon behind: %w: %w", err, context.Cause(ctx))}
		}
		i.slog.Warn("main process of the unit is guessed", "unit", u.Name, "reason", err)
	}
	now, err := i.orphans()
	if err != nil {
		return &commandError{unit: u.Name, err: err}
	}
	now = slices.DeleteFunc(now, func(p process) bool { return slices.Contains(before, p) })
	if len(now) == 0 {
		i.slog.Info("the unit left no process that could be watched", "unit", u.Name)
		return nil
	}
	if m, err := i.findProcess(ctx, innerPID(now[0].PID)); err == nil {
		i.setMain(u, m)
	}
	return nil
}

// orphans returns the processes of the sandbox whose parent is its process 1,
// the oldest first.
func (i *Instance) orphans() ([]process, error) {
	pids, err := i.box.Pids()
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	first := i.rec.Init.PID
	i.mu.Unlock()
	var all []process
	for _, pid := range pids {
		parent, start, state, err := procStat(pid)
		if err == nil && parent == first && state != 'Z' {
			all = append(all, process{PID: pid, Start: start})
		}
	}
	slices.SortFunc(all, func(a, b process) int {
		if a.Start != b.Start {
			return int(a.Start) - int(b.Start)
		}
		return a.PID - b.PID
	})
	return all, nil
}

// runAll runs commands one after the other, each to its end, with the sockets given.
func (i *Instance) runAll(ctx context.Context, u *unit, commands []manifest.Command, sockets []manifest.Socket) error {
	for _, c := range commands {
		if err := i.run(ctx, u, c, sockets); err != nil {
			if !c.MayFail || ctx.Err() != nil {
				return err
			}
			i.slog.Info("a command failed that may", "unit", u.Name, "reason", err)
		}
	}
	return nil
}

// run runs a command to its end. When ctx ends before, it is killed.
func (i *Instance) run(ctx context.Context, u *unit, c manifest.Command, sockets []manifest.Socket) error {
	p, err := i.launch(ctx, u, c, sockets)
	if err != nil {
		return err
	}
	status, err := p.Wait(ctx)
	switch {
	case ctx.Err() != nil && err != nil:
		_ = p.Signal(kill)
		return &commandError{unit: u.Name, argv: c.Argv, err: context.Cause(ctx)}
	case err != nil:
		return &commandError{unit: u.Name, argv: c.Argv, err: err}
	case !status.Success():
		return &commandError{unit: u.Name, argv: c.Argv, exit: status.String(), err: errors.New(status.String())}
	}
	return nil
}

// launch starts a command of the unit, as whom and where the unit says.
func (i *Instance) launch(ctx context.Context, u *unit, c manifest.Command, sockets []manifest.Socket) (*sandbox.Process, error) {
	i.mu.Lock()
	mainPID := ""
	if u.main != nil {
		mainPID = strconv.Itoa(u.main.inside)
	}
	socket := ""
	if u.notifier != nil {
		socket = u.notifier.path
	}
	i.mu.Unlock()
	sc := sandbox.Command{
		Argv: expandMainPID(c.Argv, mainPID), Env: environment(u.Unit, i.o.Env, mainPID, socket), Dir: u.Dir, Umask: u.Umask,
		Stdout: i.log.File, Stderr: i.log.File,
	}
	for _, s := range sockets {
		sc.Sockets = append(sc.Sockets, sandbox.Socket(s))
	}
	if !c.Privileged {
		sc.UID, sc.GID, sc.Groups = u.User.UID, u.User.GID, u.User.Groups
	}
	p, err := i.box.Run(ctx, sc)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, &commandError{unit: u.Name, argv: c.Argv, err: err}
	}
	return p, nil
}

// environment returns exactly what the commands of a unit see: the unit's own
// variables, the user's name as systemd sets it, what the caller adds, and what
// belongs to the moment. Of a name that occurs twice the last counts.
func environment(u manifest.Unit, added []string, mainPID, socket string) []string {
	var env []string
	set := func(v string) {
		name, _, _ := strings.Cut(v, "=")
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		env = append(env, v)
	}
	if u.User.Name != "" {
		set("USER=" + u.User.Name)
		set("LOGNAME=" + u.User.Name)
	}
	for _, v := range u.Env {
		set(v)
	}
	for _, v := range added {
		set(v)
	}
	if mainPID != "" {
		set("MAINPID=" + mainPID)
	}
	if socket != "" {
		set("NOTIFY_SOCKET=" + socket)
	}
	return env
}

// expandMainPID puts the main process's number where a stop or reload command
// refers to it: the one name that can't be resolved before the service runs. A
// word that is nothing but the name vanishes when there is no main process.
func expandMainPID(argv []string, mainPID string) []string {
	out := make([]string, 0, len(argv))
	for _, a := range argv {
		if mainPID == "" && (a == "$MAINPID" || a == "${MAINPID}") {
			continue
		}
		a = strings.ReplaceAll(a, "${MAINPID}", mainPID)
		if a == "$MAINPID" {
			a = mainPID
		}
		out = append(out, a)
	}
	return out
}

// awaitPIDFile waits until the unit's pid file names a process. The error is
// that of the last look.
func (i *Instance) awaitPIDFile(ctx context.Context, u *unit, stale os.FileInfo) (*mainProcess, error) {
	if _, ok := belowRun(u.PIDFile); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, elsewhere)
		defer cancel()
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		m, err := i.pidFileProcess(ctx, u, stale)
		if err == nil {
			return m, nil
		}
		left, e := i.box.Pids()
		if e != nil {
			return nil, e
		}
		if len(left) == 0 {
			return nil, err // nobody is there who could still write it
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// pidFileProcess looks once.
func (i *Instance) pidFileProcess(ctx context.Context, u *unit, stale os.FileInfo) (*mainProcess, error) {
	now := pidFileInfo(i.dir, u.PIDFile)
	if stale != nil && now != nil && os.SameFile(stale, now) && stale.ModTime().Equal(now.ModTime()) {
		return nil, fmt.Errorf("pid file %s is from before the start", path.Clean(u.PIDFile))
	}
	pid, err := readPIDFile(i.dir, u.PIDFile)
	if err != nil {
		return nil, err
	}
	m, err := i.findProcess(ctx, pid)
	if err != nil {
		return nil, fmt.Errorf("pid file %s: %w", u.PIDFile, err)
	}
	return m, nil
}
