package metrics

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func parse(t *testing.T, r io.Reader) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	all, err := p.TextToMetricFamilies(r)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What is written is what Prometheus's own parser reads.
func TestPage(t *testing.T) {
	var p Page
	odd := "a\\b\"c\nd é \xff"
	p.Counter("x_total", "with a \\ and\na line", 3, "name", odd, "other", "")
	p.Gauge("y", "fraction", 0.125)
	p.Counter("x_total", "ignored", 1<<40, "name", "second")
	p.Gauge("z", "far", math.Inf(1))
	p.Gauge("w", "bool", Bool(true))
	p.Gauge("v", "bool", Bool(false))
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	all := parse(t, &b)
	x := all["x_total"]
	if len(all) != 5 || x.GetType() != dto.MetricType_COUNTER || x.GetHelp() != "with a \\ and\na line" || len(x.GetMetric()) != 2 {
		t.Fatalf("%v", all)
	}
	first := x.GetMetric()[0]
	if got := first.GetLabel()[0].GetValue(); got != strings.ToValidUTF8(odd, "\uFFFD") || first.GetCounter().GetValue() != 3 || x.GetMetric()[1].GetCounter().GetValue() != 1<<40 {
		t.Errorf("%v", x)
	}
	if y := all["y"]; y.GetType() != dto.MetricType_GAUGE || y.GetMetric()[0].GetGauge().GetValue() != 0.125 || all["w"].GetMetric()[0].GetGauge().GetValue() != 1 {
		t.Errorf("%v", y)
	}
}

func TestServe(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, bad := range []string{"", "9000", "nowhere.invalid:1", "127.0.0.1:99999"} {
		if l, err := Listen(ctx, bad); err == nil {
			t.Errorf("listens on %q: %v", bad, l.Addr())
		}
	}
	l, err := Listen(ctx, ":0")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(l.Addr().String(), "127.0.0.1:") {
		t.Errorf("without a host it listens on %v", l.Addr())
	}
	var fine atomic.Bool
	serving, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- Serve(serving, l, slog.New(slog.DiscardHandler), func(_ context.Context, p *Page) error {
			p.Gauge("up", "here", 1)
			if !fine.Load() {
				return errors.New("no")
			}
			return nil
		})
	}()
	get := func(path string) (int, string, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header.Get("Content-Type"), string(b)
	}
	if code, _, body := get("/metrics"); code != 500 || body != "no\n" {
		t.Errorf("%d %q", code, body)
	}
	fine.Store(true)
	if code, kind, body := get("/metrics"); code != 200 || kind != ContentType || body != "# HELP up here\n# TYPE up gauge\nup 1\n" {
		t.Errorf("%d %q %q", code, kind, body)
	}
	if code, _, _ := get("/other"); code != 404 {
		t.Errorf("another path: %d", code)
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
