package store

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"srvfs/manifest"
)

const (
	// patience is how long a source may be silent while there is another to ask: who reads
	// is to have an answer from that within a second.
	patience = 750 * time.Millisecond
	// trial is the same for a source that failed when it was asked last.
	trial = patience / 3
	// restFor is how long a source that failed is left alone. When it fails again it
	// is left alone for twice as long, restMost at most, as long as there is another
	// one to ask.
	restFor  = time.Second
	restMost = 30 * time.Second
	// lacking is for how many contents in a row a source has nothing until others are
	// asked first for lackFor: a standby that has little yet costs each request a round
	// trip.
	lacking = 32
	lackFor = 10 * time.Second
)

// A Health is what is known of how a source does. Sources that lead to the same host
// or archive share one, so that what one reader has waited for in vain is not waited
// for by the next. The zero value is one of which nothing is known.
type Health struct {
	demand, bulk rest

	mu       sync.Mutex
	distance time.Duration // of a round trip; 0: not measured
	corrupt  uint64
	lastBad  string
}

// Condition is the state of a Health at a moment.
type Condition struct {
	Distance time.Duration // of a round trip; 0: not measured
	Failing  error         // why it is passed over now; nil if it is not
	Since    time.Time     // of the failing
	Corrupt  uint64        // answers that had not the digest that they were asked by
	LastBad  string        // of which file the last one was
}

// Condition returns how the source does.
func (h *Health) Condition() Condition {
	h.mu.Lock()
	c := Condition{Distance: h.distance, Corrupt: h.corrupt, LastBad: h.lastBad}
	h.mu.Unlock()
	for _, o := range []*rest{&h.bulk, &h.demand} {
		o.mu.Lock()
		if o.failures > 0 {
			c.Failing, c.Since = o.reason, o.since
		}
		o.mu.Unlock()
	}
	return c
}

// Measured says how long a round trip takes.
func (h *Health) Measured(roundTrip time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.distance = roundTrip
}

// Connected says that the source can be reached: it is asked again at once.
func (h *Health) Connected() {
	h.demand.worked()
	h.bulk.worked()
}

// Lost says that the source can't be reached. Until Connected it is asked when there
// is no other one, and from time to time.
func (h *Health) Lost(reason error) {
	h.demand.away(reason, restMost)
	h.bulk.away(reason, restMost)
}

// Failed says that the source did not answer something else than a request for content:
// for a moment others are asked first.
func (h *Health) Failed(reason error) { h.demand.away(reason, restFor) }

func (h *Health) blame(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.corrupt++
	h.lastBad = what
}

// rest is the state of one way to a source.
type rest struct {
	mu           sync.Mutex
	failures     int // one after the other
	reason       error
	since        time.Time // of the first of them
	least, until time.Time // not asked before the one; not before the other while somebody else can be
	lacks        int       // requests in a row for what it does not have
	lackUntil    time.Time // not asked before while somebody else can be
}

// resting returns why the source is not asked in any case, or nil.
func (o *rest) resting() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Now().Before(o.least) {
		return fmt.Errorf("failed a moment ago: %w", o.reason)
	}
	return nil
}

// dozing reports whether others are asked first.
func (o *rest) dozing() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	return now.Before(o.until) || now.Before(o.lackUntil)
}

// try reports whether it failed when it was asked last. Others who could ask somebody
// else then leave it alone while the caller tries.
func (o *rest) try() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures == 0 {
		return false
	}
	if now := time.Now(); o.until.Before(now.Add(restFor)) {
		o.until = now.Add(restFor)
	}
	return true
}

// about reports whether an error is about one content, and says nothing of others.
func about(err error) bool {
	for _, e := range []error{manifest.ErrNotFound, manifest.ErrStale, manifest.ErrCorrupt, manifest.ErrInvalid} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// answered notes how the source answered. It is put to rest by an error that is not
// about one content only.
func (o *rest) answered(err error) {
	if err == nil || about(err) {
		o.worked()
		o.lacked(errors.Is(err, manifest.ErrNotFound))
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if now.Before(o.least) {
		return // those who asked together have failed together
	}
	if o.failures++; o.failures == 1 {
		o.since = now
	}
	o.reason, o.least = err, now.Add(restFor)
	if until := now.Add(min(restMost, restFor<<min(o.failures-1, 16))); until.After(o.until) {
		o.until = until
	}
}

func (o *rest) worked() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failures, o.reason, o.least, o.until = 0, nil, time.Time{}, time.Time{}
}

// lacked counts what the source does not have.
func (o *rest) lacked(one bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lacks++; !one {
		o.lacks, o.lackUntil = 0, time.Time{}
	} else if o.lacks >= lacking {
		o.lackUntil = time.Now().Add(lackFor)
	}
}

// away has others asked first for a while.
func (o *rest) away(reason error, while time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.failures == 0 {
		o.failures, o.since = 1, now
	}
	o.reason = reason
	if until := now.Add(while); until.After(o.until) {
		o.until = until
	}
}

// rest returns the state of the way that is asked.
func (s *Source) rest(background bool) *rest {
	if background && s.Bulk != nil {
		return &s.Health.bulk
	}
	return &s.Health.demand
}

// order returns the sources in the order in which they are to be asked now: by rank,
// the nearest of a rank first; after these those that have failed lately.
func (r *Reader) order(background bool) []Source {
	all := slices.Clone(r.sources())
	class := func(o *Source) int {
		switch w := o.rest(background); {
		case w.resting() != nil:
			return 2
		case w.dozing():
			return 1
		}
		return 0
	}
	type place struct {
		class    int
		distance time.Duration
	}
	places := make(map[*Health]place, len(all))
	for i := range all {
		p := place{class: class(&all[i]), distance: all[i].Health.Condition().Distance}
		if p.distance == 0 {
			p.distance = time.Hour
		}
		places[all[i].Health] = p
	}
	slices.SortStableFunc(all, func(a, b Source) int {
		p, q := places[a.Health], places[b.Health]
		return cmp.Or(cmp.Compare(p.class, q.class), cmp.Compare(a.Rank, b.Rank), cmp.Compare(p.distance, q.distance))
	})
	return all
}

// patience returns how long the first of these sources may be silent.
func (r *Reader) patience(in []Source, background bool) time.Duration {
	tried := in[0].rest(background).try()
	for i := range in[1:] {
		switch w := in[1+i].rest(background); {
		case w.resting() != nil || w.dozing():
		case tried:
			return min(trial, r.store.deadline/2)
		default:
			return min(patience, r.store.deadline/2)
		}
	}
	return r.store.deadline
}
