package fs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// An operation is the context of one operation of the kernel. It ends after the
// deadline, with the view, or when the process that waits is dying.
//
// Most operations find what they need on this machine and wait for nothing. So
// the timer and the goroutine that see to its end are made only when somebody
// asks for Done, which is what whoever waits does.
type operation struct {
	v        *View
	cancel   <-chan struct{} // closed when the kernel interrupts it
	caller   uint32
	deadline time.Time

	mu   sync.Mutex
	ctx  context.Context // nil until Done is asked for
	stop func()
}

var _ context.Context = (*operation)(nil)

// operation returns the context of an operation on behalf of the thread caller.
// Its end must be called.
func (v *View) operation(cancel <-chan struct{}, caller uint32) *operation {
	return &operation{v: v, cancel: cancel, caller: caller, deadline: time.Now().Add(v.deadline)}
}

// end releases what the operation holds. Nobody waits with it any more.
func (o *operation) end() {
	o.mu.Lock()
	stop := o.stop
	o.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// Done implements [context.Context].
func (o *operation) Done() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ctx == nil {
		o.watch()
	}
	return o.ctx.Done()
}

// watch makes the context that does end. The caller holds o.mu.
func (o *operation) watch() {
	late := fmt.Errorf("no answer within %v: %w", o.v.deadline, context.DeadlineExceeded)
	ctx, end := context.WithDeadlineCause(o.v.ctx, o.deadline, late)
	ctx, interrupt := context.WithCancelCause(ctx)
	o.v.work.Go(func() {
		select {
		case <-ctx.Done():
		case <-o.cancel:
			o.v.awaitDeath(ctx, o.caller)
			interrupt(errInterrupted)
		}
	})
	o.ctx, o.stop = ctx, func() { interrupt(nil); end() }
}

// now returns the context that tells how the operation stands.
func (o *operation) now() context.Context {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ctx == nil {
		return o.v.ctx
	}
	return o.ctx
}

// Err implements [context.Context]. Until Done is asked for only the view's end
// is an error.
func (o *operation) Err() error { return o.now().Err() }

// Value implements [context.Context]; [context.Cause] finds the cause by it.
func (o *operation) Value(key any) any { return o.now().Value(key) }

// Deadline implements [context.Context].
func (o *operation) Deadline() (time.Time, bool) { return o.deadline, true }

// explain replaces a context's bare error by its cause, if err is one.
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		if errors.Is(err, cause) {
			return err
		}
		return fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}
