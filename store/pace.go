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
	at    map[key]int64 // bytes that are sent before each
	done  int64         // bytes that have arrived
	moved time.Time     // when the last of them did
}

func newPace() *pace { return &pace{at: map[key]int64{}, moved: time.Now()} }

// place says that at bytes are sent before k.
func (p *pace) place(k key, at int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[k] = at
}

// before returns how many bytes are sent before k.
func (p *pace) before(k key) int64 {
	if p == nil {
		return 0
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

// patience returns how long it is worth to wait for what is sent after at bytes:
// nothing if that is far, else until the stream has stood still for too long.
func (p *pace) patience(at int64) time.Duration {
	if p == nil {
		return math.MaxInt64
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if at-p.done > overtakeBytes {
		return 0
	}
	return overtakeAfter - time.Since(p.moved)
}
