package rpc

import (
	"errors"
	"testing"
	"time"

	"srvfs/manifest"
)

// A standby hears of a new snapshot when it is published, and that the source lives when
// none is.
func TestAwait(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{Deadline: time.Second})
	first, err := c.Await(w.ctx(), "web", manifest.Digest{})
	if err != nil || first.Name != "web" || first.Digest.IsZero() {
		t.Fatalf("%+v, %v", first, err)
	}
	began := time.Now()
	same, err := c.Await(w.ctx(), "web", first.Digest)
	if err != nil || same.Digest != first.Digest {
		t.Errorf("%+v, %v", same, err)
	}
	if waited := time.Since(began); waited < 400*time.Millisecond {
		t.Errorf("it answered after %v, and nothing was new", waited)
	}
	for range 3 {
		answer := make(chan ServiceInfo, 1)
		go func() {
			v, err := c.Await(w.ctx(), "web", first.Digest)
			if err != nil {
				t.Error(err)
			}
			answer <- v
		}()
		w.lib.publish("web", append(w.lib.snapshot["web"], 0))
		if v := <-answer; v.Digest == first.Digest {
			t.Errorf("%+v", v)
		} else {
			first = v
		}
	}
	if _, err := c.Await(w.ctx(), "none", manifest.Digest{}); !errors.Is(err, manifest.ErrNotFound) {
		t.Errorf("a service that is not there: %v", err)
	}
	mail := newWorld(t, ServerOptions{}).pair(ClientOptions{}, "mail")
	if _, err := mail.Await(w.ctx(), "web", manifest.Digest{}); !errors.Is(err, manifest.ErrDenied) {
		t.Errorf("a service that it was not paired for: %v", err)
	}
	if _, err := c.Await(w.ctx(), "../web", manifest.Digest{}); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("no service name: %v", err)
	}
	w.stop()
	if _, err := c.Await(w.ctx(), "web", first.Digest); !errors.Is(err, manifest.ErrUnavailable) {
		t.Errorf("the source is away: %v", err)
	}
}
