package main

import (
	"context"
	"maps"
	"slices"
	"sync"

	"srvfs/capture"
	"srvfs/cmd/internal/metrics"
	"srvfs/rpc"
)

// A gauge is what `srvd serve` tells monitoring. The names are documented in
// docs/operations.md.
type gauge struct {
	lib    *capture.Library
	server *rpc.Server
	tell   *teller

	mu        sync.Mutex
	published map[string]uint64 // by service, since it began
	last      map[string]uint64 // the newest snapshot of each
}

func newGauge(lib *capture.Library, server *rpc.Server, t *teller) *gauge {
	return &gauge{lib: lib, server: server, tell: t, published: map[string]uint64{}}
}

// look counts what was published since the last look. The first one counts nothing.
func (g *gauge) look() error {
	list, err := g.lib.List()
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := map[string]uint64{}
	for _, p := range list {
		now[p.Service] = p.Sequence
		if before := g.last[p.Service]; g.last != nil && p.Sequence > before {
			g.published[p.Service] += p.Sequence - before
		}
	}
	g.last = now
	return nil
}

func (g *gauge) gather(_ context.Context, p *metrics.Page) error {
	list, err := g.lib.List()
	if err != nil {
		return err
	}
	if err := g.look(); err != nil { // what nobody has told of yet
		return err
	}
	follows := g.tell.followed()
	for _, pub := range list {
		l := []string{"service", pub.Service}
		p.Gauge("srvd_snapshot", "The number of the newest snapshot.", float64(pub.Sequence), l...)
		p.Gauge("srvd_snapshot_created_timestamp_seconds", "When it was made.", float64(pub.Created)/1e9, l...)
		if s, ok := follows[pub.Service]; ok {
			p.Gauge("srvd_watched", "Whether the kernel reports the changes of a service that is followed.", metrics.Bool(s.Watched), l...)
		}
		g.mu.Lock()
		p.Counter("srvd_snapshots_published_total", "Snapshots that were published since srvd serve began.", float64(g.published[pub.Service]), l...)
		g.mu.Unlock()
	}
	stats := g.lib.FollowStats()
	for _, service := range slices.Sorted(maps.Keys(stats)) {
		s, l := stats[service], []string{"service", service}
		p.Counter("srvd_watch_events_total", "Changes that the kernel reported and that may concern the service.", float64(s.Events), l...)
		p.Counter("srvd_watch_lost_total", "Times that reports were lost, and all files looked at.", float64(s.Lost), l...)
		p.Counter("srvd_rescans_total", "Looks at all files of the service.", float64(s.Rescans), l...)
		p.Counter("srvd_rescan_seconds_total", "The time that these took.", s.Rescanning.Seconds(), l...)
	}
	st := g.server.Stats()
	for _, service := range slices.Sorted(maps.Keys(st.Services)) {
		v, l := st.Services[service], []string{"service", service}
		p.Counter("srvd_served_bytes_total", "Bytes of content, metadata and snapshots that were given to standbys, before they were packed.", float64(v.Bytes), l...)
		p.Counter("srvd_served_contents_total", "Files, ranges of files, pages and snapshots that were given to standbys.", float64(v.Contents), l...)
	}
	for _, call := range slices.Sorted(maps.Keys(st.Calls)) {
		p.Counter("srvd_requests_total", "Calls of standbys that were let in.", float64(st.Calls[call]), "call", call)
	}
	p.Gauge("srvd_standbys_connected", "Standbys that are connected.", float64(st.Standbys))
	p.Gauge("srvd_connections", "Connections that are open.", float64(st.Conns))
	return nil
}
