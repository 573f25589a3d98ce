package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"srvfs/manifest"
)

// patience is how many deadlines one wait may last while the connection as a
// whole still brings bytes: other calls share it, and a slow wire is not a dead
// one.
const patience = 8

// A watch bounds every wait of one call. The clock runs while the source is
// awaited and not while the caller uses what it got.
type watch struct {
	client *Client
	what   string
	ctx    context.Context // of the call
	cancel context.CancelCauseFunc
	free   func() bool // lets go of the caller's context

	mu    sync.Mutex
	since time.Time // of the wait under way; zero: none
	timer *time.Timer
}

// watch begins to watch a call. The call ends when ctx does, but does not
// inherit its deadline: grpc would tell the source, which then might end the
// call first, and whose the deadline was could not be told any more.
func (c *Client) watch(ctx context.Context, what string) *watch {
	w := &watch{client: c, what: what}
	w.ctx, w.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := ctx.Err(); err != nil {
		w.cancel(err)
	}
	w.free = context.AfterFunc(ctx, func() { w.cancel(ctx.Err()) })
	return w
}

// close frees what the call holds on both sides.
func (w *watch) close() {
	w.free()
	w.cancel(context.Canceled)
}

// await runs f, which waits for the source and ends when w.ctx does.
func (w *watch) await(f func() error) error {
	w.mu.Lock()
	w.since = time.Now()
	if w.timer == nil {
		w.timer = time.AfterFunc(w.client.opts.deadline(), w.check)
	} else {
		w.timer.Reset(w.client.opts.deadline())
	}
	w.mu.Unlock()
	err := f()
	w.mu.Lock()
	w.since = time.Time{}
	w.timer.Stop()
	w.mu.Unlock()
	return err
}

// check ends the call if the source is silent, and the connection with it if
// it is silent as a whole: what else waits on it need not find out by itself.
func (w *watch) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	deadline := w.client.opts.deadline()
	if w.since.IsZero() {
		return // the wait has just ended
	}
	waited := time.Since(w.since)
	if waited < deadline { // it ended and another has begun
		w.timer.Reset(deadline - waited)
		return
	}
	silent := w.client.link.silence()
	if silent < deadline && waited < patience*deadline {
		w.timer.Reset(deadline - silent)
		return
	}
	err := fmt.Errorf("no answer for %v: %w", min(waited, silent).Round(time.Millisecond), manifest.ErrUnavailable)
	if last := w.client.link.lastError(); last != nil {
		err = fmt.Errorf("no answer for %v (%w): %w", waited.Round(time.Millisecond), last, manifest.ErrUnavailable)
	}
	w.cancel(err)
	if silent >= deadline {
		w.client.link.drop()
	}
}

// fail makes the error that a caller sees of what grpc returned.
func (w *watch) fail(err error) error {
	c := w.client
	if cause := context.Cause(w.ctx); errors.Is(cause, context.DeadlineExceeded) {
		return c.wrap(w.what, fmt.Errorf("%w: %w", manifest.ErrUnavailable, cause))
	} else if cause != nil {
		return c.wrap(w.what, cause)
	}
	if s, ok := status.FromError(err); ok && s.Code() == codes.Unavailable && len(s.Details()) == 0 {
		if last := c.link.lastError(); last != nil {
			return c.wrap(w.what, last)
		}
	}
	return c.wrap(w.what, fromStatus(err))
}

// unary makes a call that is answered by one message.
func (c *Client) unary(ctx context.Context, what string, call func(context.Context) error) error {
	w := c.watch(ctx, what)
	defer w.close()
	if err := w.await(func() error { return call(w.ctx) }); err != nil {
		return w.fail(err)
	}
	return nil
}
