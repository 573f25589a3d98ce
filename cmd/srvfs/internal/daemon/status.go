package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/service"
	"srvfs/store"
)

// A Status is one line of `srvfs status`: a service, or a plain view.
type Status struct {
	Name       string      `json:"name,omitempty"` // of a service; empty for a plain view
	Source     string      `json:"source"`
	Service    string      `json:"service"` // its name on the source
	Sequence   uint64      `json:"sequence"`
	State      string      `json:"state"` // "running", "failed", "stopped", "mounted", "prefetched", "prefetching", "followed"
	Reason     string      `json:"reason,omitempty"`
	Since      time.Time   `json:"since,omitzero"`
	Mountpoint string      `json:"mountpoint,omitempty"`
	LogFile    string      `json:"log_file,omitempty"`
	Reads      string      `json:"reads,omitempty"` // who serves content: "kernel", "view", or "disk": copies of it
	Content    store.Tally `json:"content"`
	// Rate is how many bytes a second come in for it now, and Stage what a prefetch of it
	// brings: a rank of files, or "verify".
	Rate  float64 `json:"rate"`
	Stage string  `json:"stage,omitempty"`
	// Prepared counts the private copies that wait for a service of this snapshot,
	// and the bytes that they take on disk; Placed those that this service has taken.
	Prepared store.Count    `json:"prepared"`
	Placed   service.Placed `json:"placed"`
	Units    []UnitStatus   `json:"units,omitempty"`
	Instance *service.State `json:"instance,omitempty"`
	// Missed are the paths that the service looked for in vain since it was started
	// and that the source will have in its next snapshot.
	Missed []string `json:"missed,omitempty"`
	// Following tells how far the follow of a service is.
	Following *Following `json:"following,omitempty"`
	// Origins are where content comes from that is missing here, in the order in which
	// they are asked.
	Origins []OriginStatus `json:"origins,omitempty"`
	// Upcalls counts the kernel's requests that the view has answered, by
	// operation.
	Upcalls map[string]uint64 `json:"upcalls,omitempty"`

	key string // the source's ID
}

// A UnitStatus tells of one unit's main process.
type UnitStatus struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
}

func (d *daemon) statusOp(ctx context.Context, c control.Call, _ control.Stream) (any, error) {
	all, err := d.statuses(ctx)
	if err != nil || c.Name == "" {
		return all, err
	}
	var chosen []Status
	for _, s := range all {
		if s.Name == c.Name || s.Mountpoint == c.Name || s.Name == "" && s.Service == c.Name {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no service or view %q here: %w", c.Name, manifest.ErrNotFound)
	}
	return chosen, nil
}

// statuses tells of all services, views, follows and prefetches.
func (d *daemon) statuses(ctx context.Context) ([]Status, error) {
	all := []Status{}
	seen := map[string]bool{}
	d.mu.Lock()
	views := make([]*view, 0, len(d.views))
	for _, v := range d.views {
		views = append(views, v)
	}
	instances := map[string]*running{}
	for name, r := range d.services {
		instances[name] = r
	}
	d.mu.Unlock()
	for _, v := range views {
		s := Status{Source: v.source, Service: v.name, Sequence: v.snapshot.Sequence, State: "mounted", Since: v.since, Mountpoint: v.mountpoint, Reads: "view", Upcalls: v.Stats().Upcalls, Missed: v.misses.list(), Origins: statusOf(v.reader), Rate: v.reader.Rate(), key: v.key}
		if v.service != "" {
			r := instances[v.service]
			if r == nil {
				continue // it is starting, or stopping
			}
			seen[v.service] = true
			d.describeRunning(&s, v.service, r)
		}
		var err error
		if s.Content, err = d.tally(ctx, v.key, v.reader, v.snapshot); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	for name, r := range instances {
		if r.view != nil {
			continue
		}
		seen[name] = true
		s := Status{Source: r.source, Service: r.snapshot.Service, Sequence: r.snapshot.Sequence, Reads: "disk", key: r.key}
		d.describeRunning(&s, name, r)
		var err error
		if s.Content, err = d.tally(ctx, r.key, r.reader, r.snapshot); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	records, err := d.records()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if seen[r.Name] {
			continue
		}
		s := Status{Name: r.Name, Source: r.Source, Service: r.Service, Sequence: r.Sequence, State: "stopped", key: r.Key}
		snap, err := d.stored(r)
		if err != nil {
			return nil, err
		}
		if s.Content, err = d.tally(ctx, r.Key, d.store.Reader(), snap); err != nil {
			return nil, err
		}
		s.Prepared = d.copiesOf(r.Key, r.Service).Usage()
		if st, err := service.Inspect(d.rootDir(r.Name)); err == nil {
			s.Placed = st.Placed
		}
		all = append(all, s)
	}
	unused, err := d.prefetched(records)
	if err != nil {
		return nil, err
	}
	all = append(all, unused...)
	follows, err := d.followed(ctx)
	if err != nil {
		return nil, err
	}
	all = append(all, follows...)
	if all, err = d.addTransfers(ctx, all); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b Status) int {
		return strings.Compare(a.Name+"\x00"+a.Mountpoint, b.Name+"\x00"+b.Mountpoint)
	})
	return all, nil
}

// describeRunning tells of a service that was started here.
func (d *daemon) describeRunning(s *Status, name string, r *running) {
	st := r.State()
	s.Name, s.State, s.Since, s.LogFile, s.Mountpoint, s.Instance, s.Reason = name, "running", st.Since, st.LogFile, "", &st, st.Reason
	if !st.Running {
		s.State = "failed"
	}
	if st.Layered {
		s.Reads = "kernel"
	}
	s.Prepared, s.Placed = d.copiesOf(r.key, r.snapshot.Service).Usage(), st.Placed
	for _, u := range st.Units {
		s.Units = append(s.Units, UnitStatus{u.Name, u.PID})
	}
}

// tally says where a snapshot's content is. One that the next daemon would not find is
// not detached.
func (d *daemon) tally(ctx context.Context, key string, r *store.Reader, s *manifest.Snapshot) (store.Tally, error) {
	t, err := r.Tally(ctx, s)
	t.Detached = t.Detached && d.store.HasSnapshot(key, s)
	return t, err
}

// prefetched returns a line for each snapshot that copies were made for and that
// no service here is made of yet.
func (d *daemon) prefetched(records []*serviceRecord) ([]Status, error) {
	var all []Status
	err := d.eachPrepared(func(key, name string) error {
		for _, r := range records {
			if r.Key == key && r.Service == name {
				return nil
			}
		}
		s := Status{Source: d.sourceName(key), Service: name, State: "prefetched", Prepared: d.copiesOf(key, name).Usage(), key: key}
		if snap, err := d.store.LoadSnapshot(key, name); err == nil {
			s.Sequence = snap.Sequence
		}
		if s.Prepared.Files > 0 {
			all = append(all, s)
		}
		return nil
	})
	return all, err
}

// sourceName returns what a source is called, by its ID.
func (d *daemon) sourceName(key string) string {
	list, _ := d.sources.List()
	for _, s := range list {
		if s.Fingerprint.ID() == key {
			return s.Name
		}
	}
	return key
}

// Prefetched is the result of a prefetch.
type Prefetched struct {
	Source  string        `json:"source"`
	Service string        `json:"service"`
	Took    time.Duration `json:"took"` // nanoseconds
	Fetched int64         `json:"fetched"`
	Content store.Tally   `json:"content"`
	// Prepared is what came of preparing the files that the service writes to.
	Prepared Preparation `json:"prepared"`
	// Verified is what --verify found; nil without it.
	Verified *store.Verified `json:"verified,omitempty"`
}

func (d *daemon) prefetchOp(ctx context.Context, c control.Call, out control.Stream) (any, error) {
	start := time.Now()
	fetched := d.store.Stats().FetchedBytes
	var o *opened
	var err error
	if c.Source == "" {
		known, loadErr := d.load(c.Name)
		if loadErr != nil {
			return nil, loadErr
		}
		c.Source, c.Service = known.Source, known.Service
		if c.Archive == nil {
			c.Archive = known.Archive
		}
		o, err = d.choose(ctx, c, known)
	} else {
		o, err = d.open(ctx, c.Snapshot)
	}
	if err != nil {
		return nil, err
	}
	defer o.cancel()
	if err := d.keep(o); err != nil {
		return nil, err
	}
	out.Step("snapshot", time.Since(start), o.describe())
	t, done := d.transferring(c.Source, o)
	defer done()
	report := func(p store.Progress) {
		t.report(p)
		out.Progress(progressOf(p))
	}
	var verified *store.Verified
	if c.Verify {
		var v store.Verified
		v, err = o.reader.Verify(ctx, o.snapshot, report)
		verified = &v
	} else {
		err = o.reader.Prefetch(ctx, o.snapshot, report)
	}
	if err != nil {
		return nil, fmt.Errorf("prefetch %s/%s: %w", c.Source, c.Service, err)
	}
	if verified != nil && len(verified.Lost) > 0 {
		t, err := d.tally(ctx, o.key, o.reader, o.snapshot)
		return Prefetched{Source: c.Source, Service: c.Service, Took: time.Since(start), Fetched: int64(d.store.Stats().FetchedBytes - fetched), Content: t, Verified: verified}, err
	}
	p, err := d.prepareStep(ctx, c, o, out)
	if err != nil {
		return nil, fmt.Errorf("prefetch %s/%s: all content is here, but what the service writes to is not prepared: %w", c.Source, c.Service, err)
	}
	content, err := d.tally(ctx, o.key, o.reader, o.snapshot)
	return Prefetched{c.Source, c.Service, time.Since(start), int64(d.store.Stats().FetchedBytes - fetched), content, p, verified}, err
}
