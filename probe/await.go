package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// ErrEnded: the service ended before its probes answered.
var ErrEnded = errors.New("the service has ended")

// How often a probe is repeated. An answer is the only way in which an arbitrary
// service announces that it is ready, so there is nothing to wait for but that:
// at first eagerly, since many are ready within milliseconds.
const (
	firstPause = 2 * time.Millisecond
	lastPause  = 100 * time.Millisecond
)

// Await asks all probes again and again, each on its own, until every one has
// been answered once. It fails when ctx ends, or at once with ErrEnded when
// alive is closed (nil never is); the error then holds the last reason of each
// probe that has no answer. A probe is asked at least once in any case.
func Await(ctx context.Context, e Env, probes []*Probe, alive <-chan struct{}) error {
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var asking sync.WaitGroup
	reasons := make([]error, len(probes))
	for i, p := range probes {
		asking.Go(func() { reasons[i] = p.await(own, e) })
	}
	answered := make(chan struct{})
	go func() { asking.Wait(); close(answered) }()
	select {
	case <-answered:
	case <-alive:
		cancel(ErrEnded)
		<-answered
	}
	var open []string
	for _, r := range reasons {
		if r != nil {
			open = append(open, r.Error())
		}
	}
	if len(open) == 0 {
		return nil
	}
	return fmt.Errorf("%w before it answered: %w", context.Cause(own), &reason{strings.Join(open, "; "), errors.Join(reasons...)})
}

// await returns nil when p was answered, or its last reason when ctx ends.
func (p *Probe) await(ctx context.Context, e Env) error {
	var last error
	for pause := firstPause; ; pause = min(pause*3/2, lastPause) {
		err := p.Check(ctx, e)
		if err == nil {
			return nil
		}
		// That time ran out is known; what was wrong before is worth more.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			// Nobody has called it off: the service has ended, and the question with it.
			if errors.Is(context.Cause(ctx), ErrEnded) && errors.Is(last, context.Canceled) {
				last = &reason{last.Error(), ErrEnded}
			}
			return last
		}
	}
}
