package fs

import (
	"context"
	"sync"
)

// Flights are calls of which there is at most one under way for each key,
// however many wait for it. A call ends early when nobody waits any longer: the
// impatience of one waiter never fails the others.
type flights[K comparable] struct {
	mu    sync.Mutex
	calls map[K]*flight
}

type flight struct {
	done    chan struct{}
	err     error // once done is closed
	waiters int
	cancel  context.CancelFunc
}

// do joins the call for key, or starts fn in a goroutine of v, and waits until
// it has ended or ctx has. In the latter case the error is ctx's cause.
func (f *flights[K]) do(ctx context.Context, v *View, key K, fn func(context.Context) error) error {
	c := f.join(v, key, fn)
	defer f.leave(key, c)
	return c.wait(ctx)
}

// join returns the call for key, which it starts if there is none. It goes on
// until each who joined has left.
func (f *flights[K]) join(v *View, key K, fn func(context.Context) error) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.calls[key]; c != nil {
		c.waiters++
		return c
	}
	ctx, cancel := context.WithCancel(v.ctx)
	c := &flight{done: make(chan struct{}), cancel: cancel, waiters: 1}
	if f.calls == nil {
		f.calls = map[K]*flight{}
	}
	f.calls[key] = c
	v.work.Go(func() {
		defer cancel()
		c.err = v.guard(func() error { return fn(ctx) })
		f.mu.Lock()
		if f.calls[key] == c {
			delete(f.calls, key)
		}
		f.mu.Unlock()
		close(c.done)
	})
	return c
}

func (c *flight) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *flights[K]) leave(key K, c *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.waiters--; c.waiters == 0 {
		// Whoever comes now must not meet a call that is being cancelled.
		if f.calls[key] == c {
			delete(f.calls, key)
		}
		c.cancel()
	}
}
