package store

import (
	"testing"
	"testing/synctest"
	"time"

	"srvfs/manifest"
)

// A rate is the mean of two seconds, and forgets what was before.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		want := func(what string, low, high float64) {
			t.Helper()
			if got := m.rate(); got < low || got > high {
				t.Errorf("%s: %g bytes/s, want %g to %g", what, got, low, high)
			}
		}
		want("nothing", 0, 0)
		for range 100 { // 100 kB/s for ten seconds
			m.add(10_000)
			time.Sleep(100 * time.Millisecond)
		}
		want("an even flow", 85_000, 105_000)
		time.Sleep(time.Second)
		want("a second later", 35_000, 65_000)
		time.Sleep(time.Second)
		want("two seconds later", 0, 10_000)
		time.Sleep(time.Hour)
		want("an hour later", 0, 0)
		m.add(1000)
		want("at once", 500, 500)
	})
}

// What comes is counted by the source that sent it, whichever way it was asked for.
func TestOrigins(t *testing.T) {
	one, two := newOrigin(), newOrigin()
	small, large := random(5000, 1), random(5*chunk+77, 2)
	snap := one.tree(map[string][]byte{"/small": small, "/large": large})
	delete(one.content, manifest.Sum(small))
	two.put(small)
	s := openStore(t, Options{})
	r := s.Reader(Source{Name: "one", Origin: batchOrigin{one}}, Source{Name: "two", Origin: two})
	if err := r.Prefetch(ctxOf(t), snap, nil); err != nil {
		t.Fatal(err)
	}
	got := s.Origins()
	if got["two"] != uint64(len(small)) || got["one"] != uint64(len(large))+s.Stats().MetaBytes {
		t.Errorf("%v; %+v", got, s.Stats())
	}
	if r.Rate() <= 0 || s.Reader().Rate() != 0 {
		t.Errorf("rates %g and %g", r.Rate(), s.Reader().Rate())
	}
	if use, err := s.Usage(); err != nil || use != (Count{2, int64(len(small) + len(large))}) {
		t.Errorf("usage %+v, %v", use, err)
	}
}
