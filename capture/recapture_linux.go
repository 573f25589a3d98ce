package capture

import (
	"context"
	"errors"
	"time"
)

const (
	// settleFor is how long nothing must have changed in packages and units before it is
	// looked what they are now: an upgrade takes its time.
	settleFor = 5 * time.Second
	// After a capture that failed the next one is tried later, from recaptureFirst to
	// recaptureMost: what is half installed may be whole by then.
	recaptureFirst = time.Minute
	recaptureMost  = time.Hour
	// unseenFor is how often it is looked where changes were not seen: a look reads the
	// package database.
	unseenFor = 10 * time.Minute
)

// A recapture captures a service anew when what its capture found has changed. It belongs
// to one goroutine, that of the following.
type recapture struct {
	w      *following
	f      *follower
	due    time.Time // zero: nothing has changed
	looked time.Time // when it was last looked
	delay  time.Duration
	cancel context.CancelFunc // of the capture under way; nil if there is none
	done   chan error         // its end
}

// newRecapture begins with a look: much may have changed while nobody watched.
func newRecapture(w *following, f *follower) *recapture {
	r := &recapture{w: w, f: f, delay: recaptureFirst, done: make(chan error, 1)}
	if f.scope.Recipe != nil {
		r.due = time.Now().Add(momentFirst)
	}
	return r
}

// changed notes that what was found may be another now. What has failed before may not
// now.
func (r *recapture) changed(now time.Time) {
	if r.f.scope.Recipe != nil {
		r.due, r.delay = now.Add(settleFor), recaptureFirst
	}
}

// unseen notes that changes were lost, or are not reported.
func (r *recapture) unseen(now time.Time) {
	if r.f.scope.Recipe != nil && r.due.IsZero() {
		r.due = later(now.Add(settleFor), r.looked.Add(unseenFor))
	}
}

// turn looks, if it is time to, and returns how long it is until it may be.
func (r *recapture) turn(ctx context.Context, now time.Time) time.Duration {
	if r.due.IsZero() || r.cancel != nil {
		return time.Hour
	}
	if now.Before(r.due) {
		return r.due.Sub(now)
	}
	r.due, r.looked = time.Time{}, now
	ctx, r.cancel = context.WithCancel(ctx)
	o := *r.f.scope.Recipe
	o.Name, o.StateDir, o.Log = r.f.at.Service, r.f.lib.dir, r.w.log
	go func() { r.done <- r.again(ctx, o) }()
	return time.Hour
}

// errSame: what was found is what the capture found.
var errSame = errors.New("nothing has changed in packages and units")

func (r *recapture) again(ctx context.Context, o Options) error {
	mark, err := markNow(&o)
	if err != nil {
		return err
	}
	if mark == r.f.scope.Found {
		return errSame
	}
	r.w.log.Info("packages or units have changed: the service is captured anew")
	_, err = Capture(ctx, o)
	return err
}

// tell takes the end of a capture. One that was published ends this following, and the
// next one begins.
func (r *recapture) tell(err error) {
	r.cancel()
	r.cancel = nil
	var text string
	switch {
	case errors.Is(err, errSame):
		r.delay = recaptureFirst
	case err != nil:
		text = err.Error()
		r.w.log.Warn("packages or units have changed, and capturing the service anew failed", "error", err, "again in", r.delay)
		if r.due.IsZero() {
			r.due = time.Now().Add(r.delay)
		}
		r.delay = min(2*r.delay, recaptureMost)
	}
	r.w.tell(func(s *FollowState) { s.Outdated = text })
}

// end ends a capture that is under way.
func (r *recapture) end() {
	if r.cancel != nil {
		r.cancel()
		<-r.done
	}
}
