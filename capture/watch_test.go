package capture

import (
	"context"
	"testing"
)

// Whoever watches hears of what is there, of what another process publishes, and of
// what is removed.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	l, other := must(OpenLibrary(dir))(t), must(OpenLibrary(dir))(t)
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan int)
	ended := make(chan error, 1)
	go func() {
		ended <- l.Watch(ctx, func() {
			all, err := l.List()
			if err != nil {
				t.Error(err)
			}
			select {
			case seen <- len(all):
			case <-ctx.Done():
			}
		})
	}()
	if n := <-seen; n != 0 {
		t.Errorf("%d services at the beginning", n)
	}
	root := t.TempDir()
	write(t, root+"/etc/motd", "hello", 0o644)
	publish(t, other, "web", root)
	for n := range seen { // changes that come together are one or two
		if n == 1 {
			break
		}
	}
	check(t, other.Remove("web"))
	for n := range seen {
		if n == 0 {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
