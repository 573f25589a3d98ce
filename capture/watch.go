package capture

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// Watch calls f at once, and then each time after what is published has changed, by
// whatever process, until ctx ends. Changes that come while f runs are one.
func (l *Library) Watch(ctx context.Context, f func()) (err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", l.dir, err)
	}
	defer func() { _ = w.Close() }()
	if err := w.Add(l.dir); err != nil {
		return fmt.Errorf("watch %s: %w", l.dir, err)
	}
	changed := make(chan struct{}, 1)
	changed <- struct{}{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-changed:
				f()
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() { <-ended }()
	for {
		select {
		case e := <-w.Events:
			if filepath.Base(e.Name) != currentName {
				continue
			}
		case <-w.Errors: // events were lost: perhaps that one
		case <-ctx.Done():
			return nil
		}
		select {
		case changed <- struct{}{}:
		default: // f will be called anyway
		}
	}
}
