package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/cmd/srvfs/internal/control"
	view_fs "srvfs/fs"
	"srvfs/manifest"
)

// A view is one mounted view.
type view struct {
	*view_fs.View
	opened       // snapshot and reader are guarded by the daemon's mu: a view that is followed gets others
	content      *content
	follow       *follow // nil: it stays at its snapshot
	source, name string  // where it comes from
	mountpoint   string
	service      string // the service here that it belongs to; empty for a plain one
	since        time.Time
	misses       *misses // of a service; nil for a plain view
}

// A mountRecord is the ledger's line for one view.
type mountRecord struct {
	Mountpoint string `json:"mountpoint"`
	Source     string `json:"source"`
	Service    string `json:"service"`
}

func mountsDir(state string) string { return filepath.Join(state, "mounts") }

func recordPath(state, mountpoint string) string {
	return filepath.Join(mountsDir(state), manifest.Sum([]byte(mountpoint)).Hex()[:16]+".json")
}

// record writes the ledger's line before the mount.
func record(state string, r mountRecord) error {
	if err := os.MkdirAll(mountsDir(state), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(recordPath(state, r.Mountpoint), b, 0o600)
}

// Clean detaches the views that a killed daemon left mounted. The caller holds
// the state folder's lock.
func Clean(ctx context.Context, state string, log *slog.Logger) error {
	list, err := os.ReadDir(mountsDir(state))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var errs []error
	for _, e := range list {
		path := filepath.Join(mountsDir(state), e.Name())
		var r mountRecord
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil { // torn by a crash before the mount was made
			errs = append(errs, os.Remove(path))
			continue
		}
		mounted, err := isView(r.Mountpoint)
		if err == nil && mounted {
			log.Info("detaching a view that a killed daemon left", "mountpoint", r.Mountpoint)
			err = view_fs.Detach(r.Mountpoint)
		}
		if err == nil {
			err = os.Remove(path)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// isView reports whether a view of ours is the topmost mount at the path. It
// reads the mount table only: looking at a dead view could hang.
func isView(mountpoint string) (bool, error) {
	kind, err := mountedType(mountpoint)
	return kind == "fuse.srvfs", err
}

// mountedType returns the file system type of the topmost mount at the path, or
// "" if none is mounted there.
func mountedType(mountpoint string) (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	kind := ""
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[4] != escape.Replace(mountpoint) {
			continue
		}
		for i := 6; i+1 < len(f); i++ {
			if f[i] == "-" {
				kind = f[i+1]
			}
		}
	}
	return kind, nil
}

// checkMountpoint refuses a folder that a view must not be mounted on.
func (d *daemon) checkMountpoint(path string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("mountpoint %s: %s", path, fmt.Sprintf(format, args...))
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return bad("not a clean absolute path")
	}
	if path == d.State || strings.HasPrefix(path, d.State+"/") || strings.HasPrefix(d.State+"/", path+"/") {
		return bad("it lies in, or holds, the state folder %s; choose a folder outside of it", d.State)
	}
	if kind, err := mountedType(path); err != nil {
		return err
	} else if kind == "fuse.srvfs" {
		return bad("a view is already mounted there; see `srvfs status`, or `srvfs umount %s`", path)
	} else if kind != "" {
		return bad("a %s file system is mounted there", kind)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("mountpoint %s does not exist; make it first: mkdir -p %s: %w", path, path, manifest.ErrNotFound)
	case err != nil:
		return fmt.Errorf("mountpoint: %w", err)
	case !info.IsDir():
		return bad("not a folder")
	}
	list, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("mountpoint: %w", err)
	}
	if len(list) > 0 {
		return bad("the folder is not empty (it holds %s); choose an empty one", list[0].Name())
	}
	return nil
}

// show mounts a view of an opened snapshot, whose background work ends if that
// fails. The caller holds the mountpoint's lock.
func (d *daemon) show(ctx context.Context, o *opened, source, mountpoint string, layout view_fs.Layout, service string) (_ *view, err error) {
	defer func() {
		if err != nil {
			o.cancel()
		}
	}()
	if err := record(d.State, mountRecord{mountpoint, source, o.snapshot.Service}); err != nil {
		return nil, err
	}
	content := contentOf(o.reader)
	options := view_fs.Options{
		Snapshot: o.snapshot, Content: content, Layout: layout, Deadline: d.Deadline,
		Log: d.Log, Name: source + "/" + o.snapshot.Service,
	}
	var missed *misses
	if service != "" { // people who look around in a plain view miss nothing
		missed = newMisses()
		options.Missed = missed.add
	}
	m, err := view_fs.Mount(ctx, mountpoint, options)
	if err != nil {
		return nil, errors.Join(err, os.Remove(recordPath(d.State, mountpoint)))
	}
	v := &view{View: m, opened: *o, content: content, source: source, name: o.snapshot.Service, mountpoint: mountpoint, service: service, since: time.Now(), misses: missed}
	d.mu.Lock()
	d.views[mountpoint] = v
	d.mu.Unlock()
	d.work.Go(func() { // somebody else may unmount it
		<-m.Done()
		d.forget(v)
	})
	if missed != nil {
		d.work.Go(func() { d.report(v.background, v) })
	}
	return v, nil
}

// forget ends what belongs to a view that is no longer mounted.
func (d *daemon) forget(v *view) {
	v.cancel()
	d.mu.Lock()
	if d.views[v.mountpoint] == v {
		delete(d.views, v.mountpoint)
		if err := os.Remove(recordPath(d.State, v.mountpoint)); err != nil {
			d.Log.Warn("ledger", "error", err)
		}
	}
	d.mu.Unlock()
	d.wake()
}

func (d *daemon) mountOp(ctx context.Context, c control.Call, out control.Stream) (any, error) {
	if c.Follow && !c.Newest() {
		return nil, fmt.Errorf("%s: what is followed is the newest snapshot: %w", c.Ref, manifest.ErrInvalid)
	}
	if err := d.checkMountpoint(c.Mountpoint); err != nil {
		return nil, err
	}
	unlock, err := d.lock(ctx, "mount "+c.Mountpoint)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.checkMountpoint(c.Mountpoint); err != nil { // now that nobody else mounts there
		return nil, err
	}
	start := time.Now()
	o, err := d.open(ctx, c.Snapshot)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(d.keep(o), d.prepare(ctx, o)); err != nil {
		o.cancel()
		return nil, err
	}
	out.Step("snapshot", time.Since(start), o.describe())
	start = time.Now()
	v, err := d.show(ctx, o, c.Source, c.Mountpoint, view_fs.Plain, "")
	if err != nil {
		return nil, err
	}
	d.match(o, nil)
	if c.Follow {
		d.followView(v, c.Prefetch)
	}
	out.Step("view", time.Since(start), c.Mountpoint)
	return nil, nil
}

// followView has a view move to each new snapshot, for as long as it is mounted.
func (d *daemon) followView(v *view, prefetch bool) {
	newest := make(chan *opened, 1)
	f := &follow{
		followRecord: followRecord{Source: v.source, Key: v.key, Service: v.name},
		done:         make(chan struct{}),
		state:        Following{Sequence: v.snapshot.Sequence, Newest: v.snapshot.Sequence, Made: time.Unix(0, v.snapshot.Created), Prefetch: prefetch},
		show: func(ctx context.Context, o *opened) error {
			if err := d.moveView(ctx, v, o); err != nil || !prefetch {
				return err
			}
			select { // what waits is of an earlier snapshot
			case <-newest:
			default:
			}
			newest <- o
			return nil
		},
	}
	if v.fresh != nil {
		f.state.Heard = time.Now()
	}
	d.mu.Lock()
	v.follow = f
	d.mu.Unlock()
	var have manifest.Digest
	if v.fresh != nil {
		have, _ = v.snapshot.Digest() // it was decoded from what it encodes to
	}
	if prefetch {
		first := v.opened
		newest <- &first
		d.work.Go(func() { d.prefetchNewest(v, newest) })
	}
	d.work.Go(func() {
		defer close(f.done)
		d.keepUp(v.background, f, have)
	})
}

// moveView has a view show the snapshot that was opened.
func (d *daemon) moveView(ctx context.Context, v *view, o *opened) error {
	before := v.content.reader.Swap(o.reader)
	m, err := v.Move(ctx, o.snapshot)
	switch {
	case errors.Is(err, view_fs.ErrUntold):
		d.Log.Error("view", "mountpoint", v.mountpoint, "snapshot", o.snapshot.Sequence, "error", err)
	case err != nil:
		v.content.reader.Store(before)
		return err
	}
	d.mu.Lock()
	v.snapshot, v.reader = o.snapshot, o.reader
	d.mu.Unlock()
	d.Log.Debug("view moved", "mountpoint", v.mountpoint, "snapshot", o.snapshot.Sequence, "directories", m.Directories, "names", m.Names, "attributes", m.Attributes,
		"took", m.Took, "behind", time.Since(time.Unix(0, o.snapshot.Created)))
	return nil
}

// prefetchNewest brings the content of each snapshot here that a view has moved to,
// beside the moves: while that takes, the view goes on, and what it passes over is
// left out.
func (d *daemon) prefetchNewest(v *view, newest <-chan *opened) {
	pause := followFirst
	var bringer bringer
	for {
		var o *opened
		select {
		case o = <-newest:
		case <-v.background.Done():
			return
		}
		for {
			err := bringer.bring(v.background, o)
			if v.background.Err() != nil {
				return
			}
			if err == nil {
				pause = followFirst
				break
			}
			d.Log.Warn("prefetch of a view", "mountpoint", v.mountpoint, "snapshot", o.snapshot.Sequence, "error", err)
			await(v.background, pause)
			pause = min(2*pause, followMost)
			select {
			case o = <-newest: // there is no use in the one before
			default:
			}
		}
	}
}

func (d *daemon) unmountOp(ctx context.Context, c control.Call, _ control.Stream) (any, error) {
	return nil, d.unmount(ctx, c.Mountpoint, c.Force)
}

func (d *daemon) unmount(ctx context.Context, mountpoint string, lazy bool) error {
	unlock, err := d.lock(ctx, "mount "+mountpoint)
	if err != nil {
		return err
	}
	defer unlock()
	d.mu.Lock()
	v := d.views[mountpoint]
	d.mu.Unlock()
	if v == nil {
		return fmt.Errorf("no view is mounted at %s; see `srvfs status`: %w", mountpoint, manifest.ErrNotFound)
	}
	if v.service != "" {
		return fmt.Errorf("the view at %s belongs to the service %s; use `srvfs stop %s`", mountpoint, v.service, v.service)
	}
	if lazy {
		return d.hide(ctx, v)
	}
	if err := v.TryUnmount(); errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: end what uses it (`fuser -vm %s` tells), or use --lazy", err, mountpoint)
	} else if err != nil {
		return err
	}
	d.forget(v)
	return nil
}

// hide unmounts a view, and cuts it off from those who still use it.
func (d *daemon) hide(ctx context.Context, v *view) error {
	if err := v.Unmount(ctx); err != nil {
		return err
	}
	d.forget(v)
	return nil
}
