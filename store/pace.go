package store

import (
	"math"
	"sync"
	"time"
)

const (
	// overtakeBytes is how far behind what is wanted a stream may be, in bytes,
	// for the one who wants it to wait: 4 ms at 1 Gbit/s, 42 ms at 100 Mbit/s, in
	// which a request of its own would hardly be answered.
	overtakeBytes = 512 << 10
	// overtakeSizes is the same in lengths of what is wanted. Alone it comes over one
	// connection that has been idle, and the stream over several that have not.
	overtakeSizes = 4
	// overtakeAfter is how long a stream may stand still. A chunk in slow start on a
	// long wire takes five round trips.
	overtakeAfter = time.Second
)

// A pace tells how far a stream has come: a request for many contents that are
// sent one after the other. Who needs one of them now decides by it whether to
// wait, or to ask for it alone on the connection that is kept for that. A nil
// pace is that of work which is not overtaken.
type pace struct {
	mu    sync.Mutex
	at    map[key]stretch
	done  int64     // bytes that have arrived
	moved time.Time // when the last of them did
}

// A stretch is a part of a stream, in bytes.
type stretch struct {
	before int64 // that are sent before it
	length int64
}

func newPace() *pace { return &pace{at: map[key]stretch{}, moved: time.Now()} }

// place says where in the stream k is.
func (p *pace) place(k key, at stretch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[k] = at
}

// where returns where in the stream k is.
func (p *pace) where(k key) stretch {
	if p == nil {
		return stretch{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[k]
}

// arrived notes that n bytes are here, counted from the stream's beginning.
func (p *pace) arrived(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done, p.moved = max(p.done, n), time.Now()
}

// patience returns how long it is worth to wait for a part of the stream: nothing
// if that is far, else until the stream has stood still for too long.
func (p *pace) patience(part stretch) time.Duration {
	if p == nil {
		return math.MaxInt64
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if ahead := part.before - p.done; ahead > overtakeBytes && ahead > overtakeSizes*part.length {
		return 0
	}
	return overtakeAfter - time.Since(p.moved)
}
