package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"srvfs/cmd/srvfs/internal/control"
	"srvfs/fs"
	"srvfs/manifest"
	"srvfs/rpc"
	"srvfs/store"
)

// An opened is a snapshot and what reads its content.
type opened struct {
	snapshot *manifest.Snapshot
	reader   *store.Reader
	key      string       // the source's ID, whatever name or address it was called by
	fresh    *rpc.Opening // what came from the source, or a standby, just now; or nil
	unsaved  bool         // it came just now
	from     string       // where it came from instead of the source; empty: from there, or the store
	offline  error        // why the source could not be asked; nil if it was

	// Of everything that is done for it in the background. It ends with the view
	// that shows it, or when there will be none.
	background context.Context
	cancel     context.CancelFunc
}

// patience is how long a source may take to name its newest snapshot when one
// is stored here that can be used instead.
const patience = 2 * time.Second

// open returns the snapshot that is named. One with a number never changes, so that
// the one that is stored here will do. Else the source is asked, and if it can't be,
// other standbys, then what is stored here is used, then what is in the archive.
func (d *daemon) open(ctx context.Context, of control.Snapshot) (_ *opened, err error) {
	source, service := of.Source, of.Service
	if !manifest.ValidService(service) {
		return nil, fmt.Errorf("service name %.80q: %w", service, manifest.ErrInvalid)
	}
	from, err := d.from(ctx, of)
	if err != nil {
		return nil, err
	}
	if of.FromArchive() {
		return d.openArchived(ctx, from, of.Ref)
	}
	stored, storedErr := d.storedAs(from.key, of.Ref)
	if storedErr != nil && !errors.Is(storedErr, manifest.ErrNotFound) {
		d.Log.Warn("stored snapshot", "source", source, "service", service, "error", storedErr)
	}
	if stored != nil && of.Sequence != 0 {
		return d.opened(from, stored), nil
	}
	// Not for too long if there may be something to use instead.
	short := stored != nil || from.archive != nil || d.standbys()
	opening, offline := d.askSource(ctx, from, of.Ref, short)
	if offline == nil {
		from.opening, from.openingFrom = opening, from.ways
		return d.receive(from, opening), nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	newer := uint64(0)
	if stored != nil {
		newer = stored.Sequence
	}
	if w, opening, err := d.openFrom(ctx, from, of.Ref, newer); err == nil {
		from.opening, from.openingFrom = opening, w
		o := d.receive(from, opening)
		o.from, o.offline = "standby "+w.source.Name, offline
		return o, nil
	} else if ctx.Err() != nil {
		return nil, ctx.Err()
	} else if !errors.Is(err, manifest.ErrNotFound) {
		d.Log.Warn("other standbys", "source", source, "service", service, "error", err)
	}
	if short && stored == nil && from.archive == nil && errors.Is(offline, manifest.ErrUnavailable) {
		if opening, offline = d.askSource(ctx, from, of.Ref, false); offline == nil { // it is slow
			from.opening, from.openingFrom = opening, from.ways
			return d.receive(from, opening), nil
		}
	}
	switch {
	case stored == nil && from.archive != nil:
		return d.instead(ctx, from, of.Ref, offline)
	case stored == nil && !of.Newest():
		return nil, fmt.Errorf("service %s of %s: %w (and that snapshot is not stored here)", service, source, offline)
	case stored == nil:
		return nil, fmt.Errorf("service %s of %s: %w (and no snapshot of it is stored here)", service, source, offline)
	}
	if !errors.Is(offline, manifest.ErrUnavailable) {
		d.Log.Warn("the source refuses; using the snapshot stored here", "source", source, "service", service, "error", offline)
	}
	if of.Newest() {
		stored = d.complete(ctx, from.key, service, stored)
	}
	o := d.opened(from, stored)
	o.offline = offline
	return o, nil
}

// askSource asks the source for a snapshot, for a short time only if that is enough.
func (d *daemon) askSource(ctx context.Context, from *origins, ref manifest.Ref, short bool) (*rpc.Opening, error) {
	if from.ways == nil {
		return nil, fmt.Errorf("this host is not paired with %s: %w", from.name, manifest.ErrUnavailable)
	}
	ask, cancel := ctx, func() {}
	if short {
		ask, cancel = context.WithTimeout(ctx, patience)
	}
	defer cancel()
	opening, err := from.ways.demand.Open(ask, ref)
	if errors.Is(err, manifest.ErrUnavailable) && ctx.Err() == nil {
		from.ways.health.Failed(err)
	}
	return opening, err
}

// receive takes in what comes behind a snapshot.
func (d *daemon) receive(from *origins, opening *rpc.Opening) *opened {
	o := d.opened(from, opening.Snapshot)
	o.fresh, o.unsaved = opening, true
	d.work.Go(func() {
		if err := opening.Receive(o.background); err != nil && o.background.Err() == nil {
			d.Log.Warn("metadata behind the snapshot", "source", from.name, "service", from.service, "error", err)
		}
	})
	return o
}

// storedAs returns the snapshot of a source that ref names, as far as those go that
// are stored here.
func (d *daemon) storedAs(key string, ref manifest.Ref) (*manifest.Snapshot, error) {
	if ref.By == 0 {
		return d.store.LoadSnapshotAt(key, ref.Service, ref.Sequence)
	}
	refs, err := d.store.Snapshots()
	if err != nil {
		return nil, err
	}
	for _, r := range slices.Backward(refs) {
		if r.Source != key || r.Service != ref.Service {
			continue
		}
		if s, err := d.store.LoadSnapshotAt(key, r.Service, r.Sequence); err == nil && ref.Names(s.Sequence, s.Created) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("snapshot %s: %w", ref, manifest.ErrNotFound)
}

func (d *daemon) opened(from *origins, snapshot *manifest.Snapshot) *opened {
	o := &opened{key: from.key, snapshot: snapshot, reader: d.store.ReaderOf(from.list)}
	o.background, o.cancel = context.WithCancel(d.ctx)
	return o
}

// keep stores the snapshot if it came just now.
func (d *daemon) keep(o *opened) error {
	if !o.unsaved {
		return nil
	}
	return d.store.SaveSnapshot(o.key, o.snapshot)
}

// prepare brings in the root directory, without which there is no view, and
// begins to bring in the pages that the profile leads through, all in one batch,
// or as they come behind the snapshot. They are fetched when they are looked up at
// the latest.
func (d *daemon) prepare(ctx context.Context, o *opened) error {
	d.work.Go(func() {
		want := append([]manifest.Digest{o.snapshot.Root.Digest}, o.snapshot.Metadata...)
		if _, err := o.reader.Meta(o.background, want); err != nil && o.background.Err() == nil {
			d.Log.Warn("directories that the service will need", "service", o.snapshot.Service, "error", err)
		}
		if o.fresh != nil {
			o.fresh.Forget()
		}
	})
	if _, err := o.reader.Meta(ctx, []manifest.Digest{o.snapshot.Root.Digest}); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("root directory of %s: %w", o.snapshot.Service, err)
	}
	return nil
}

// content joins a store.Reader to the interfaces that package fs reads
// through.
type content struct{ *store.Reader }

var (
	_ fs.Content     = content{}
	_ fs.Holder      = content{}
	_ fs.Anticipator = content{}
)

func (c content) Open(ctx context.Context, of manifest.Content) (fs.File, error) {
	f, err := c.Reader.Open(ctx, of)
	if err != nil {
		return nil, err // a nil *store.File must not become a File that is not nil
	}
	return f, nil
}

func (c content) OpenHeld(of manifest.Content) (fs.File, bool) {
	f, ok := c.Reader.OpenHeld(of)
	if !ok {
		return nil, false
	}
	return f, true
}

// stream brings in what the service needs to start, in the background.
func (d *daemon) stream(o *opened) {
	d.work.Go(func() {
		start, before := time.Now(), d.store.Stats().FetchedBytes
		err := o.reader.Stream(o.background, o.snapshot)
		switch {
		case err != nil && o.background.Err() == nil:
			d.Log.Warn("content is fetched one by one", "service", o.snapshot.Service, "error", err)
		case err == nil:
			d.Log.Info("streamed what the start needs", "service", o.snapshot.Service, "took", time.Since(start), "bytes", d.store.Stats().FetchedBytes-before)
		}
	})
}

// match looks for identical local files in the background, and then does what is
// to follow, if anything.
func (d *daemon) match(o *opened, then func()) {
	d.work.Go(func() {
		if err := o.reader.Match(o.background, o.snapshot); err != nil && o.background.Err() == nil {
			d.Log.Warn("looking for identical local files", "service", o.snapshot.Service, "error", err)
		}
		if then != nil {
			then()
		}
	})
}

// describe says where a snapshot came from, for a step's detail.
func (o *opened) describe() string {
	s := o.snapshot
	text := fmt.Sprintf("snapshot %d of %s, %s", s.Sequence, s.Service, time.Unix(0, s.Created).Format(time.DateTime))
	switch {
	case o.from != "" && o.offline != nil:
		text += ", from " + o.from + " (the source can't be asked)"
	case o.from != "":
		text += ", from " + o.from
	case o.offline != nil:
		text += " (the source can't be asked: using what is stored here)"
	}
	return text
}
