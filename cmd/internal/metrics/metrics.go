// Package metrics tells monitoring how a daemon stands: on request, in the text format of
// Prometheus.
//
// A [Page] is made anew for each request by a function that asks the daemon, so a
// daemon keeps no numbers for it but the counters that it has anyway, and who is never
// asked does nothing. (The usual client library does the same and more; it adds a
// millisecond to the start of each command and of each helper process, which is a tenth.)
package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A Page is the answer to one request: families of samples, in the order in which they
// were first named.
type Page struct {
	families []*family
	byName   map[string]*family
}

type family struct {
	name, help, kind string
	samples          []string
}

// Counter adds a sample that only grows while the daemon runs. Its name ends in _total.
// Labels are pairs of a name and a value.
func (p *Page) Counter(name, help string, value float64, labels ...string) {
	p.add("counter", name, help, value, labels)
}

// Gauge adds a sample that goes up and down.
func (p *Page) Gauge(name, help string, value float64, labels ...string) {
	p.add("gauge", name, help, value, labels)
}

// Bool is 1 or 0.
func Bool(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (p *Page) add(kind, name, help string, value float64, labels []string) {
	f := p.byName[name]
	if f == nil {
		f = &family{name: name, help: help, kind: kind}
		if p.byName == nil {
			p.byName = map[string]*family{}
		}
		p.byName[name] = f
		p.families = append(p.families, f)
	}
	var b strings.Builder
	b.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		b.WriteString([]string{"{", ","}[min(i, 1)])
		b.WriteString(labels[i] + `="` + escapeLabel.Replace(strings.ToValidUTF8(labels[i+1], "\uFFFD")) + `"`)
	}
	if len(labels) > 1 {
		b.WriteByte('}')
	}
	b.WriteByte(' ')
	b.WriteString(number(value))
	f.samples = append(f.samples, b.String())
}

func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

var (
	escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
)

// WriteTo writes the page in version 0.0.4 of the text format.
func (p *Page) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	for _, f := range p.families {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", f.name, escapeHelp.Replace(f.help), f.name, f.kind)
		for _, s := range f.samples {
			b.WriteString(s + "\n")
		}
	}
	return b.WriteTo(w)
}

// ContentType is that of a written page.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// gatherMax is how long a page may take to be made.
const gatherMax = 30 * time.Second

// Check refuses what is no address for [Listen].
func Check(addr string) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return fmt.Errorf("%q is not of the form [HOST]:PORT", addr)
	}
	return nil
}

// Listen opens the address that pages are asked for at: HOST:PORT, or :PORT for this host
// alone (127.0.0.1).
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("address for metrics %q: %w: give HOST:PORT, or :PORT for this host alone", addr, err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w; choose another address", err)
	}
	return l, nil
}

// Serve answers GET /metrics on l, which it closes, until ctx ends, with pages that gather
// fills, by one request at a time.
func Serve(ctx context.Context, l net.Listener, log *slog.Logger, gather func(context.Context, *Page) error) error {
	turn := make(chan struct{}, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), gatherMax)
		defer cancel()
		var p Page
		var err error
		select {
		case turn <- struct{}{}:
			err = gather(ctx, &p)
			<-turn
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			log.Warn("metrics", "error", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", ContentType)
		_, _ = p.WriteTo(w)
	})
	srv := &http.Server{Handler: mux, BaseContext: func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second, WriteTimeout: gatherMax + 10*time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve metrics on %v: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	err := srv.Close() // a page that is half written is of no use
	if e := <-failed; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}
