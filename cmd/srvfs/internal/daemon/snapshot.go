package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"srvfs/fs"
	"srvfs/manifest"
	"srvfs/rpc"
	"srvfs/store"
)

// An opened is a snapshot and what reads its content.
type opened struct {
	snapshot *manifest.Snapshot
	reader   *store.Reader
	key      string // the source's ID, whatever name or address it was called by
	offline  error  // why the source could not be asked; nil if it was
}

// patience is how long a source may take to name its newest snapshot when one
// is stored here that can be used instead.
const patience = 2 * time.Second

// find returns the connection to a source, and its ID.
func (d *daemon) find(ctx context.Context, source string) (c *rpc.Client, key string, err error) {
	s, err := d.sources.Find(ctx, source)
	if err != nil {
		return nil, "", err
	}
	c, err = d.client(s)
	return c, s.Fingerprint.ID(), err
}

// reader returns what reads content from a source.
func (d *daemon) reader(ctx context.Context, source string) (*store.Reader, error) {
	c, _, err := d.find(ctx, source)
	if err != nil {
		return nil, err
	}
	return d.store.Reader(store.Source{Name: source, Origin: c}), nil
}

// latest returns the newest snapshot of a service: the source's, or, if that
// can't be asked, the one stored here.
func (d *daemon) latest(ctx context.Context, source, service string) (*opened, error) {
	if !manifest.ValidService(service) {
		return nil, fmt.Errorf("service name %.80q: %w", service, manifest.ErrInvalid)
	}
	c, key, err := d.find(ctx, source)
	if err != nil {
		return nil, err
	}
	o := &opened{key: key, reader: d.store.Reader(store.Source{Name: source, Origin: c})}
	stored, storedErr := d.store.LoadSnapshot(key, service)
	if storedErr != nil && !errors.Is(storedErr, manifest.ErrNotFound) {
		d.Log.Warn("stored snapshot", "source", source, "service", service, "error", storedErr)
	}
	ask, cancel := ctx, func() {}
	if stored != nil {
		ask, cancel = context.WithTimeout(ctx, patience)
	}
	o.snapshot, _, o.offline = c.Snapshot(ask, service, 0)
	cancel()
	if o.offline != nil {
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case stored == nil:
			return nil, fmt.Errorf("service %s of %s: %w (and no snapshot of it is stored here)", service, source, o.offline)
		}
		o.snapshot = stored
		if !errors.Is(o.offline, manifest.ErrUnavailable) {
			d.Log.Warn("the source refuses; using the snapshot stored here", "source", source, "service", service, "error", o.offline)
		}
		return o, nil
	}
	if o.snapshot.Service != service {
		return nil, fmt.Errorf("source %s answered with a snapshot of %q when asked for %q: %w", source, o.snapshot.Service, service, manifest.ErrInvalid)
	}
	return o, d.store.SaveSnapshot(key, o.snapshot)
}

// prepare brings in what the view needs at once: the root directory and the
// pages that the profile leads through, in one batch. What is missing then is
// fetched when it is looked up.
func (o *opened) prepare(ctx context.Context) error {
	want := append([]manifest.Digest{o.snapshot.Root.Digest}, o.snapshot.Metadata...)
	if _, err := o.reader.Meta(ctx, want); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, rootErr := o.reader.Meta(ctx, want[:1]); rootErr != nil {
			return fmt.Errorf("root directory of %s: %w", o.snapshot.Service, rootErr)
		}
	}
	return nil
}

// content joins a store.Reader to the interfaces that package fs reads
// through.
type content struct{ *store.Reader }

func (c content) Open(ctx context.Context, of manifest.Content) (fs.File, error) {
	f, err := c.Reader.Open(ctx, of)
	if err != nil {
		return nil, err // a nil *store.File must not become a File that is not nil
	}
	return f, nil
}

// describe says where a snapshot came from, for a step's detail.
func (o *opened) describe() string {
	s := o.snapshot
	text := fmt.Sprintf("snapshot %d of %s, %s", s.Sequence, s.Service, time.Unix(0, s.Created).Format(time.DateTime))
	if o.offline != nil {
		text += " (the source can't be asked: using what is stored here)"
	}
	return text
}
