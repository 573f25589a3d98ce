package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Remove takes away all that a service left in dir, and dir itself: processes,
// mounts, folders, what it wrote. It needs no Stop before if the process that
// started the service was killed. A dir that does not exist is no error. While
// the service runs it refuses with [ErrRunning]. What somebody mounted below
// dir is unmounted, never emptied.
func Remove(ctx context.Context, dir string) error {
	d, err := lockDir(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	defer d.unlock()
	if err := d.remove(ctx); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

func (d *dir) remove(ctx context.Context) error {
	r, err := d.load()
	if err != nil {
		return fmt.Errorf("%w: end the service's processes by hand, delete %s and try again", err, d.in(stateName))
	}
	// In the reverse order of how they came to be.
	if err := killMarked(ctx, r.Mark); err != nil {
		return err
	}
	if err := unmountBelow(d.path); err != nil {
		return err
	}
	names, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Name() == lockName || n.Name() == stateName {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := os.RemoveAll(d.in(n.Name())); err != nil {
			return err
		}
	}
	// The record goes last, so that a removal that was cut short can be repeated.
	return os.RemoveAll(d.path)
}
