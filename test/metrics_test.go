package test

import (
	"encoding/json"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"srvfs/test/world"
)

// scrape asks a daemon for its metrics from its own host, and reads them as Prometheus does.
func (s *site) scrape(h *world.Host, port string) map[string]*dto.MetricFamily {
	s.Helper()
	body := must(h.Get(s.ctx, "http://127.0.0.1:"+port+"/metrics"))(s.T)
	p := expfmt.NewTextParser(model.LegacyValidation)
	all, err := p.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		s.Fatalf("%v in:\n%s", err, body)
	}
	return all
}

// value returns the sample of a family that has these labels, pairs of a name and a value;
// -1 if there is none.
func value(all map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	for _, m := range all[name].GetMetric() {
		fits := len(m.GetLabel()) == len(labels)/2
		for i := 0; i < len(labels); i += 2 {
			found := false
			for _, l := range m.GetLabel() {
				found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
			}
			fits = fits && found
		}
		if fits {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return -1
}

// Both daemons tell monitoring how they stand, and status how fast what is missing comes.
func TestMetrics(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "head -c 4000000 /dev/urandom > /var/www/html/first && srvd capture web -q --unit nginx --probe http://127.0.0.1/")
	_, _, err := s.source.Start(s.ctx, "srvd", "serve", "--follow", "--metrics", ":9101")
	s.check(err)
	_, _, err = s.standby.Start(s.ctx, "srvfs", "daemon", "--metrics", ":9102")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.check(s.source.Await(s.ctx, "127.0.0.1:9101"))
	s.check(s.standby.Await(s.ctx, "127.0.0.1:9102"))
	s.paired()
	origin, web := s.source.Addr, s.source.Addr+"/web"
	if _, err := s.client.Get(s.ctx, "http://"+s.standby.Addr+":9102/metrics"); err == nil {
		t.Error("metrics are told to other hosts")
	}

	// What comes slowly can be watched.
	s.check(s.standby.SetWire(s.ctx, world.Wire{Rate: 10_000_000}))
	done := make(chan error, 1)
	go func() {
		_, err := s.standby.Shell(s.ctx, "srvfs prefetch "+web)
		done <- err
	}()
	type row struct {
		State     string
		Rate      float64
		Stage     string
		Content   tally
		Following struct {
			Coming  uint64
			Missing struct{ Files, Bytes int64 }
		}
	}
	rows := func() (all []row) {
		s.check(json.Unmarshal([]byte(s.on(s.standby, "srvfs status --json")), &all))
		return all
	}
	s.await("a prefetch shows how fast it is and what is missing", func() bool {
		select {
		case err := <-done:
			t.Fatalf("the prefetch has ended (%v) and was never seen", err)
		default:
		}
		all := rows()
		return len(all) == 1 && all[0].State == "prefetching" && all[0].Rate > 0 && all[0].Stage != "" && all[0].Content.Missing.Files > 0 && all[0].Content.Missing.Bytes > 0
	})
	s.check(<-done)
	s.on(s.standby, "srvfs follow "+web)
	s.await("the first snapshot is here", func() bool { return s.status("web").Content.Detached })
	before := s.sequence("web")
	s.on(s.source, "head -c 6000000 /dev/urandom > /root/large && mv /root/large /var/www/html/large")
	s.await("a follow shows how fast it is and what is missing", func() bool {
		all := rows()
		return len(all) == 1 && all[0].State == "followed" && all[0].Rate > 0 && all[0].Following.Coming > before && all[0].Following.Missing.Bytes > 0
	})
	s.await("it is here", func() bool {
		st := s.status("web")
		return st.Sequence > before && st.Sequence == s.sequence("web") && st.Content.Detached
	})
	s.check(s.standby.SetWire(s.ctx, world.Wire{}))
	s.on(s.standby, "srvfs run "+web)

	source := s.scrape(s.source, "9101")
	for name, least := range map[string]float64{
		"srvd_snapshot": 2, "srvd_snapshot_created_timestamp_seconds": 1e9, "srvd_watched": 1, "srvd_snapshots_published_total": 1, "srvd_watch_events_total": 1,
		"srvd_watch_lost_total": 0, "srvd_rescans_total": 1, "srvd_rescan_seconds_total": 1e-6, "srvd_served_bytes_total": 6_000_000, "srvd_served_contents_total": 100,
	} {
		if got := value(source, name, "service", "web"); got < least {
			t.Errorf("%s is %g, want %g at least", name, got, least)
		}
	}
	if got := value(source, "srvd_standbys_connected"); got != 1 {
		t.Errorf("%g standbys are connected", got)
	}
	if value(source, "srvd_requests_total", "call", "Await") < 1 || value(source, "srvd_connections") < 1 {
		t.Errorf("%v", source)
	}

	standby := s.scrape(s.standby, "9102")
	for _, v := range []struct {
		name        string
		least, most float64
		labels      []string
	}{
		{"srvfs_store_bytes", 6_000_000, 1e9, nil},
		{"srvfs_store_files", 100, 1e5, nil},
		{"srvfs_fetched_bytes_total", 6_000_000, 1e9, []string{"origin", origin}},
		{"srvfs_fetch_requests_total", 3, 1e5, nil},
		{"srvfs_fetch_failures_total", 0, 0, nil},
		{"srvfs_fetch_corrupt_total", 0, 0, nil},
		{"srvfs_content_hits_total", 1, 1e6, []string{"from", "store"}},
		{"srvfs_content_hits_total", 1, 1e6, []string{"from", "local"}},
		{"srvfs_store_dropped_total", 0, 0, nil},
		{"srvfs_views", 1, 1, nil},
		{"srvfs_follows", 1, 1, nil},
		{"srvfs_prefetches", 0, 0, nil},
		{"srvfs_service_up", 1, 1, []string{"service", "web"}},
		{"srvfs_service_detached", 1, 1, []string{"service", "web"}},
		{"srvfs_service_missing_bytes", 0, 0, []string{"service", "web"}},
		{"srvfs_service_snapshot", 2, 1e6, []string{"service", "web"}},
		{"srvfs_follow_snapshot", 2, 1e6, []string{"source", origin, "service", "web"}},
		{"srvfs_follow_behind_snapshots", 0, 0, []string{"source", origin, "service", "web"}},
		{"srvfs_follow_behind_seconds", 0, 0, []string{"source", origin, "service", "web"}},
		{"srvfs_follow_up", 1, 1, []string{"source", origin, "service", "web"}},
		{"srvfs_follow_detached", 1, 1, []string{"source", origin, "service", "web"}},
		{"srvfs_follow_missing_bytes", 0, 0, []string{"source", origin, "service", "web"}},
	} {
		if got := value(standby, v.name, v.labels...); got < v.least || got > v.most {
			t.Errorf("%s%v is %g, want %g to %g", v.name, v.labels, got, v.least, v.most)
		}
	}
	s.on(s.standby, "srvfs stop web")
	if got := value(s.scrape(s.standby, "9102"), "srvfs_service_up", "service", "web"); got != 0 {
		t.Errorf("a service that was stopped is %g up", got)
	}
	s.endProcess(s.source, "srvd", "KILL")
	s.await("that the source is gone shows", func() bool {
		return value(s.scrape(s.standby, "9102"), "srvfs_follow_up", "source", origin, "service", "web") == 0
	})
	s.on(s.standby, "srvfs unfollow web && srvfs remove web")
	s.endProcess(s.standby, "srvfs", "TERM")
	s.noResidue(s.standby)
}
