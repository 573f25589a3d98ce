package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/sandbox"
	"srvfs/service"
	"srvfs/store/plain"
)

// A service whose snapshot is detached can run without FUSE: the lower layer of its root
// is then a tree on the plain disk, of stubs that the kernel fills from the store's blobs,
// or of copies where the kernel has no data-only layers. Nothing of it needs this daemon,
// so the service goes on when that is killed, and the next one takes it over.

// plainDir is where the tree of a service's snapshot lies; it is made whole or not at all,
// so one that is there is whole.
func (d *daemon) plainDir(name string, layered bool, s *manifest.Snapshot) string {
	kind := "copies"
	if layered {
		kind = "stubs"
	}
	return filepath.Join(d.dir(name), "plain", kind+"-"+s.Root.Digest.Hex()[:16])
}

// plainLayers are those of a root without a view.
func (d *daemon) plainLayers(name string, layered bool, s *manifest.Snapshot) service.Layers {
	l := service.Layers{Tree: d.plainDir(name, layered, s)}
	if layered {
		l.Blobs = d.store.BlobDir()
	}
	return l
}

// checkDetached refuses what could not run without its origins. What came just now is
// stored first: a daemon that takes the service over must find it.
func (d *daemon) checkDetached(ctx context.Context, c control.Call, o *opened) error {
	if err := d.keep(o); err != nil {
		return err
	}
	t, err := d.tally(ctx, o.key, o.reader, o.snapshot)
	if err != nil || t.Detached {
		return err
	}
	missing := fmt.Sprintf("%s, %s", cli.Count(t.Missing.Files+t.Partial.Files, "file"), cli.Bytes(t.Missing.Bytes))
	if t.MissingMeta > 0 {
		missing += fmt.Sprintf(", %s", cli.Count(t.MissingMeta, "page"))
	}
	ref := manifest.Ref{Service: c.Service, Sequence: o.snapshot.Sequence}
	return fmt.Errorf("snapshot %d of %s is not detached: %s are missing here, and without FUSE nothing brings them in: `srvfs prefetch %s` first", o.snapshot.Sequence, c.Service, missing, strings.TrimPrefix(c.Source+"/", "/")+ref.String())
}

// bringUpPlain is bringUp without a view.
func (d *daemon) bringUpPlain(ctx context.Context, c control.Call, o *opened, helper *sandbox.Helper, ready []service.Prepared, out control.Stream) (*running, error) {
	start := time.Now()
	layered, why, err := d.layered()
	if err != nil {
		return nil, err
	}
	if !layered {
		d.Log.Warn("content is copied", "service", c.Name, "reason", why)
	}
	if err := d.writePlain(ctx, c.Name, layered, o); err != nil {
		return nil, err
	}
	out.Step("tree", time.Since(start), "")
	inst, err := d.startOn(ctx, c, o, d.plainLayers(c.Name, layered, o.snapshot), ready, helper, out)
	if err != nil {
		return nil, err
	}
	return &running{Instance: inst, opened: *o, source: c.Source}, nil
}

// writePlain makes the tree, if it is not there from an earlier run, and removes others.
func (d *daemon) writePlain(ctx context.Context, name string, layered bool, o *opened) error {
	dir := d.plainDir(name, layered, o.snapshot)
	list, err := os.ReadDir(filepath.Dir(dir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	there := false
	for _, e := range list {
		if e.Name() == filepath.Base(dir) {
			there = true
		} else if err := os.RemoveAll(filepath.Join(filepath.Dir(dir), e.Name())); err != nil {
			return err
		}
	}
	if there {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	content := plain.Whole
	if layered {
		content = plain.Stubs
	}
	_, err = plain.Write(ctx, plain.Options{Snapshot: o.snapshot, Reader: o.reader, Dir: dir, Content: content})
	return err
}

// resumeMax is how long it may take to take one over: nobody is asked anything then.
const resumeMax = 10 * time.Second

// resumeServices takes over the services that have outlived an earlier daemon.
func (d *daemon) resumeServices(ctx context.Context) error {
	all, err := d.records()
	errs := []error{err}
	for _, r := range all {
		st, err := service.Inspect(d.rootDir(r.Name))
		if err != nil || !st.Outlives || !st.Stopped.IsZero() {
			continue // it never ran here, or ended in good order, or with its daemon
		}
		snap, err := d.stored(r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		o := d.opened(&origins{d: d, name: r.Source, key: r.Key, service: r.Service}, snap) // it is detached
		soon, cancel := context.WithTimeout(ctx, resumeMax)
		inst, err := service.Resume(soon, service.Options{Name: r.Name, Dir: d.rootDir(r.Name), Layers: d.plainLayers(r.Name, st.Layered, snap), Snapshot: snap, Log: d.Log, Outlive: true})
		cancel()
		if err != nil {
			o.cancel()
			errs = append(errs, err)
			continue
		}
		d.Log.Info("the service went on without a daemon, and is taken over", "name", r.Name)
		d.register(r.Name, &running{Instance: inst, opened: *o, source: r.Source})
	}
	return errors.Join(errs...)
}

// register holds a service that runs, and logs its end.
func (d *daemon) register(name string, r *running) {
	d.mu.Lock()
	d.services[name] = r
	d.mu.Unlock()
	d.work.Go(func() {
		<-r.Done()
		if err := r.Err(); err != nil {
			d.Log.Error("the service has ended by itself", "name", name, "error", err)
		}
	})
}

// letGo takes away what a service that has stopped stood on.
func (d *daemon) letGo(ctx context.Context, r *running) error {
	if r.view == nil {
		r.cancel()
		d.wake()
		return nil
	}
	return d.hide(ctx, r.view)
}
