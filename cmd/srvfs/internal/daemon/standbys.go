package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"srvfs/manifest"
	"srvfs/rpc"
)

// Other standbys that this host is paired with say from time to time what they have.
// What they have is asked of them first, whatever the source does.

// askEvery is how often a standby is asked what it has.
const askEvery = 5 * time.Second

// keepAsking asks a standby what it has, and learns how far it is, until ctx ends.
func (d *daemon) keepAsking(ctx context.Context, w *ways) {
	for failed := false; ctx.Err() == nil; await(ctx, askEvery) {
		err := d.ask(ctx, w)
		if err != nil && !failed && ctx.Err() == nil {
			d.Log.Warn("what a standby has is not known", "standby", w.source.String(), "error", err)
		}
		failed = err != nil
	}
}

// ask asks a standby what it has.
func (d *daemon) ask(ctx context.Context, w *ways) error {
	start := time.Now()
	offers, err := w.demand.List(ctx)
	if err != nil && !errors.Is(err, manifest.ErrDenied) { // which leaves no offers
		return err
	}
	w.health.Measured(time.Since(start))
	d.mu.Lock()
	defer d.mu.Unlock()
	w.offers = offers
	return err
}

// connectStandbys begins to connect to all standbys that this host is paired with.
func (d *daemon) connectStandbys() error {
	all, err := d.sources.List()
	errs := []error{err}
	for i := range all {
		if all[i].Standby {
			_, err := d.client(&all[i])
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// standbys reports whether there are any that this host is paired with.
func (d *daemon) standbys() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.clients {
		if w.source.Standby {
			return true
		}
	}
	return false
}

// askStandbys asks all standbys now, and waits for each no longer than for a source
// that may be replaced. It returns those that answered.
func (d *daemon) askStandbys(ctx context.Context) []*ways {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.mu.Lock()
	var all []*ways
	for _, w := range d.clients {
		if w.source.Standby {
			all = append(all, w)
		}
	}
	d.mu.Unlock()
	var mu sync.Mutex
	var answered []*ways
	var asking sync.WaitGroup
	for _, w := range all {
		asking.Go(func() {
			if err := d.ask(ctx, w); err != nil {
				d.Log.Info("a standby does not say what it has", "standby", w.source.String(), "error", err)
				return
			}
			mu.Lock()
			answered = append(answered, w)
			mu.Unlock()
		})
	}
	asking.Wait()
	return answered
}

// keyOf returns the ID of a source that standbys know by this name or ID; or "".
func (d *daemon) keyOf(ctx context.Context, source string) string {
	answered := d.askStandbys(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range answered {
		for _, v := range w.offers {
			if v.Source != "" && (v.Source == source || strings.EqualFold(v.SourceName, source)) {
				return v.Source
			}
		}
	}
	return ""
}

// openFrom opens the snapshot that ref names at the standby that has the newest one; not
// one that is no newer than the number newer. Without any the error wraps ErrNotFound.
func (d *daemon) openFrom(ctx context.Context, s *origins, ref manifest.Ref, newer uint64) (*ways, *rpc.Opening, error) {
	type candidate struct {
		*ways
		sequence uint64
		distance time.Duration
	}
	var all []candidate
	answered := d.askStandbys(ctx)
	d.mu.Lock()
	for _, w := range answered {
		if v := w.offer(s.key, s.service); v != nil && w != s.ways && v.Sequence > newer {
			all = append(all, candidate{w, v.Sequence, w.health.Condition().Distance})
		}
	}
	d.mu.Unlock()
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.sequence, a.sequence), cmp.Compare(a.distance, b.distance))
	})
	errs := []error{fmt.Errorf("no other standby has it: %w", manifest.ErrNotFound)}
	for _, c := range all {
		ask, cancel := context.WithTimeout(ctx, patience)
		o, err := c.demand.Of(s.key).Open(ask, ref)
		cancel()
		if err == nil {
			return c.ways, o, nil
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		errs = append(errs, err)
	}
	return nil, nil, errors.Join(errs...)
}
