package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"srvfs/capture/notify"
	"srvfs/manifest/statcache"
)

const (
	// gatherFor is how long changes are gathered after the first: one save of an
	// editor is several.
	gatherFor = 5 * time.Millisecond
	// restFactor bounds the share of a processor that following takes: it rests for so
	// many times as long as it works, once it has used its credit (see allowance).
	restFactor = 4
	restCredit = 500 * time.Millisecond
	// What changes again and again is published ever more seldom, from busyFirst to
	// busyMost apart.
	busyFirst = 100 * time.Millisecond
	busyMost  = 30 * time.Second
	// lookEvery is how often all files are looked at where nobody reports changes.
	lookEvery = 30 * time.Second
	// Data of one moment is copied a while after it has changed, and then not before so
	// many times as long as that took have passed, or a minute; where it can't be, much
	// later.
	momentFirst  = time.Second
	momentFactor = 20
	momentMost   = time.Minute
	momentAgain  = 30 * time.Second
	// againAfter is how long after a failure it is tried again.
	againAfter = 10 * time.Second
)

// A FollowState tells how a service is followed.
type FollowState struct {
	// Watched: the kernel reports changes. If not, all files are looked at every 30
	// seconds, or it is interrupted.
	Watched bool `json:"watched"`
	// Reason says why it is not watched, or is interrupted.
	Reason string `json:"reason,omitempty"`
	// Data says why data of one moment is not followed; empty if it is.
	Data string `json:"data,omitempty"`
	// Outdated says why the service was not captured anew, though its packages or units
	// have changed; empty if they have not, or it was.
	Outdated string `json:"outdated,omitempty"`
	// Looked is how long the last look at all files took, that which begins the
	// following with the reading of the index before it; 0 if none has ended yet.
	Looked time.Duration `json:"looked_ns,omitempty"`
}

// Follow publishes a new snapshot of each service of the library whenever its files
// have changed, until ctx ends. Services that are captured or removed meanwhile are
// taken in, or let go. Report is called, by one goroutine at a time, when it is to be
// told how a service is followed; with nil, that it is no more. Live is the library's.
func (l *Library) Follow(ctx context.Context, live *Live, log *slog.Logger, report func(service string, s *FollowState)) error {
	var mu sync.Mutex
	tell := func(service string, s *FollowState) {
		mu.Lock()
		defer mu.Unlock()
		report(service, s)
	}
	cache, err := statcache.OpenIdle(filepath.Join(l.dir, "digests"))
	if err != nil {
		return err
	}
	defer func() { _ = cache.Close() }()
	var work sync.WaitGroup
	defer work.Wait()
	type running struct {
		cancel context.CancelFunc
		at     chan struct{} // what is published has changed
	}
	all := map[string]running{}
	return l.Watch(ctx, func() {
		list, err := l.List()
		if err != nil {
			log.Warn("services can't be followed", "error", err)
			return
		}
		there := map[string]bool{}
		for _, p := range list {
			there[p.Service] = true
			r, ok := all[p.Service]
			if !ok {
				ctx, cancel := context.WithCancel(ctx)
				r = running{cancel, make(chan struct{}, 1)}
				all[p.Service] = r
				work.Go(func() {
					(&following{lib: l, counters: l.countersOf(p.Service), live: live, cache: cache, log: log.With("service", p.Service), service: p.Service, changed: r.at, report: tell}).run(ctx)
				})
			}
			select {
			case r.at <- struct{}{}:
			default:
			}
		}
		for name, r := range all {
			if !there[name] {
				r.cancel()
				delete(all, name)
				tell(name, nil)
			}
		}
	})
}

// A following follows one service.
type following struct {
	lib      *Library
	counters *followCounters
	live     *Live
	cache    *statcache.Cache
	log      *slog.Logger
	service  string
	changed  <-chan struct{} // another snapshot may have been published
	report   func(string, *FollowState)

	mu    sync.Mutex
	state FollowState
}

// tell changes what is told of it.
func (w *following) tell(change func(*FollowState)) {
	w.mu.Lock()
	was := w.state
	change(&w.state)
	now := w.state
	w.mu.Unlock()
	if now != was {
		w.report(w.service, &now)
	}
}

func (w *following) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := w.follow(ctx)
		if errors.Is(err, errSuperseded) || ctx.Err() != nil {
			continue
		}
		w.log.Warn("following is interrupted", "error", err)
		w.tell(func(s *FollowState) { s.Watched, s.Reason = false, "interrupted: "+err.Error() })
		select {
		case <-time.After(againAfter):
		case <-w.changed:
		case <-ctx.Done():
		}
	}
}

// errNotReported: the kernel has ended the watch.
var errNotReported = errors.New("changes are not reported any more")

// follow follows the newest snapshot until another is published by somebody else.
func (w *following) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	f, err := newFollower(w.lib, w.live, w.cache, w.log, w.service)
	if err != nil {
		return err
	}
	defer f.close()
	q := w.watch(ctx, f)
	// What changes from now on is reported; what has changed before is looked for.
	d := newDirty()
	d.add(change{path: "/", below: true}, time.Now())
	m := moments{due: time.Now().Add(momentFirst)}
	again := newRecapture(w, f)
	defer again.end()
	var took time.Duration
	var effort allowance
	for {
		due, wait := d.take(time.Now())
		wait = min(wait, again.turn(ctx, time.Now()))
		if now := time.Now(); !m.due.IsZero() {
			if !now.Before(m.due) {
				if err := w.refreeze(ctx, f, &m); err != nil {
					return err
				}
				d.put(due)
				continue
			}
			wait = min(wait, m.due.Sub(now))
		}
		if len(due.paths) > 0 || len(due.inodes) > 0 {
			q.rest(took) // as long as the one before took
			first := !began.IsZero()
			start := cmp.Or(began, time.Now())
			began = time.Time{}
			published, retry, err := f.update(ctx, due.paths, due.inodes)
			if err != nil {
				return err
			}
			now := time.Now()
			if due.paths["/"] {
				w.counters.rescans.Add(1)
				w.counters.rescanning.Add(int64(now.Sub(start)))
			}
			if published {
				w.log.Debug("followed", "snapshot", f.at.Sequence, "took", now.Sub(start))
			}
			took = now.Sub(start)
			if due.paths["/"] {
				w.tell(func(s *FollowState) { s.Looked = took })
				// What that took in memory would be kept for minutes for the next, which may
				// be in a year.
				debug.FreeOSMemory()
			}
			d.done(due, published, retry, now)
			if first { // the one with which following begins: what comes then waits for no rest
				continue
			}
			rest := effort.spend(now, took)
			d.rest(now.Add(rest))
			q.rest(rest)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case _, ok := <-q.filled:
			if !ok {
				timer.Stop()
				return cmp.Or(context.Cause(ctx), errNotReported)
			}
			q.take(func(c change, since time.Time) {
				if !c.defines {
					w.counters.events.Add(1)
				}
				switch {
				case f.ofAMoment(c.path):
					m.changed(since)
				case !c.defines:
					d.add(c, since)
				}
				switch {
				case c.defines:
					again.changed(since)
				case c.path == "/" && c.below:
					again.unseen(since)
				}
			})
		case err := <-again.done:
			again.tell(err)
		case <-timer.C:
		case <-w.changed:
			if now, err := w.lib.find(f.ref()); err != nil || now != f.at {
				timer.Stop()
				return errSuperseded
			}
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// An allowance is the time that following may take: one part of 1+restFactor, and
// restCredit at once, so that who changes a file now and then waits for nobody's rest.
type allowance struct {
	spent time.Duration // and not yet made up for
	at    time.Time     // when that was so
}

// spend notes that took was used until now, and returns for how long to rest.
func (a *allowance) spend(now time.Time, took time.Duration) time.Duration {
	a.spent = max(0, a.spent-(now.Sub(a.at)-took)/restFactor) + took
	a.at = now
	return restFactor * max(0, a.spent-restCredit)
}

// moments says when data of one moment is to be copied next.
type moments struct {
	due, rested time.Time // zero: it has not changed; not before
	held        bool      // that it can't be was said
}

func (m *moments) changed(now time.Time) {
	if m.due.IsZero() {
		m.due = later(now.Add(momentFirst), m.rested)
	}
}

// refreeze copies it. That it does not hold still ends nothing.
func (w *following) refreeze(ctx context.Context, f *follower, m *moments) error {
	start := time.Now()
	published, err := f.refreeze(ctx)
	now := time.Now()
	m.due, m.rested = time.Time{}, now.Add(min(max(momentFirst, momentFactor*now.Sub(start)), momentMost))
	w.tell(func(s *FollowState) {
		if s.Data = ""; err != nil {
			s.Data = err.Error()
		}
	})
	switch {
	case errors.Is(err, errHeld):
		if !m.held {
			w.log.Warn("data is not followed", "reason", err)
		}
		m.held, m.rested = true, now.Add(time.Hour)
	case errors.Is(err, errNoMoment):
		w.log.Info("data is not followed for now", "reason", err)
		m.due = now.Add(momentAgain)
	case err != nil:
		return err
	case published:
		w.log.Debug("followed data", "snapshot", f.at.Sequence, "took", now.Sub(start))
	}
	return nil
}

// watch reports changes, from the moment when it returns; where they can't be watched,
// it has all files looked at from time to time.
func (w *following) watch(ctx context.Context, f *follower) *queue {
	q := newQueue()
	watcher, err := w.open(f)
	w.tell(func(s *FollowState) {
		if s.Watched, s.Reason = err == nil, ""; err != nil {
			s.Reason = fmt.Sprintf("all files are looked at every %v: %v", lookEvery, err)
		}
	})
	if err != nil {
		w.log.Warn("changes can't be watched: all files are looked at from time to time", "error", err, "every", lookEvery)
		go func() {
			defer q.close()
			tick := time.NewTicker(lookEvery)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				q.put([]change{{path: "/", below: true}}, time.Now())
			}
		}()
		return q
	}
	go func() {
		defer q.close()
		defer func() { _ = watcher.Close() }()
		for {
			if err := q.read(ctx, watcher, f); ctx.Err() != nil {
				return
			} else if err != nil {
				w.counters.lost.Add(1)
				w.log.Info("all files are looked at", "reason", err)
				q.put([]change{{path: "/", below: true}}, time.Now())
				if !errors.Is(err, notify.ErrLost) {
					return
				}
			}
		}
	}()
	return q
}

func (w *following) open(f *follower) (*notify.Watcher, error) {
	mounts, err := mountsBelow(f.index.root)
	if err != nil {
		return nil, err
	}
	var all []notify.Mount
	for _, m := range mounts {
		if m.real && !isPseudo(m.path) {
			all = append(all, notify.Mount{Path: m.path, Host: m.host})
		}
	}
	return notify.Open(all)
}

// dirty is what is to be looked at, and when.
type dirty struct {
	paths  map[string]bool // with all that is below?
	inodes map[notify.Inode]bool
	since  time.Time // of the first of them; zero: there is none
	rested time.Time // not before
	busy   map[string]busy
}

// busy is a path that was published, and how long it has to wait until it is again.
type busy struct {
	until time.Time
	delay time.Duration
}

func newDirty() *dirty {
	return &dirty{paths: map[string]bool{}, inodes: map[notify.Inode]bool{}, busy: map[string]busy{}}
}

func (d *dirty) add(c change, now time.Time) {
	if d.since.IsZero() {
		d.since = now
	}
	d.paths[c.path] = d.paths[c.path] || c.below
	if dir := path.Dir(c.path); !d.paths[dir] {
		d.paths[dir] = false // its time, if nothing else
	}
	for _, i := range c.inodes {
		d.inodes[i] = true
	}
}

// put takes back what was taken and not looked at.
func (d *dirty) put(due *dirty) {
	for p, below := range due.paths {
		d.paths[p] = d.paths[p] || below
	}
	for i := range due.inodes {
		d.inodes[i] = true
	}
	if len(d.paths)+len(d.inodes) > 0 && d.since.IsZero() {
		d.since = time.Now()
	}
}

func (d *dirty) rest(until time.Time) { d.rested = until }

// take returns what is due, or how long it is until something may be.
func (d *dirty) take(now time.Time) (due *dirty, wait time.Duration) {
	due = newDirty()
	wait = time.Hour
	if d.since.IsZero() {
		return due, wait
	}
	if first := later(d.since.Add(gatherFor), d.rested); now.Before(first) {
		return due, first.Sub(now)
	}
	for p, below := range d.paths {
		if b, ok := d.busy[p]; ok && now.Before(b.until) {
			wait = min(wait, b.until.Sub(now))
			continue
		}
		due.paths[p] = below
		delete(d.paths, p)
	}
	due.inodes, d.inodes = d.inodes, due.inodes
	if len(d.paths) == 0 {
		d.since = time.Time{}
	}
	return due, wait
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// done notes what was looked at, so that what changes all the time is not looked at all
// the time. Retry comes back.
func (d *dirty) done(due *dirty, published bool, retry []string, now time.Time) {
	for p, b := range d.busy {
		if now.Sub(b.until) > b.delay {
			delete(d.busy, p) // it has been quiet for as long as it had to wait
		}
	}
	slow := func(p string) {
		b := d.busy[p]
		b.delay = min(max(2*b.delay, busyFirst), busyMost)
		b.until = now.Add(b.delay)
		d.busy[p] = b
	}
	if published {
		for p := range due.paths {
			if p != "/" {
				slow(p)
			}
		}
	}
	for _, p := range retry {
		slow(p)
		d.add(change{path: p}, now)
	}
}
