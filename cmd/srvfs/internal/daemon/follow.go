package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/rpc"
	"srvfs/store"
)

// A follow keeps this host up to date with a service: each new snapshot is stored here,
// and its content prefetched, so that the service can be run from what the source had a
// moment before it was lost.
type follow struct {
	followRecord
	cancel context.CancelFunc
	done   chan struct{}
	// show, if not nil, is called with each new snapshot before it is stored: the
	// follow is a view's, and brings nothing else.
	show    func(context.Context, *opened) error
	bringer bringer

	state  Following // guarded by the daemon's mu, as is
	coming *opened   // the snapshot that is being brought; nil: none is
}

// A followRecord is what is kept of it on disk.
type followRecord struct {
	Source   string `json:"source"`
	Key      string `json:"key"` // the source's ID
	Service  string `json:"service"`
	Prefetch bool   `json:"prefetch"`
	// Archive is where content comes from when the source fails; nil: from nowhere.
	Archive *control.Archive `json:"archive,omitempty"`
}

// Following tells how far a follow is.
type Following struct {
	Sequence uint64    `json:"sequence"`      // the snapshot that is here, with its content if that is prefetched
	Newest   uint64    `json:"newest"`        // the source's newest, as far as is known
	Made     time.Time `json:"made,omitzero"` // when that was made
	// Behind is since when there is one that is not here, by this host's clock.
	Behind time.Time `json:"behind,omitzero"`
	// Coming is the snapshot that is being brought, and Missing what of it is not here yet.
	Coming   uint64      `json:"coming,omitempty"`
	Missing  store.Count `json:"missing"`
	Heard    time.Time   `json:"heard,omitzero"` // of the source, last
	Prefetch bool        `json:"prefetch"`
	Reason   string      `json:"reason,omitempty"` // why it is not further
}

// Bounds of the wait after a failure.
const (
	followFirst = 500 * time.Millisecond
	followMost  = 15 * time.Second
	// collectEvery is how often what is needed no more is collected, at most.
	collectEvery = 10 * time.Minute
)

func followsDir(state string) string { return filepath.Join(state, "follows") }

func (r *followRecord) name() string { return r.Key + "-" + r.Service }

func (d *daemon) followFile(r *followRecord) string {
	return filepath.Join(followsDir(d.State), r.name()+".json")
}

// followOp begins to follow a service, or says anew how.
func (d *daemon) followOp(ctx context.Context, c control.Call, out control.Stream) (any, error) {
	start := time.Now()
	o, err := d.open(ctx, c.Snapshot)
	if err != nil {
		return nil, err
	}
	defer o.cancel()
	if err := d.keep(o); err != nil {
		return nil, err
	}
	out.Step("snapshot", time.Since(start), o.describe())
	r := followRecord{Source: c.Source, Key: o.key, Service: c.Service, Prefetch: !c.Force, Archive: c.Archive}
	unlock, err := d.lock(ctx, "follow "+r.name())
	if err != nil {
		return nil, err
	}
	defer unlock()
	b, err := json.Marshal(&r)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(followsDir(d.State), 0o700); err != nil {
		return nil, err
	}
	if err := renameio.WriteFile(d.followFile(&r), b, 0o600); err != nil {
		return nil, err
	}
	if err := d.unfollow(ctx, r.name()); err != nil {
		return nil, err
	}
	d.begin(r)
	return nil, nil
}

// unfollowOp ends it. What is stored stays.
func (d *daemon) unfollowOp(ctx context.Context, c control.Call, _ control.Stream) (any, error) {
	found := d.followOf(c.Snapshot)
	if found == nil && c.Source != "" { // by another of its names
		if s, err := d.sources.Find(ctx, c.Source); err == nil {
			d.mu.Lock()
			found = d.follows[(&followRecord{Key: s.Fingerprint.ID(), Service: c.Service}).name()]
			d.mu.Unlock()
		}
	}
	if found == nil {
		return nil, fmt.Errorf("service %s is not followed here: %w", strings.TrimPrefix(c.Source+"/"+c.Service, "/"), manifest.ErrNotFound)
	}
	unlock, err := d.lock(ctx, "follow "+found.name())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := os.Remove(d.followFile(&found.followRecord)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return nil, d.unfollow(ctx, found.name())
}

// followOf returns what follows a service, or nil. Without a source it may be of any.
func (d *daemon) followOf(s control.Snapshot) *follow {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.follows {
		if f.Service == s.Service && (s.Source == "" || s.Source == f.Source) {
			return f
		}
	}
	return nil
}

// unfollow ends what follows, if something does.
func (d *daemon) unfollow(ctx context.Context, name string) error {
	d.mu.Lock()
	f := d.follows[name]
	delete(d.follows, name)
	d.mu.Unlock()
	if f == nil {
		return nil
	}
	f.cancel()
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// resume begins again what an earlier daemon followed.
func (d *daemon) resume() error {
	list, err := os.ReadDir(followsDir(d.State))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range list {
		name := filepath.Join(followsDir(d.State), e.Name())
		b, err := os.ReadFile(name)
		var r followRecord
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err == nil && (!manifest.ValidService(r.Service) || r.name()+".json" != e.Name()) {
			err = manifest.ErrInvalid
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		d.begin(r)
	}
	return errors.Join(errs...)
}

// begin follows in the background.
func (d *daemon) begin(r followRecord) {
	ctx, cancel := context.WithCancel(d.ctx)
	f := &follow{followRecord: r, cancel: cancel, done: make(chan struct{}), state: Following{Prefetch: r.Prefetch}}
	d.mu.Lock()
	d.follows[r.name()] = f
	d.mu.Unlock()
	d.work.Go(func() {
		defer close(f.done)
		d.keepUp(ctx, f, manifest.Digest{})
	})
}

// keepUp follows until ctx ends. have is the digest of the snapshot that is here as a
// whole, or that the view shows; zero: none.
func (d *daemon) keepUp(ctx context.Context, f *follow, have manifest.Digest) {
	pause, collected := followFirst, time.Now()
	for ctx.Err() == nil {
		asked := time.Now()
		now, err := d.next(ctx, f, have)
		if err == nil && now == have && time.Since(asked) < followFirst {
			await(ctx, followFirst) // a source that does not make us wait would keep us busy
		}
		if err == nil {
			pause = followFirst
		}
		if err == nil && now != have {
			have = now
			if time.Since(collected) > collectEvery && d.calls.Load() == 0 {
				collected = time.Now()
				if _, err := d.collect(ctx, nil); err != nil {
					d.Log.Warn("collect", "error", err)
				}
			}
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		d.mu.Lock()
		first := f.state.Reason == ""
		f.state.Reason = err.Error()
		d.mu.Unlock()
		if first {
			d.Log.Warn("following", "source", f.Source, "service", f.Service, "error", err)
		}
		await(ctx, pause)
		pause = min(2*pause, followMost)
	}
}

// await waits for so long, or until ctx ends.
func await(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// next waits until the source has another snapshot than the one of the digest have, and
// brings that here. It returns its digest, or have if there is none yet.
func (d *daemon) next(ctx context.Context, f *follow, have manifest.Digest) (manifest.Digest, error) {
	info, err := d.awaitNewest(ctx, f, have)
	if err != nil {
		return have, err
	}
	if info.Digest == have {
		return have, nil
	}
	start := time.Now()
	d.mu.Lock()
	here := f.state.Sequence
	d.mu.Unlock()
	o, err := d.openSince(ctx, control.Snapshot{Source: f.Source, Ref: manifest.Ref{Service: f.Service}, Archive: f.Archive}, here)
	if err != nil {
		return have, err
	}
	defer o.cancel()
	if o.offline != nil && o.from == "" {
		return have, o.offline
	}
	digest, err := o.snapshot.Digest()
	if err != nil {
		return have, err
	}
	d.coming(f, o)
	defer d.coming(f, nil)
	if f.show != nil {
		err := f.show(ctx, o)
		if o.fresh != nil {
			o.fresh.Forget()
		}
		if err != nil {
			return have, fmt.Errorf("snapshot %d: %w", o.snapshot.Sequence, err)
		}
	}
	if err := d.keep(o); err != nil {
		return have, err
	}
	if f.show == nil && f.Prefetch {
		if err := f.bringer.bring(ctx, o); err != nil {
			return have, fmt.Errorf("snapshot %d: %w", o.snapshot.Sequence, err)
		}
	}
	d.mu.Lock()
	f.state.Sequence, f.state.Reason, f.state.Behind = o.snapshot.Sequence, "", time.Time{}
	d.mu.Unlock()
	d.Log.Debug("followed", "source", f.Source, "service", f.Service, "snapshot", o.snapshot.Sequence, "took", time.Since(start), "behind", time.Since(time.Unix(0, o.snapshot.Created)))
	return digest, nil
}

// awaitNewest waits until the source has another snapshot than the one of the digest have;
// or, if it does not answer, for what other standbys have heard of it since.
func (d *daemon) awaitNewest(ctx context.Context, f *follow, have manifest.Digest) (info rpc.ServiceInfo, err error) {
	w, _, err := d.find(ctx, f.Source)
	if err == nil {
		info, err = w.demand.Await(ctx, f.Service, have)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		for _, w := range d.clients {
			if v := w.offer(f.Key, f.Service); v != nil && v.Sequence > f.state.Sequence {
				f.state.Newest, f.state.Made = v.Sequence, v.Created
				if f.state.Behind.IsZero() {
					f.state.Behind = time.Now()
				}
				return *v, nil
			}
		}
		return info, err
	}
	f.state.Newest, f.state.Made, f.state.Heard = info.Sequence, info.Created, time.Now()
	if info.Digest == have {
		f.state.Reason = ""
	} else if f.state.Behind.IsZero() {
		f.state.Behind = time.Now()
	}
	return info, nil
}

// coming notes which snapshot a follow is bringing: what it needs is not collected.
func (d *daemon) coming(f *follow, o *opened) {
	d.mu.Lock()
	f.coming = o
	d.mu.Unlock()
}

// complete returns the newest stored snapshot of a followed service of which all content
// is here: when the source is lost while it sends one, the one before is better than half.
func (d *daemon) complete(ctx context.Context, key, service string, newest *manifest.Snapshot) *manifest.Snapshot {
	d.mu.Lock()
	f := d.follows[(&followRecord{Key: key, Service: service}).name()]
	d.mu.Unlock()
	if f == nil || !f.Prefetch {
		return newest
	}
	refs, err := d.store.Snapshots()
	if err != nil {
		return newest
	}
	for _, r := range slices.Backward(refs) {
		if r.Source != key || r.Service != service {
			continue
		}
		s, err := d.store.LoadSnapshotAt(key, service, r.Sequence)
		if err != nil {
			continue
		}
		if t, err := d.store.Reader().Tally(ctx, s); err == nil && t.Detached {
			if s.Sequence != newest.Sequence {
				d.Log.Warn("the newest snapshot is not complete here; an earlier one is", "service", service, "newest", newest.Sequence, "used", s.Sequence)
			}
			return s
		}
	}
	return newest
}

// followed returns how far the follows are, and what of each is stored here.
func (d *daemon) followed(ctx context.Context) ([]Status, error) {
	d.mu.Lock()
	var all []Status
	var coming []*opened
	for _, f := range d.follows {
		state := f.state
		s := Status{Source: f.Source, Service: f.Service, Sequence: state.Sequence, State: "followed", Reason: state.Reason, Following: &state, key: f.Key}
		if f.coming != nil {
			s.Rate, state.Coming = f.coming.reader.Rate(), f.coming.snapshot.Sequence
		}
		all, coming = append(all, s), append(coming, f.coming)
	}
	d.mu.Unlock()
	for i := range all {
		s := &all[i]
		if o := coming[i]; o != nil {
			t, err := o.reader.Tally(ctx, o.snapshot)
			if err != nil {
				return nil, err
			}
			s.Following.Missing = store.Count{Files: t.Missing.Files + t.Partial.Files, Bytes: t.Missing.Bytes}
		}
		snap, err := d.store.LoadSnapshotAt(s.key, s.Service, s.Sequence)
		if errors.Is(err, manifest.ErrNotFound) {
			continue // the first has not come yet
		}
		if err == nil {
			s.Sequence = snap.Sequence
			s.Content, err = d.tally(ctx, s.key, d.store.Reader(), snap)
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
