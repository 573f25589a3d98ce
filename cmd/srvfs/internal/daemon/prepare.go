package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/service"
	"srvfs/store"
)

// What a service is known to write to is prepared: a private copy lies in
// prepared/KEY/SERVICE until a service that is made of the snapshot takes it into
// its upper. The folder is one for all services of that snapshot: the first one
// to start takes the copies, and for another one overlayfs makes its own in the
// background. A service that runs already has its files copied up in its root.

// prepareMin is the size from which a file is prepared, in bytes. overlayfs
// copies a smaller one in about a millisecond.
const prepareMin = 1 << 20

func preparedDir(state string) string { return filepath.Join(state, "prepared") }

// copiesOf returns the private copies for the services of a snapshot.
func (d *daemon) copiesOf(key, service string) *store.Copies {
	dir := filepath.Join(preparedDir(d.State), key, service)
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.copies[dir]
	if c == nil {
		c = d.store.Copies(dir)
		d.copies[dir] = c
	}
	return c
}

// written returns what the service writes to. Without knowing it a service starts
// all the same, so no directory is waited for longer than a moment.
func (d *daemon) written(ctx context.Context, o *opened) []store.Written {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	all, err := o.reader.Written(ctx, o.snapshot)
	if err != nil {
		d.Log.Warn("what the service writes to is not known here", "service", o.snapshot.Service, "error", err)
	}
	return all
}

// ready returns what is to be put into the upper of a service that is new here.
func (d *daemon) ready(r *serviceRecord, written []store.Written) []service.Prepared {
	var all []service.Prepared
	copies := d.copiesOf(r.Key, r.Service)
	for _, w := range written {
		p := service.Prepared{Path: w.Path, Entry: w.Entry, Folders: w.Folders}
		switch {
		case w.Fresh:
		case r.NoPrepare || !prepares(&w):
			continue
		default:
			p.Take = func(to string) (bool, error) { return copies.Take(w.Entry.Content(w.Path), to) }
		}
		all = append(all, p)
	}
	return all
}

// prepares reports whether a file that is written to is worth a copy, and can
// have one: a copy of a file with several names would be a file of its own.
func prepares(w *store.Written) bool {
	return !w.Fresh && w.Entry.Size >= prepareMin && w.Entry.Links == 1
}

// A Preparation is the outcome of preparing what a service writes to.
type Preparation struct {
	store.Count        // copies that are ready, and the bytes that they take on disk
	Wrote       int64  `json:"wrote"`          // bytes that were written for it now
	Note        string `json:"note,omitempty"` // what is not prepared, and why
}

// consumers returns the services here that are made of a source's service.
func (d *daemon) consumers(key, service string) ([]*serviceRecord, error) {
	all, err := d.records()
	var of []*serviceRecord
	for _, r := range all {
		if r.Key == key && r.Service == service {
			of = append(of, r)
		}
	}
	return of, err
}

// remember notes in the services' records whether they are prepared for, if the
// call says it, and returns what holds now. Where no service is known yet, it is
// what the call says, and otherwise yes.
func (d *daemon) remember(c control.Call, o *opened) (prepare bool, err error) {
	services, err := d.consumers(o.key, c.Service)
	if err != nil {
		return false, err
	}
	if len(services) == 0 {
		return c.Prepare == nil || *c.Prepare, nil
	}
	for _, r := range services {
		if c.Prepare != nil && (c.Name == "" || c.Name == r.Name) && r.NoPrepare == *c.Prepare {
			r.NoPrepare = !*c.Prepare
			if err := d.save(r); err != nil {
				return false, err
			}
		}
		prepare = prepare || !r.NoPrepare
	}
	return prepare, nil
}

// prepareWritten prepares what the services of a snapshot write to, as far as it is
// local: copies for those that have not run yet, and in the roots of those that
// run. That something can't be prepared is no error: it is told.
func (d *daemon) prepareWritten(ctx context.Context, o *opened, on bool) (p Preparation, err error) {
	copies := d.copiesOf(o.key, o.snapshot.Service)
	defer func() { p.Count = copies.Usage() }()
	if !on {
		p.Note = "turned off (--no-prepare)"
		return p, copies.Retain(nil)
	}
	written, err := o.reader.Written(ctx, o.snapshot)
	if err != nil {
		return p, err
	}
	waiting, err := d.waiting(ctx, o, written)
	if err != nil {
		return p, err
	}
	if !waiting {
		return p, copies.Retain(nil)
	}
	if d.store.Reflinks(d.State) {
		p.Note = "no copies needed: the state folder's file system has reflinks"
		return p, copies.Retain(nil)
	}
	var paths, notes []string
	for i := range written {
		if w := &written[i]; prepares(w) {
			paths = append(paths, w.Path)
		} else if w.Entry.Links > 1 && w.Entry.Size >= prepareMin {
			notes = append(notes, fmt.Sprintf("%s has %d names: its first write waits for a copy", w.Path, w.Entry.Links))
		}
	}
	if err := copies.Retain(paths); err != nil {
		return p, err
	}
	for i := range written {
		w := &written[i]
		if !prepares(w) {
			continue
		}
		n, err := copies.Update(ctx, o.reader, w.Entry.Content(w.Path))
		p.Wrote += n
		if ctx.Err() != nil {
			return p, ctx.Err()
		}
		if err != nil {
			notes = append(notes, err.Error())
		}
	}
	p.Note = strings.Join(notes, "; ")
	if p.Note != "" {
		d.Log.Warn("not all that the service writes to is prepared", "service", o.snapshot.Service, "reason", p.Note)
	}
	return p, nil
}

// waiting reports whether a copy of what is written would be used: by a service
// that has no upper yet, or, if none is known here, by the first one. In the roots
// of those that run it has overlayfs copy the files.
func (d *daemon) waiting(ctx context.Context, o *opened, written []store.Written) (bool, error) {
	services, err := d.consumers(o.key, o.snapshot.Service)
	if err != nil {
		return false, err
	}
	waiting := len(services) == 0
	for _, r := range services {
		if r.NoPrepare {
			continue
		}
		d.mu.Lock()
		run := d.services[r.Name]
		d.mu.Unlock()
		if run != nil {
			if run.snapshot.Root.Digest == o.snapshot.Root.Digest {
				d.copyUp(ctx, run, written)
			}
			continue
		}
		if state, err := service.Inspect(d.rootDir(r.Name)); errors.Is(err, fs.ErrNotExist) || err == nil && state.Snapshot != o.snapshot.Root.Digest {
			waiting = true // it never ran, or is to be moved to this snapshot
		}
	}
	return waiting, nil
}

// copyUp has the files copied into a running service's upper that it writes to and
// that are local.
func (d *daemon) copyUp(ctx context.Context, r *running, written []store.Written) {
	var paths []string
	for i := range written {
		if w := &written[i]; prepares(w) && d.store.Has(w.Entry.Digest) {
			paths = append(paths, w.Path)
		}
	}
	if len(paths) == 0 {
		return
	}
	if err := r.CopyUp(ctx, paths); err != nil && ctx.Err() == nil {
		d.Log.Warn("prepare what the service writes to", "error", err)
	}
}

// copyUpNew is copyUp for a service that was started a while ago, if its upper is
// new: what it found no copy of may be local by now.
func (d *daemon) copyUpNew(record *serviceRecord, r *running, written []store.Written) {
	if _, fresh := r.Placed(); fresh && !record.NoPrepare {
		d.copyUp(r.background, r, written)
	}
}

// prepareAgain makes new copies in the background after a start that failed: what
// it had taken went with its upper.
func (d *daemon) prepareAgain(record *serviceRecord, o *opened) {
	if record.NoPrepare {
		return
	}
	again := *o
	again.reader = d.store.Reader()
	d.work.Go(func() {
		if _, err := d.prepareWritten(d.ctx, &again, true); err != nil && d.ctx.Err() == nil {
			d.Log.Warn("prepare what the service writes to", "service", record.Service, "error", err)
		}
	})
}

// prepareStep is prepareWritten as a step of a command.
func (d *daemon) prepareStep(ctx context.Context, c control.Call, o *opened, out control.Stream) (Preparation, error) {
	start := time.Now()
	on, err := d.remember(c, o)
	if err != nil {
		return Preparation{}, err
	}
	p, err := d.prepareWritten(ctx, o, on)
	if err == nil {
		out.Step("prepared", time.Since(start), p.Describe())
	}
	return p, err
}

// Describe says it for people.
func (p *Preparation) Describe() string {
	text := fmt.Sprintf("%s, %s", cli.Count(p.Files, "file"), cli.Bytes(p.Bytes))
	if p.Note != "" {
		text += "; " + p.Note
	}
	return text
}

// dropCopies removes the copies of snapshots that are stored here no more, and
// returns the bytes that this gave back.
func (d *daemon) dropCopies() (freed int64, err error) {
	refs, err := d.store.Snapshots()
	if err != nil {
		return 0, err
	}
	stored := map[string]bool{}
	for _, r := range refs {
		stored[filepath.Join(r.Source, r.Service)] = true
	}
	return freed, d.eachPrepared(func(key, service string) error {
		if stored[filepath.Join(key, service)] {
			return nil
		}
		copies := d.copiesOf(key, service)
		freed += copies.Usage().Bytes
		if err := copies.Retain(nil); err != nil {
			return err
		}
		_ = os.Remove(filepath.Join(preparedDir(d.State), key)) // if that was the last one
		return nil
	})
}

// eachPrepared calls f with each snapshot that has a folder of copies.
func (d *daemon) eachPrepared(f func(key, service string) error) error {
	keys, err := os.ReadDir(preparedDir(d.State))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, k := range keys {
		services, err := os.ReadDir(filepath.Join(preparedDir(d.State), k.Name()))
		if err != nil {
			return err
		}
		for _, s := range services {
			if !manifest.ValidService(s.Name()) {
				continue
			}
			if err := f(k.Name(), s.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}
