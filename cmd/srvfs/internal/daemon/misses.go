package daemon

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"srvfs/manifest"
)

const (
	// reportDelay is how long a miss waits for others to be reported with.
	reportDelay = time.Second
	// reportPause is the least time between two reports that failed.
	reportPause = 5 * time.Second
	// maxPending bounds the misses that wait to be reported: a service that looks
	// for ever new names must not fill the memory.
	maxPending = 4096
	// maxReportBytes bounds one report.
	maxReportBytes = 64 << 10
	maxNoted       = 1000
)

// Misses are the names that a service looked for in its root and that its
// snapshot does not have. They are reported to the source, which notes those that
// it has: so a capture learns from use.
type misses struct {
	mu      sync.Mutex
	pending []string
	noted   []string // the source has them
	closed  bool     // the source wants no reports
	wake    chan struct{}
}

func newMisses() *misses { return &misses{wake: make(chan struct{}, 1)} }

// add is called by the view while somebody waits.
func (m *misses) add(path string) {
	m.mu.Lock()
	wake := !m.closed && len(m.pending) == 0
	if !m.closed && len(m.pending) < maxPending {
		m.pending = append(m.pending, path)
	}
	m.mu.Unlock()
	if wake {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// take returns what is to be reported next.
func (m *misses) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, size := 0, 0
	for n < len(m.pending) && n < manifest.MaxMisses && size < maxReportBytes {
		size += len(m.pending[n])
		n++
	}
	batch := slices.Clone(m.pending[:n])
	m.pending = slices.Delete(m.pending, 0, n)
	return batch
}

// note remembers what the source has.
func (m *misses) note(batch []string, verdicts []manifest.Verdict) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, p := range batch {
		if verdicts[i] != manifest.VerdictNoted || len(m.noted) == maxNoted {
			continue
		}
		if at, ok := slices.BinarySearch(m.noted, p); !ok {
			m.noted = slices.Insert(m.noted, at, p)
		}
	}
}

func (m *misses) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed, m.pending = true, nil
}

// list returns, sorted, what the source has noted.
func (m *misses) list() []string {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.noted)
}

// report sends a service's misses to its source until ctx ends. A source that
// does not answer is asked again when it does.
func (d *daemon) report(ctx context.Context, v *view) {
	m := v.misses
	for wait(ctx, m.wake) && pause(ctx, reportDelay) {
		for batch := m.take(); len(batch) > 0; {
			batch = d.notMadeHere(v.service, batch)
			w, _, err := d.find(ctx, v.source)
			var verdicts []manifest.Verdict
			if err == nil && len(batch) > 0 {
				verdicts, err = w.demand.Missed(ctx, v.name, batch)
			}
			switch {
			case err == nil:
				m.note(batch, verdicts)
				batch = m.take()
			case ctx.Err() != nil:
				return
			case w == nil || !errors.Is(err, manifest.ErrUnavailable):
				d.Log.Info("the source takes no reports of what the service looks for in vain", "service", v.service, "error", err)
				m.close()
				return
			case !pause(ctx, reportPause) || w.demand.AwaitConnected(ctx) != nil:
				return
			}
		}
	}
}

// notMadeHere leaves out what the service has made itself meanwhile.
func (d *daemon) notMadeHere(name string, paths []string) []string {
	d.mu.Lock()
	r := d.services[name]
	d.mu.Unlock()
	if r == nil {
		return paths
	}
	upper, err := os.OpenRoot(r.State().Upper)
	if err != nil {
		return paths
	}
	defer func() { _ = upper.Close() }()
	return slices.DeleteFunc(paths, func(p string) bool {
		_, err := upper.Lstat(strings.TrimPrefix(p, "/"))
		return err == nil
	})
}

// wait waits for an event, and reports whether it came before ctx ended.
func wait(ctx context.Context, event <-chan struct{}) bool {
	select {
	case <-event:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause waits for a time, and reports whether ctx did not end before.
func pause(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
