package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// errNoMoment: what must be of one moment can't be had so just now.
var errNoMoment = errors.New("what the service writes to was of no one moment")

// errHeld: it can be had only by a capture.
var errHeld = errors.New("data stays what it was when it was captured")

// refreeze brings what must be of one moment up to what it is now, all of it as of one
// moment, and publishes a snapshot if it has changed. The error wraps errNoMoment if it
// did not hold still, and errHeld if it takes a command of the administrator to make it.
func (f *follower) refreeze(ctx context.Context) (published bool, err error) {
	if len(f.moments) == 0 {
		return false, nil
	}
	if f.scope.Hooks {
		return false, fmt.Errorf("%w: it was captured with --freeze, which a capture runs: %w", errHeld, errNoMoment)
	}
	u := f.begin(ctx)
	u.moment = true
	for _, p := range f.moments {
		if err := u.visit(p, true); err != nil {
			return false, err
		}
	}
	if err := u.explain(); err != nil {
		return false, err
	}
	root, err := rootfs.New(f.index.root)
	if err != nil {
		return false, err
	}
	defer func() { _ = root.Close() }()
	c := &capturing{Options: Options{Name: f.at.Service, StateDir: f.lib.dir, Log: f.log}, result: &Result{},
		library: f.lib, cache: f.cache, root: root, dir: f.dir, hasher: u.hasher, unfrozen: map[string]bool{}}
	if err := c.holdFrozen(); err != nil {
		return false, err
	}
	defer c.dropFrozen()
	var paths []string
	for p, s := range u.seen {
		if s.now != nil && s.now.entry.Type == manifest.File && s.now.entry.Size > 0 {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	all := map[string]*frozen{}
	if _, err := c.moment(ctx, paths, all); err != nil {
		return false, err
	}
	switch {
	case len(c.unfrozen) > 0:
		return false, fmt.Errorf("%w: without reflinks it is too much to be copied: %w", errHeld, errNoMoment)
	case len(c.result.Warnings) > 0:
		return false, fmt.Errorf("%w: %s", errNoMoment, c.result.Warnings[0])
	}
	if err := c.digestFrozen(ctx, all); err != nil {
		return false, err
	}
	u.hasher.frozen = all
	retry, err := u.hash()
	if err != nil {
		return false, err
	}
	if len(retry) > 0 {
		return false, fmt.Errorf("%w: %s came meanwhile", errNoMoment, retry[0])
	}
	edits := u.edits()
	if len(edits) == 0 {
		return false, nil
	}
	with := edition{copies: c.frozenFolder(), frozen: []manifest.Digest{}}
	seen := map[manifest.Digest]bool{}
	for _, s := range u.seen {
		if s.now != nil && s.now.frozen && !seen[s.now.entry.Digest] {
			seen[s.now.entry.Digest] = true
			with.frozen = append(with.frozen, s.now.entry.Digest)
		}
	}
	if err := f.mounted(); err != nil {
		return false, err
	}
	return true, u.publish(edits, with)
}
