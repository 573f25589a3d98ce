package capture

import (
	"srvfs/manifest"

	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"srvfs/capture/trace"
)

// verify starts the service from the built tree alone. It returns the paths
// that the service looked for there, that exist on the source, and that were
// not in; they are in the closure afterwards. An error is final.
func (c *capturing) verify(ctx context.Context, round int) ([]string, error) {
	info, err := c.log.Stat()
	if err != nil {
		return nil, err
	}
	s, err := c.replicate(ctx)
	if err != nil {
		return nil, err
	}
	in := c.instance(s)
	if c.large = c.closure.largeFiles(c.first.out.accesses[:c.first.out.started]); c.large != nil {
		in.reads = func(p string) bool { return c.large[p] }
	}
	if round < rounds {
		in.lacks = func(accesses []trace.Access) bool {
			return slices.ContainsFunc(c.leftOut(accesses), func(p string) bool { return c.closure.allowed(p, ClassTraced) && !matchAny(logs, p) })
		}
	}
	// While the service is being stopped there is time for what the snapshot wants
	// when this was enough.
	answered, done := make(chan struct{}), make(chan outcome, 1)
	in.answered = func(outcome) { close(answered) }
	go func() { done <- in.run(ctx) }()
	var out outcome
	select {
	case <-answered:
		marked := c.markModified(ctx)
		if out = <-done; marked != nil {
			return nil, marked
		}
	case out = <-done:
	}
	accesses, failed := out.accesses, out.err
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, g := range out.gaps {
		c.warn(g.String())
	}
	before := len(c.closure.items)
	had := maps.Clone(c.closure.items)
	c.closure.observe(accesses)
	c.addFolders(accesses)
	if len(c.closure.items) > before {
		if err := c.grow(ctx); err != nil {
			return nil, err
		}
	}
	learned := c.closure.chooseFresh()
	for p := range c.closure.items {
		if had[p] == nil {
			learned = append(learned, p)
		}
	}
	slices.Sort(learned)
	if len(learned) > 0 && round < rounds {
		return learned, nil
	}
	if failed != nil {
		what := "every path that it looked for and that exists on the source was there"
		if len(learned) > 0 {
			what = fmt.Sprintf("still missing after %d rounds: %s", rounds, few(learned))
		} else if out := c.leftOut(accesses); len(out) > 0 {
			what = "it looked for these, which exist on the source and were left out: " + few(out)
		}
		return nil, fmt.Errorf("%w from the snapshot: %w; %s%s", manifest.ErrUnhealthy, failed, what, logTail(c.log, info.Size()))
	}
	c.last = out
	return nil, nil
}

// leftOut returns the files that the service looked for, that exist on the
// source and that are not in: excluded ones, logs, files of other file systems.
func (c *capturing) leftOut(accesses []trace.Access) []string {
	var out []string
	for _, a := range accesses {
		root, prefix, p := c.closure.rootOf(a)
		if isPseudo(path.Clean(p)) {
			continue // /proc/self/exe is something else to whoever asks
		}
		canonical, _, err := root.Resolve(p)
		if err != nil {
			continue
		}
		canonical = path.Join(prefix, canonical)
		if info, err := c.root.Lstat(canonical); err != nil || info.Mode()&fs.ModeSocket != 0 {
			continue // of the running instance; the service makes its own
		}
		if c.closure.items[canonical] == nil && !isPseudo(canonical) && !slices.Contains(out, canonical) {
			out = append(out, canonical)
		}
	}
	return out
}

// replicate makes the stage of a verification.
func (c *capturing) replicate(ctx context.Context) (*stage, error) {
	config := stageConfig{mounts: c.realMounts(), folders: c.unitFolders(), scratch: c.Scratch, log: c.log, frozen: c.frozenFolder()}
	r := &replica{meta: c.tree.meta, mounts: config.mounts, frozen: c.hasher.frozen, frozenDir: config.frozen}
	config.build = func(dir string) error { return r.make(ctx, &c.tree.root, c.tree.totals.Entries, dir) }
	s, err := newStage(ctx, config)
	var layer *layerError
	if errors.As(err, &layer) {
		// No redirects into this file system: then with copies of the content.
		c.warn("this kernel can't show the source's files in another tree (" + err.Error() + "); they were copied into memory to verify the snapshot")
		r.copyFrom = c.dir
		config.copies = true
		s, err = newStage(ctx, config)
	}
	return s, err
}
