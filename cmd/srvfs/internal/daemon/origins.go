package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/rpc"
	"srvfs/store"
	"srvfs/store/archive"
)

// The ranks of origins: what neither the store nor this host has is asked of the
// nearest standby that has the service, then of its source, then of the archive.
const (
	rankStandby = iota + 1
	rankSource
	rankArchive
)

// An origins says where the content of a service comes from. Standbys come and go, so
// it is asked anew whenever something is to be fetched.
type origins struct {
	d       *daemon
	name    string // what the source was called
	key     string
	service string
	ways    *ways // to the source; nil if this host is not paired with it
	archive *archived

	opening     *rpc.Opening // that brings metadata along; or nil
	openingFrom *ways
}

// list returns them.
func (s *origins) list() []store.Source {
	d := s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []store.Source
	for _, w := range d.clients {
		if w != s.ways && w.offer(s.key, s.service) != nil {
			all = append(all, s.source(w, "standby "+w.source.Name, rankStandby))
		}
	}
	if s.ways != nil {
		all = append(all, s.source(s.ways, s.name, rankSource))
	}
	if s.archive != nil {
		all = append(all, store.Source{Name: "archive " + s.archive.Ref, Origin: s.archive, Rank: rankArchive, Health: &s.archive.health})
	}
	return all
}

func (s *origins) source(w *ways, name string, rank int) store.Source {
	o := store.Source{Name: name, Origin: w.demand, Bulk: w.bulk, Rank: rank, Health: w.health}
	if s.opening != nil && s.openingFrom == w {
		o.Origin = s.opening
	}
	return o
}

// offer returns what a standby has said of a service. The caller holds the daemon's mu.
func (w *ways) offer(key, service string) *rpc.ServiceInfo {
	for i := range w.offers {
		if v := &w.offers[i]; v.Source == key && v.Name == service {
			return v
		}
	}
	return nil
}

// from returns where the content of a source's service comes from. A source that this
// host is not paired with may be one that a standby knows.
func (d *daemon) from(ctx context.Context, of control.Snapshot) (*origins, error) {
	s := &origins{d: d, name: of.Source, service: of.Service}
	if of.Archive != nil {
		s.archive = d.archived(*of.Archive)
	}
	if err := d.connectStandbys(); err != nil {
		d.Log.Warn("connect to standbys", "error", err)
	}
	var err error
	if of.FromArchive() {
		s.key = archive.RefID(of.Source)
		return s, nil
	}
	if s.ways, s.key, err = d.find(ctx, of.Source); errors.Is(err, manifest.ErrDenied) {
		key := d.keyOf(ctx, of.Source)
		if key == "" {
			key = d.keyBefore(of.Source)
		}
		if key != "" {
			s.key, err = key, nil
		} else if of.Archive != nil {
			err = fmt.Errorf("%w; or name the archive alone, as %s", err, of.Archive.Ref)
		}
	}
	return s, err
}

// keyBefore returns the ID of a source that was called so when something of it was run
// or followed here; or "".
func (d *daemon) keyBefore(source string) string {
	records, err := d.records()
	if err != nil {
		d.Log.Warn("records of services", "error", err)
	}
	for _, r := range records {
		if r.Source == source {
			return r.Key
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.follows {
		if f.Source == source {
			return f.Key
		}
	}
	return ""
}

// again returns where the content comes from of what was stored here before, whatever
// can be found of it now.
func (d *daemon) again(ctx context.Context, name, key, service string, from *control.Archive) *origins {
	s := &origins{d: d, name: name, key: key, service: service}
	if from != nil {
		s.archive = d.archived(*from)
	}
	if from == nil || from.Ref != name {
		w, k, err := d.find(ctx, name)
		if err == nil && k != key {
			err = fmt.Errorf("%s is another host now (%s, and not %s): %w", name, k, key, manifest.ErrDenied)
		}
		if err == nil {
			s.ways = w
		} else {
			d.Log.Warn("content that is missing can't come from the source", "service", service, "error", err)
		}
	}
	if err := d.connectStandbys(); err != nil {
		d.Log.Warn("connect to standbys", "error", err)
	}
	return s
}

// find returns the connections to a source, and its ID.
func (d *daemon) find(ctx context.Context, source string) (w *ways, key string, err error) {
	s, err := d.sources.Find(ctx, source)
	if err != nil {
		return nil, "", err
	}
	w, err = d.client(s)
	return w, s.Fingerprint.ID(), err
}

// OriginStatus is one line of where the content of a view comes from.
type OriginStatus struct {
	Name      string        `json:"name"`
	RoundTrip time.Duration `json:"round_trip,omitempty"` // nanoseconds; 0: not measured
	Failing   string        `json:"failing,omitempty"`    // why it is passed over now
	Since     time.Time     `json:"since,omitzero"`       // of that
	// Corrupt counts the answers that had not the digest that they were asked by, and
	// LastBad is of which file the last one was.
	Corrupt uint64 `json:"corrupt,omitempty"`
	LastBad string `json:"last_bad,omitempty"`
}

// statusOf describes the origins of a reader, in the order in which they are asked.
func statusOf(r *store.Reader) []OriginStatus {
	all := []OriginStatus{}
	for _, o := range r.Sources() {
		c := o.Health.Condition()
		s := OriginStatus{Name: o.Name, RoundTrip: c.Distance, Since: c.Since, Corrupt: c.Corrupt, LastBad: c.LastBad}
		if c.Failing != nil {
			s.Failing = c.Failing.Error()
		}
		all = append(all, s)
	}
	return all
}

// Describe says it for people.
func (s *OriginStatus) Describe() string {
	text := s.Name
	if s.RoundTrip > 0 {
		text += fmt.Sprintf(", %s away", cli.Took(s.RoundTrip))
	}
	if s.Failing != "" {
		text += fmt.Sprintf("; failing for %s: %s", cli.Took(time.Since(s.Since)), s.Failing)
	}
	if s.Corrupt > 0 {
		text += fmt.Sprintf("; sent wrong bytes %d times, last for %s", s.Corrupt, s.LastBad)
	}
	return text
}
