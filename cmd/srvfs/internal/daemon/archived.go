package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/store"
	"srvfs/store/archive"
)

// An archived is an archive as an origin. It is opened when something is asked of it for
// the first time, and if that fails with the next request: it may be on a disk that is
// not there yet, or in a registry that is down.
type archived struct {
	control.Archive
	d      *daemon
	health store.Health

	mu      sync.Mutex
	opened  *archive.Archive
	at      time.Time          // when it was opened
	retired []*archive.Archive // what reads from them may go on
}

var _ manifest.Batcher = (*archived)(nil)

// archived returns the archive that is named. All that read from it share one.
func (d *daemon) archived(a control.Archive) *archived {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.archives == nil {
		d.archives = map[control.Archive]*archived{}
	}
	if d.archives[a] == nil {
		d.archives[a] = &archived{Archive: a, d: d}
	}
	return d.archives[a]
}

// open opens the archive, or returns what was opened not longer ago than the age: an
// export may have added to it since.
func (a *archived) open(ctx context.Context, age time.Duration) (*archive.Archive, error) {
	ctx, cancel := context.WithTimeout(ctx, a.d.deadline())
	defer cancel()
	unlock, err := a.d.lock(ctx, "archive "+a.Ref)
	if err != nil {
		return nil, fmt.Errorf("archive %s: does not open: %w", a.Ref, manifest.ErrUnavailable)
	}
	defer unlock()
	a.mu.Lock()
	opened, at := a.opened, a.at
	a.mu.Unlock()
	if opened != nil && time.Since(at) < age {
		return opened, nil
	}
	opened, err = archive.Open(ctx, a.Ref, archive.OpenOptions{Identity: a.Identity, Insecure: a.Insecure})
	if err != nil {
		if errors.Is(err, manifest.ErrCorrupt) {
			err = fmt.Errorf("%w; copy it here again, or export it anew", err)
		}
		return nil, err
	}
	a.health.Connected()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.opened != nil {
		a.retired = append(a.retired, a.opened)
	}
	a.opened, a.at = opened, time.Now()
	return opened, nil
}

// origin is open for who reads content. Of an archive that does not open it says that
// it can't be asked, whatever the reason is: that says nothing of one content.
func (a *archived) origin(ctx context.Context) (*archive.Archive, error) {
	opened, err := a.open(ctx, 1<<62)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s: %w", err.Error(), manifest.ErrUnavailable)
	}
	return opened, err
}

// Fetch implements [manifest.Origin].
func (a *archived) Fetch(ctx context.Context, digest manifest.Digest, off, n int64) (io.ReadCloser, error) {
	o, err := a.origin(ctx)
	if err != nil {
		return nil, err
	}
	return o.Fetch(ctx, digest, off, n)
}

// FetchBatch implements [manifest.Batcher].
func (a *archived) FetchBatch(ctx context.Context, want []manifest.Range, yield func(i int, data []byte, err error) error) error {
	o, err := a.origin(ctx)
	if err != nil {
		return err
	}
	return o.FetchBatch(ctx, want, yield)
}

func (a *archived) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, o := range append(a.retired, a.opened) {
		if o != nil {
			errs = append(errs, o.Close())
		}
	}
	a.opened, a.retired = nil, nil
	return errors.Join(errs...)
}

func (d *daemon) deadline() time.Duration {
	if d.Deadline > 0 {
		return d.Deadline
	}
	return store.DefaultDeadline
}

func (d *daemon) closeArchives() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, a := range d.archives {
		errs = append(errs, a.close())
	}
	return errors.Join(errs...)
}

// justOpened is how old an open archive may be for one command not to open it again.
const justOpened = 5 * time.Second

// nameArchived returns the service that an archive is of; if it can't be opened, as it
// is remembered here.
func (d *daemon) nameArchived(ctx context.Context, a control.Archive) (string, error) {
	opened, err := d.archived(a).open(ctx, justOpened)
	if err == nil {
		return opened.Service(), nil
	}
	if refs, listErr := d.store.Snapshots(); listErr == nil && ctx.Err() == nil {
		for _, r := range refs {
			if r.Source == archive.RefID(a.Ref) {
				return r.Service, nil
			}
		}
	}
	return "", err
}

// openArchived returns the snapshot that ref names, of a service that comes from an
// archive alone; if that can't be read, from what is stored here.
func (d *daemon) openArchived(ctx context.Context, from *origins, ref manifest.Ref) (*opened, error) {
	stored, storedErr := d.storedAs(from.key, ref)
	if stored != nil && ref.Sequence != 0 {
		return d.opened(from, stored), nil
	}
	if storedErr != nil && !errors.Is(storedErr, manifest.ErrNotFound) {
		d.Log.Warn("stored snapshot", "archive", from.name, "service", ref.Service, "error", storedErr)
	}
	snapshot, err := d.snapshotIn(ctx, from.archive, ref)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case stored == nil:
		return nil, err
	default:
		o := d.opened(from, stored)
		o.offline = err
		return o, nil
	}
	if err := d.makeWay(from, snapshot); err != nil {
		return nil, err
	}
	o := d.opened(from, snapshot)
	o.unsaved, o.from = true, "archive "+from.archive.Ref
	return o, nil
}

// instead returns the snapshot that ref names from the archive, since nobody else has
// it; offline is why the source does not give it.
func (d *daemon) instead(ctx context.Context, from *origins, ref manifest.Ref, offline error) (*opened, error) {
	snapshot, err := d.snapshotIn(ctx, from.archive, ref)
	if err != nil {
		return nil, fmt.Errorf("service %s of %s: %w (no snapshot of it is stored here, and %w)", from.service, from.name, offline, err)
	}
	o := d.opened(from, snapshot)
	o.unsaved, o.from, o.offline = true, "archive "+from.archive.Ref, offline
	return o, nil
}

func (d *daemon) snapshotIn(ctx context.Context, a *archived, ref manifest.Ref) (*manifest.Snapshot, error) {
	opened, err := a.open(ctx, justOpened)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.deadline())
	defer cancel()
	return opened.Snapshot(ctx, ref)
}

// makeWay forgets the stored snapshots of an archive that was made anew, so that its
// numbers mean others now, unless something stands on them.
func (d *daemon) makeWay(from *origins, snapshot *manifest.Snapshot) error {
	stored, err := d.store.LoadSnapshotAt(from.key, snapshot.Service, snapshot.Sequence)
	if errors.Is(err, manifest.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	a, err := stored.Digest()
	if err != nil {
		return err
	}
	b, err := snapshot.Digest()
	if err != nil || a == b {
		return err
	}
	services, err := d.consumers(from.key, snapshot.Service)
	if err != nil {
		return err
	}
	if len(services) > 0 {
		return fmt.Errorf("archive %s was made anew since service %s here was run from it, and its snapshot %d is another one now: `srvfs remove %s` first: %w",
			from.archive.Ref, services[0].Name, snapshot.Sequence, services[0].Name, manifest.ErrInvalid)
	}
	return d.store.RemoveSnapshots(from.key, snapshot.Service)
}
