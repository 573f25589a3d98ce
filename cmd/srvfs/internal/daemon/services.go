package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	view_fs "srvfs/fs"
	"srvfs/manifest"
	"srvfs/sandbox"
	"srvfs/service"
	"srvfs/store"
)

// A running is one service that was started here and not yet stopped; it may
// have ended by itself.
type running struct {
	*service.Instance
	opened
	source string // as it was called
	view   *view  // nil: the root stands on plain files
}

// A serviceRecord is what is kept of a service between its runs. The snapshot
// stays the one that its upper was written over until the user says --update.
type serviceRecord struct {
	Name     string `json:"name"`
	Source   string `json:"source"` // as it was called at the first run
	Key      string `json:"key"`    // its ID
	Service  string `json:"service"`
	Sequence uint64 `json:"sequence"`
	// NoPrepare: files that the service writes to are not prepared for it.
	NoPrepare bool `json:"no_prepare,omitempty"`
	// Archive is where content comes from when the source fails; nil: from nowhere.
	Archive *control.Archive `json:"archive,omitempty"`
}

// The folder of a service: its record, the mountpoint of its view, and what
// package service keeps.
func servicesDir(state string) string           { return filepath.Join(state, "services") }
func (d *daemon) dir(name string) string        { return filepath.Join(servicesDir(d.State), name) }
func (d *daemon) recordFile(name string) string { return filepath.Join(d.dir(name), "service.json") }
func (d *daemon) viewDir(name string) string    { return filepath.Join(d.dir(name), "view") }
func (d *daemon) rootDir(name string) string    { return filepath.Join(d.dir(name), "root") }
func (d *daemon) stubsDir(name string) string   { return filepath.Join(d.dir(name), "stubs") }

func (d *daemon) load(name string) (*serviceRecord, error) {
	if !manifest.ValidService(name) {
		return nil, fmt.Errorf("service name %.80q: %w", name, manifest.ErrInvalid)
	}
	b, err := os.ReadFile(d.recordFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no service %q has been run here; see `srvfs status`: %w", name, manifest.ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	r := &serviceRecord{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("record of service %s: %w: %w", name, err, manifest.ErrInvalid)
	}
	return r, nil
}

func (d *daemon) save(r *serviceRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return renameio.WriteFile(d.recordFile(r.Name), b, 0o600)
}

// stored returns the snapshot that a service here stands on.
func (d *daemon) stored(r *serviceRecord) (*manifest.Snapshot, error) {
	s, err := d.store.LoadSnapshotAt(r.Key, r.Service, r.Sequence)
	if err != nil {
		return nil, fmt.Errorf("stored snapshot of service %s: %w", r.Name, err)
	}
	return s, nil
}

// choose returns the snapshot to run: the one that the service had here, or the one
// that is named, or the latest, if it is new here or is to be updated.
func (d *daemon) choose(ctx context.Context, c control.Call, known *serviceRecord) (*opened, error) {
	if known == nil {
		return d.open(ctx, c.Snapshot)
	}
	if c.Update || !c.Newest() && c.Sequence != known.Sequence {
		o, err := d.open(ctx, c.Snapshot)
		if err != nil || o.snapshot.Sequence == known.Sequence && o.key == known.Key {
			return o, err
		}
		if !c.Force {
			o.cancel()
			return nil, fmt.Errorf("service %s stands on snapshot %d, and what it wrote here belongs to that; --discard gives it up and starts from snapshot %d", known.Name, known.Sequence, o.snapshot.Sequence)
		}
		if err := service.Remove(ctx, d.rootDir(known.Name)); err != nil {
			o.cancel()
			return nil, err
		}
		return o, nil
	}
	s, err := d.stored(known)
	if err != nil {
		return nil, err
	}
	// The source is not asked whether it has a newer one: it may be dead, and a
	// start at three in the morning does not wait for that.
	return d.opened(d.again(ctx, known.Source, known.Key, known.Service, c.Archive), s), nil
}

// Ran is the result of a run.
type Ran struct {
	Name    string        `json:"name"`
	LogFile string        `json:"log_file"`
	Ready   time.Duration `json:"ready"`   // from the command to the probes' answer, in nanoseconds
	Fetched int64         `json:"fetched"` // bytes of content that came over the wire meanwhile
	Layered bool          `json:"layered"`
	Note    string        `json:"note,omitempty"`
}

// same reports whether source is another name of the host that the service came
// from.
func (d *daemon) same(ctx context.Context, known *serviceRecord, source string) bool {
	if source == known.Source {
		return true
	}
	s, err := d.sources.Find(ctx, source)
	if errors.Is(err, manifest.ErrDenied) {
		return d.keyOf(ctx, source) == known.Key
	}
	return err == nil && s.Fingerprint.ID() == known.Key
}

// ended reports whether a service has ended by itself.
func ended(r *running) bool {
	select {
	case <-r.Done():
		return true
	default:
		return false
	}
}

func (d *daemon) runOp(ctx context.Context, c control.Call, out control.Stream) (any, error) {
	if c.Name == "" {
		c.Name = c.Service
	}
	if !manifest.ValidService(c.Name) {
		return nil, fmt.Errorf("service name %.80q: %w", c.Name, manifest.ErrInvalid)
	}
	unlock, err := d.lock(ctx, "service "+c.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d.mu.Lock()
	r := d.services[c.Name]
	d.mu.Unlock()
	if r != nil && ended(r) { // by itself; what is left of it makes room
		if err := d.end(ctx, c.Name, r, out); err != nil {
			return nil, err
		}
	} else if r != nil {
		return nil, fmt.Errorf("service %s is running already; see `srvfs status %s`", c.Name, c.Name)
	}
	known, err := d.load(c.Name)
	switch {
	case errors.Is(err, manifest.ErrNotFound) && c.Source != "":
		known = nil
	case err != nil:
		return nil, err
	case c.Source == "":
		c.Source, c.Service = known.Source, known.Service
	case known.Service != c.Service || !d.same(ctx, known, c.Source):
		return nil, fmt.Errorf("service %s here is %s/%s; choose another name with --name, or `srvfs remove %s`", c.Name, known.Source, known.Service, c.Name)
	}
	if known != nil && c.Archive == nil {
		c.Archive = known.Archive
	}
	return d.run(ctx, c, known, out)
}

// run starts the service. The caller holds its lock.
func (d *daemon) run(ctx context.Context, c control.Call, known *serviceRecord, out control.Stream) (_ any, err error) {
	begin := time.Now()
	fetched := d.store.Stats().FetchedBytes
	helper, err := sandbox.Prepare(false, false) // it starts while the snapshot is on its way
	if err != nil {
		return nil, err
	}
	defer helper.Close()
	o, err := d.choose(ctx, c, known)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			o.cancel()
		}
	}()
	if c.NoFuse {
		err = d.checkDetached(ctx, c, o)
	} else {
		d.stream(o)
		err = d.prepare(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	out.Step("snapshot", time.Since(begin), o.describe())
	record := &serviceRecord{Name: c.Name, Source: c.Source, Key: o.key, Service: c.Service, Sequence: o.snapshot.Sequence, Archive: c.Archive}
	if c.Prepare != nil {
		record.NoPrepare = !*c.Prepare
	} else if known != nil {
		record.NoPrepare = known.NoPrepare
	}
	if err := os.MkdirAll(d.viewDir(c.Name), 0o700); err != nil {
		return nil, err
	}
	// The start does not wait for the disk; its success does.
	kept := make(chan error, 1)
	d.work.Go(func() {
		err := d.keep(o)
		if err == nil {
			err = d.save(record)
		}
		kept <- err
	})
	if c.NoFuse { // it may outlive us from its start on: whoever comes next must know of it
		err := <-kept
		if kept <- err; err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil && known == nil { // it never ran here: nothing is left of the attempt
			err = errors.Join(err, d.discard(context.WithoutCancel(ctx), c.Name))
		}
	}()
	var written []store.Written
	r, err := d.bringUp(ctx, c, o, helper, func() []service.Prepared {
		written = d.written(ctx, o)
		return d.ready(record, written)
	}, out)
	if keptErr := <-kept; keptErr != nil && err == nil {
		err = errors.Join(fmt.Errorf("record of service %s: %w", c.Name, keptErr), r.Stop(context.WithoutCancel(ctx)), d.letGo(context.WithoutCancel(ctx), r))
	}
	if err != nil {
		d.prepareAgain(record, o)
		return nil, err
	}
	d.register(c.Name, r)
	d.match(o, func() { d.copyUpNew(record, r, written) })
	ran := Ran{Name: c.Name, LogFile: r.State().LogFile, Ready: time.Since(begin), Fetched: int64(d.store.Stats().FetchedBytes - fetched)}
	ran.Layered, ran.Note, _ = d.layered()
	return ran, nil
}

// bringUp mounts the view and starts the service on it, while what it needs for
// that streams in; or does without a view.
func (d *daemon) bringUp(ctx context.Context, c control.Call, o *opened, helper *sandbox.Helper, ready func() []service.Prepared, out control.Stream) (*running, error) {
	if c.NoFuse {
		return d.bringUpPlain(ctx, c, o, helper, ready(), out)
	}
	start := time.Now()
	layout := view_fs.Plain
	layered, why, err := d.layered()
	if err != nil {
		return nil, err
	}
	if layered {
		layout = view_fs.Layers
	} else {
		d.Log.Warn("content is served through the view", "reason", why)
	}
	v, err := d.show(ctx, o, c.Source, d.viewDir(c.Name), layout, c.Name)
	if err != nil {
		return nil, err
	}
	out.Step("view", time.Since(start), "")
	var inst *service.Instance
	if err = helper.Bring(v.mountpoint); err == nil {
		inst, err = d.start(ctx, c, o, v, layered, ready(), helper, out)
	}
	if err != nil {
		helper.Close() // a view that it holds would not end
		return nil, errors.Join(err, d.hide(context.WithoutCancel(ctx), v))
	}
	return &running{inst, *o, c.Source, v}, nil
}

// layered reports whether the kernel serves content, and if not, why.
func (d *daemon) layered() (bool, string, error) {
	if d.Reads == ReadsView {
		return false, "--reads view", nil
	}
	ok, why := service.CanLayer()
	if !ok && d.Reads == ReadsKernel {
		return false, why, fmt.Errorf("--reads kernel: this kernel has no data-only overlay layers (%s); --reads auto goes without", why)
	}
	return ok, why, nil
}

func (d *daemon) start(ctx context.Context, c control.Call, o *opened, v *view, layered bool, ready []service.Prepared, helper *sandbox.Helper, out control.Stream) (*service.Instance, error) {
	layers := service.Layers{Tree: v.mountpoint}
	if layered {
		layers = service.Layers{Tree: filepath.Join(v.mountpoint, "tree"), Gate: filepath.Join(v.mountpoint, "content"), Blobs: d.store.BlobDir(), Failed: filepath.Join(v.mountpoint, "failed"), Stubs: d.stubs(ctx, c.Name, o, v)}
	}
	return d.startOn(ctx, c, o, layers, ready, helper, out)
}

// startOn starts the service on a root of these layers.
func (d *daemon) startOn(ctx context.Context, c control.Call, o *opened, layers service.Layers, ready []service.Prepared, helper *sandbox.Helper, out control.Stream) (*service.Instance, error) {
	var mu sync.Mutex
	return service.Start(ctx, service.Options{
		Name: c.Name, Dir: d.rootDir(c.Name), Layers: layers, Snapshot: o.snapshot, Prepared: ready, ReadyTimeout: c.Timeout, Log: d.Log, Helper: helper, Outlive: c.NoFuse,
		Progress: func(step string, took time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			out.Step(step, took, "")
		},
	})
}

// stubs makes the layer of the programs that the service is known to execute,
// and returns where; or "" if it can't be made, or has nothing in it. It waits
// for no directory longer than a moment: without the layer all is the same, but
// for the time of an exec.
func (d *daemon) stubs(ctx context.Context, name string, o *opened, v *view) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	paths := make([]string, len(o.snapshot.Profile))
	for i, t := range o.snapshot.Profile {
		paths[i] = t.Path
	}
	dir := d.stubsDir(name)
	n := 0
	err := os.RemoveAll(dir)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err == nil {
		n, err = v.Stubs(ctx, dir, paths)
	}
	if err != nil {
		d.Log.Warn("each exec in the root will ask the view", "service", name, "reason", err)
	}
	if err != nil || n == 0 {
		return ""
	}
	return dir
}

func (d *daemon) stopOp(ctx context.Context, c control.Call, out control.Stream) (any, error) {
	return nil, d.stop(ctx, c.Name, out)
}

func (d *daemon) stop(ctx context.Context, name string, out control.Stream) error {
	unlock, err := d.lock(ctx, "service "+name)
	if err != nil {
		return err
	}
	defer unlock()
	d.mu.Lock()
	r := d.services[name]
	d.mu.Unlock()
	if r == nil {
		if _, err := d.load(name); err != nil {
			return err
		}
		return fmt.Errorf("service %s is not running", name)
	}
	return d.end(ctx, name, r, out)
}

// end stops a service and unmounts its view. The caller holds its lock.
func (d *daemon) end(ctx context.Context, name string, r *running, out control.Stream) error {
	start := time.Now()
	stopErr := r.Stop(ctx)
	out.Step("stop", time.Since(start), "")
	hideErr := d.letGo(ctx, r)
	d.mu.Lock()
	if hideErr == nil {
		delete(d.services, name)
	}
	d.mu.Unlock()
	return errors.Join(stopErr, hideErr)
}

func (d *daemon) removeOp(ctx context.Context, c control.Call, out control.Stream) (any, error) {
	unlock, err := d.lock(ctx, "service "+c.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	known, err := d.load(c.Name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	r := d.services[c.Name]
	d.mu.Unlock()
	if r != nil {
		if err := d.end(ctx, c.Name, r, out); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	if err := d.discard(ctx, c.Name); err != nil {
		return nil, err
	}
	freed, err := d.collect(ctx, known)
	if err != nil {
		return nil, err
	}
	out.Step("remove", time.Since(start), cli.Bytes(freed)+" of stored content freed")
	return nil, nil
}

// Collected is the result of a collect.
type Collected struct {
	Freed int64 `json:"freed"` // bytes that this gave back to the disk
}

func (d *daemon) collectOp(ctx context.Context, _ control.Call, _ control.Stream) (any, error) {
	if d.calls.Load() > 1 {
		return nil, fmt.Errorf("another command is at work, and may be bringing in what would be collected: try again when it has ended: %w", manifest.ErrUnavailable)
	}
	freed, err := d.collect(ctx, nil)
	return Collected{freed}, err
}

// discard removes a service's folder.
func (d *daemon) discard(ctx context.Context, name string) error {
	if err := service.Remove(ctx, d.rootDir(name)); err != nil {
		return err
	}
	if mounted, err := isView(d.viewDir(name)); err != nil || mounted {
		return errors.Join(err, fmt.Errorf("the view at %s is still mounted", d.viewDir(name)))
	}
	return os.RemoveAll(d.dir(name))
}

// collect removes stored content that no kept snapshot needs. The stored snapshots of
// a service that is gone, if one is, go first, unless another service or view here
// shows one of them; of all others those that are too old, and that nobody uses.
func (d *daemon) collect(ctx context.Context, gone *serviceRecord) (int64, error) {
	kept, err := d.records()
	if err != nil {
		return 0, err
	}
	type number struct {
		key, service string
		sequence     uint64
	}
	used := map[number]bool{}
	for _, r := range kept {
		used[number{r.Key, r.Service, 0}], used[number{r.Key, r.Service, r.Sequence}] = true, true
	}
	var keep []*manifest.Snapshot
	d.mu.Lock()
	for _, v := range d.views {
		used[number{v.key, v.name, 0}], used[number{v.key, v.name, v.snapshot.Sequence}] = true, true
		keep = append(keep, v.snapshot)
	}
	for _, f := range d.follows {
		used[number{f.Key, f.Service, 0}], used[number{f.Key, f.Service, f.state.Sequence}] = true, true
	}
	d.mu.Unlock()
	if gone != nil && !used[number{gone.Key, gone.Service, 0}] {
		if err := d.store.RemoveSnapshots(gone.Key, gone.Service); err != nil {
			return 0, err
		}
	}
	err = d.store.RetainSnapshots(func(r store.SnapshotRef) bool { return used[number{r.Source, r.Service, r.Sequence}] })
	if err != nil {
		return 0, err
	}
	freed, err := d.dropCopies()
	if err != nil {
		return 0, err
	}
	if d.calls.Load() > 1 {
		return freed, nil // a prefetch may be under way; the next remove collects
	}
	collected, err := d.store.Collect(ctx, keep...)
	return freed + collected, err
}

// records returns the services that are known here.
func (d *daemon) records() ([]*serviceRecord, error) {
	list, err := os.ReadDir(servicesDir(d.State))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []*serviceRecord
	for _, e := range list {
		r, err := d.load(e.Name())
		if errors.Is(err, manifest.ErrNotFound) {
			continue // the folder of a first run that is under way, or was cut off
		} else if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}
