package daemon

import (
	"context"
	"maps"
	"slices"
	"time"

	"srvfs/cmd/internal/metrics"
)

// serveMetrics answers monitoring until ctx ends, if it is to.
func (d *daemon) serveMetrics(ctx context.Context) error {
	if d.Metrics == "" {
		return nil
	}
	l, err := metrics.Listen(ctx, d.Metrics)
	if err != nil {
		return err
	}
	d.Log.Info("metrics", "address", l.Addr().String())
	d.work.Go(func() {
		if err := metrics.Serve(ctx, l, d.Log, d.gather); err != nil {
			d.Log.Error("metrics are not told any more", "error", err)
		}
	})
	return nil
}

// gather fills a page. The names are documented in docs/operations.md.
func (d *daemon) gather(ctx context.Context, p *metrics.Page) error {
	all, err := d.statuses(ctx)
	if err != nil {
		return err
	}
	use, err := d.store.Usage()
	if err != nil {
		return err
	}
	p.Gauge("srvfs_store_bytes", "Bytes of the whole files in the store, pinned ones included.", float64(use.Bytes))
	p.Gauge("srvfs_store_files", "Whole files in the store, pinned ones included.", float64(use.Files))
	origins := d.store.Origins()
	for _, name := range slices.Sorted(maps.Keys(origins)) {
		p.Counter("srvfs_fetched_bytes_total", "Verified bytes of content and metadata that came from an origin.", float64(origins[name]), "origin", name)
	}
	st := d.store.Stats()
	p.Counter("srvfs_fetch_requests_total", "Requests to origins; a batch is one.", float64(st.Fetches))
	p.Counter("srvfs_fetch_failures_total", "Fetches that no origin could answer.", float64(st.Failed))
	p.Counter("srvfs_fetch_corrupt_total", "Pieces that an origin sent and that did not have their digest.", float64(st.BadFromSource))
	const hits = "Times that content was here: in the store, or a file of this host that was pinned for it."
	p.Counter("srvfs_content_hits_total", hits, float64(st.BlobHits), "from", "store")
	p.Counter("srvfs_content_hits_total", hits, float64(st.HostHits), "from", "local")
	p.Counter("srvfs_store_dropped_total", "Stored files that were found damaged, or changed by the host, and removed.", float64(st.Dropped))

	d.mu.Lock()
	views, follows, transfers := len(d.views), len(d.follows), len(d.transfers)
	d.mu.Unlock()
	p.Gauge("srvfs_views", "Views that are mounted, those of services included.", float64(views))
	p.Gauge("srvfs_follows", "Services that are followed.", float64(follows))
	p.Gauge("srvfs_prefetches", "Prefetches under way.", float64(transfers))
	for i := range all {
		s := &all[i]
		switch {
		case s.Name != "":
			p.Gauge("srvfs_service_up", "Whether the service runs.", metrics.Bool(s.State == "running"), "service", s.Name)
			p.Gauge("srvfs_service_detached", "Whether every byte of its snapshot is here, verified.", metrics.Bool(s.Content.Detached), "service", s.Name)
			p.Gauge("srvfs_service_missing_bytes", "Bytes of its snapshot that are not here.", float64(s.Content.Missing.Bytes), "service", s.Name)
			p.Gauge("srvfs_service_snapshot", "The number of its snapshot.", float64(s.Sequence), "service", s.Name)
		case s.Following != nil:
			f := s.Following
			behind, since := uint64(0), 0.0
			if f.Newest > f.Sequence {
				behind = f.Newest - f.Sequence
			}
			if !f.Behind.IsZero() {
				since = time.Since(f.Behind).Seconds()
			}
			labels := []string{"source", s.Source, "service", s.Service}
			p.Gauge("srvfs_follow_snapshot", "The number of the snapshot that is here.", float64(f.Sequence), labels...)
			p.Gauge("srvfs_follow_behind_snapshots", "Snapshots that the source has published since.", float64(behind), labels...)
			p.Gauge("srvfs_follow_behind_seconds", "Since how long there is one that is not here.", since, labels...)
			p.Gauge("srvfs_follow_up", "Whether the source answers, and nothing has failed.", metrics.Bool(s.Reason == ""), labels...)
			p.Gauge("srvfs_follow_detached", "Whether every byte of the snapshot that is here is here, verified.", metrics.Bool(s.Content.Detached), labels...)
			p.Gauge("srvfs_follow_missing_bytes", "Bytes of the snapshot that is coming that are not here yet.", float64(f.Missing.Bytes), labels...)
		}
	}
	return nil
}
