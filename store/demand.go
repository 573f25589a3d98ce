package store

import (
	"context"
	"sync"
	"time"
)

// maxYield is how long background work stands back at most before it does one
// more piece, so that a service that never stops reading can't starve it.
const maxYield = 200 * time.Millisecond

// demand knows whether somebody is waiting for content right now. Background
// work asks it before each piece.
type demand struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n becomes 0; nil while nobody waits for that
}

// enter says that a caller waits. The function that it returns says that it
// waits no more.
func (d *demand) enter() func() {
	d.mu.Lock()
	d.n++
	d.mu.Unlock()
	return d.leave
}

func (d *demand) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n--
	if d.n == 0 && d.idle != nil {
		close(d.idle)
		d.idle = nil
	}
}

// yield returns when nobody waits, or after maxYield; or with ctx's error.
func (d *demand) yield(ctx context.Context) error {
	d.mu.Lock()
	if d.n == 0 {
		d.mu.Unlock()
		return ctx.Err()
	}
	if d.idle == nil {
		d.idle = make(chan struct{})
	}
	idle := d.idle
	d.mu.Unlock()
	t := time.NewTimer(maxYield)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}
