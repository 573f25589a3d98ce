package capture

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/capture/rootfs"
	"srvfs/capture/trace"
	"srvfs/manifest"
	"srvfs/manifest/statcache"
	"srvfs/probe"
)

// rounds is how often a verification that finds something missing is repeated.
const rounds = 5

// Capture finds, traces, closes, builds, verifies and publishes one snapshot.
// Nothing is published unless the service was started from the finished
// snapshot and its probes were answered.
//
// Errors wrap [manifest.ErrInvalid] for bad options, [manifest.ErrNotFound] for
// a unit, package or path that does not exist, [manifest.ErrDenied] without the
// rights, [manifest.ErrStale] for a file that does not stop changing,
// [manifest.ErrNoSpace] when the state folder is full, and the context's. That
// the service does not start, or a probe is not answered, is said with the last
// lines of its log.
func Capture(ctx context.Context, o Options) (*Result, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	c := &capturing{Options: o, result: &Result{}}
	defer c.close()
	if err := c.capture(ctx); err != nil {
		if errors.Is(err, unix.ENOSPC) && !errors.Is(err, manifest.ErrNoSpace) {
			err = fmt.Errorf("%w: %w", err, manifest.ErrNoSpace)
		}
		return nil, fmt.Errorf("capture %s: %w", o.Name, err)
	}
	return c.result, nil
}

// capturing is one capture under way.
type capturing struct {
	Options
	result *Result

	library *Library
	cache   *statcache.Cache
	live    *Live
	log     *os.File
	root    *rootfs.Root
	dir     *os.File // the root, O_PATH
	held    *os.File // the root that was unpacked for it; see holdRoot
	mounts  []sourceMount
	probes  []*probe.Probe
	service *service
	closure *closure
	hasher  *hasher
	folders []folder // of the source's /run and the like

	first *firstRun       // over the source's own root
	seen  int             // how many of its accesses are in the closure
	last  outcome         // of the run from the snapshot
	large map[string]bool // files of which it is known what that run read
	tree  *tree

	copies    int             // names of copies that were given
	frozenDir *os.File        // the folder of the copies of this capture, held; nil if there are none
	unfrozen  map[string]bool // what was not copied since there are no reflinks
}

func (c *capturing) close() {
	if c.first != nil {
		c.first.cancel()
		<-c.first.done
	}
	c.dropFrozen()
	var files []*os.File
	if c.cache != nil {
		_ = c.cache.Close()
	}
	if c.live != nil {
		_ = c.live.Close()
	}
	if c.root != nil {
		_ = c.root.Close()
	}
	if c.closure != nil {
		for _, r := range c.closure.chroots {
			_ = r.Close()
		}
	}
	for _, f := range append(files, c.log, c.dir, c.held) {
		if f != nil {
			_ = f.Close()
		}
	}
}

// step runs one step, and reports how long it took.
func (c *capturing) step(name string, f func() (detail string, err error)) error {
	start := time.Now()
	detail, err := f()
	took := time.Since(start)
	if err != nil {
		return err
	}
	c.result.Steps = append(c.result.Steps, Step{Name: name, Took: took, Detail: detail})
	c.Log.Info("capture", "service", c.Name, "step", name, "took", took, "detail", detail)
	if c.Progress != nil {
		c.Progress(name, took, detail)
	}
	return nil
}

func (c *capturing) capture(ctx context.Context) error {
	if len(c.RPMs) > 0 {
		if err := c.step("unpack", func() (string, error) { return c.unpack(ctx) }); err != nil {
			return err
		}
		c.Packages = append(slices.Clone(c.Packages), c.RPMs...) // all of them belong to it
	}
	if err := c.open(); err != nil {
		return err
	}
	if err := c.step("find", c.find); err != nil {
		return err
	}
	if c.Watch > 0 {
		if err := c.step("watch", func() (string, error) { return c.watch(ctx) }); err != nil {
			return err
		}
	}
	err := c.prove(ctx)
	if err != nil && c.PID != 0 && errors.Is(err, manifest.ErrUnhealthy) && c.service.goesIntoBackground() {
		err = c.prove(ctx)
	}
	if err != nil {
		return err
	}
	return c.step("publish", func() (string, error) { return c.publish(ctx) })
}

// prove traces the service, and builds snapshots until one of them is enough.
func (c *capturing) prove(ctx context.Context) error {
	if err := c.step("trace", func() (string, error) { return c.trace(ctx) }); err != nil {
		return err
	}
	if err := c.step("close", func() (string, error) { return c.shut(ctx) }); err != nil {
		return err
	}
	for round := 1; ; round++ {
		c.closure.chooseFresh()
		if err := c.freeze(ctx); err != nil {
			return err
		}
		if err := c.step("build", func() (string, error) { return c.build(ctx) }); err != nil {
			return err
		}
		var learned []string
		err := c.step("verify", func() (detail string, err error) {
			learned, err = c.verify(ctx, round)
			switch {
			case len(learned) > 0:
				detail = fmt.Sprintf("%d paths were missing: %s", len(learned), few(learned))
			case len(c.probes) == 0:
				detail = fmt.Sprintf("the service starts from the snapshot in %d ms; without a probe that it works is assumed", c.last.took.Milliseconds())
			default:
				detail = fmt.Sprintf("the service works from the snapshot alone; it answered after %d ms", c.last.took.Milliseconds())
			}
			return detail, err
		})
		if err != nil {
			return err
		}
		if len(learned) == 0 {
			if c.Freeze != "" && c.frozenDir == nil {
				c.warn("--freeze was not run: nothing was found that the service writes to and that is kept")
			}
			return nil
		}
		c.result.Learned = append(c.result.Learned, learned...)
	}
}

// open opens what all steps use.
func (c *capturing) open() (err error) {
	for _, s := range c.Probes {
		p, err := probe.Parse(s)
		if err != nil {
			return err
		}
		c.probes = append(c.probes, p)
	}
	var exclude []Pattern
	for _, s := range c.Exclude {
		p, err := ParsePattern(s)
		if err != nil {
			return fmt.Errorf("--exclude: %w", err)
		}
		exclude = append(exclude, p)
	}
	if c.library, err = OpenLibrary(c.StateDir); err != nil {
		return err
	}
	c.live = c.library.Live()
	if c.cache, err = statcache.Open(filepath.Join(c.StateDir, "digests")); err != nil {
		return err
	}
	logs := filepath.Join(c.StateDir, "logs")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return err
	}
	c.result.Log = filepath.Join(logs, c.Name+".log")
	if c.log, err = os.OpenFile(c.result.Log, os.O_CREATE|os.O_TRUNC|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return err
	}
	if c.root, err = rootfs.New(c.Root); err != nil {
		return err
	}
	fd, err := unix.Open(c.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: c.Root, Err: err}
	}
	c.dir = os.NewFile(uintptr(fd), c.Root)
	c.hasher = newHasher(c.dir, c.cache, c.chunkList)
	if c.mounts, err = mountsBelow(c.Root); err != nil {
		return err
	}
	// What this program itself keeps is no part of a service.
	for _, p := range []string{c.StateDir} {
		if in, ok := below(c.Root, p); ok {
			exclude = append(exclude, literal(in))
		}
	}
	c.closure = newClosure(c.root, c.mounts, exclude)
	for _, p := range c.Include {
		in, err := includePath(p)
		if err != nil {
			return err
		}
		if _, err := c.root.Lstat(in); err != nil {
			return fmt.Errorf("--include %s: %w in %s: %w", p, manifest.ErrNotFound, c.Root, err)
		}
	}
	return nil
}

func (c *capturing) find() (string, error) {
	s, warnings, err := find(&c.Options, c.root)
	if err != nil {
		return "", err
	}
	c.service = s
	c.result.Warnings = append(c.result.Warnings, warnings...)
	c.result.Assumed = len(c.probes) == 0
	c.folders = skeleton(c.root)
	for _, u := range s.units {
		c.closure.env = append(c.closure.env, u.Env...)
	}
	return fmt.Sprintf("%d unit(s)", len(s.units)), nil
}

func (c *capturing) instance(s *stage) *instance {
	return &instance{units: c.service.units, probes: c.probes, timeout: c.StartTimeout, stage: s, log: c.log}
}

// A firstRun is the run of the service over the source's own root. It goes on in
// the background: the service waits for its own reasons, and the rest of the
// capture need not.
type firstRun struct {
	cancel   context.CancelFunc
	answered chan outcome  // until the probes were answered
	done     chan struct{} // closed when out is set
	out      outcome       // of the whole run
}

// begin starts the service over the source's own root.
func (c *capturing) begin(ctx context.Context) *firstRun {
	ctx, cancel := context.WithCancel(ctx)
	r := &firstRun{cancel: cancel, answered: make(chan outcome, 1), done: make(chan struct{})}
	folders := append(slices.Clone(c.folders), c.unitFolders()...)
	config := stageConfig{mounts: c.realMounts(), folders: folders, scratch: c.Scratch, log: c.log}
	go func() {
		defer close(r.done)
		s, err := newStage(ctx, config)
		if err != nil {
			r.out.err = err
			return
		}
		in := c.instance(s)
		in.answered = func(until outcome) { r.answered <- until }
		if r.out = in.run(ctx); r.out.err != nil {
			r.out.err = fmt.Errorf("%w in the sandbox, in which nothing is changed yet: %w%s%s", manifest.ErrUnhealthy, r.out.err, c.service.socketHint(), logTail(c.log, 0))
		}
	}()
	return r
}

// trace starts the service, and while it starts finds and hashes what is needed
// whatever it touches.
func (c *capturing) trace(ctx context.Context) (string, error) {
	c.first = c.begin(ctx)
	if err := c.ahead(ctx); err != nil {
		return "", err
	}
	var until outcome
	select {
	case until = <-c.first.answered:
	case <-c.first.done:
		select {
		case until = <-c.first.answered:
		default: // it never came so far
			return "", c.first.out.err
		}
	}
	c.closure.observe(until.accesses)
	c.seen = until.started
	return fmt.Sprintf("%d packages; the service answered after %d ms, %d accesses", len(c.service.needed), until.took.Milliseconds(), until.started), nil
}

func (c *capturing) warn(s string) {
	if !slices.Contains(c.result.Warnings, s) {
		c.result.Warnings = append(c.result.Warnings, s)
	}
}

// addFolders notes which of the source's folders in /run the service counts on.
func (c *capturing) addFolders(accesses []trace.Access) {
	u := c.service.units[0]
	for _, f := range touchedFolders(c.folders, accesses, c.root) {
		if !slices.ContainsFunc(c.service.units, func(u *manifest.Unit) bool {
			return slices.ContainsFunc(u.Folders, func(have manifest.Folder) bool { return have.Path == f.path })
		}) {
			u.Folders = append(u.Folders, f.manifest())
		}
	}
}

func (c *capturing) unitFolders() []folder {
	var out []folder
	for _, u := range c.service.units {
		for _, f := range u.Folders {
			out = append(out, folder{path: f.Path, mode: f.Mode, uid: f.UID, gid: f.GID})
		}
	}
	return out
}

func (c *capturing) realMounts() []sourceMount {
	return slices.DeleteFunc(slices.Clone(c.mounts), func(m sourceMount) bool { return !m.real })
}

// ahead adds to the closure what does not depend on the trace, and hashes it.
func (c *capturing) ahead(ctx context.Context) error {
	cl := c.closure
	warnings, err := c.service.packages(c.root)
	if err != nil {
		return err
	}
	c.result.Warnings = append(c.result.Warnings, warnings...)
	if c.service.db != nil && c.service.db.Kind() == "rpm" { // Debian's has no SHA-256
		c.hasher.shipped = (&shipped{db: c.service.db}).digest
	}
	cl.running(c.service)
	if err := c.missed(ctx); err != nil {
		return err
	}
	for i, info := range c.service.infos {
		for _, f := range info.Files {
			cl.add(f, Reason{ClassRule, "the service is defined there"})
		}
		for _, f := range info.Folders {
			if err := cl.addTree(ctx, f, Reason{ClassData, "data folder that " + info.Name + " asks for"}); err != nil {
				return err
			}
		}
		u := c.service.units[i]
		for _, cs := range [][]manifest.Command{u.Pre, u.Start, u.Post, u.Stop} {
			for _, cmd := range cs {
				cl.add(cmd.Argv[0], Reason{ClassRule, "command of " + u.Name})
			}
		}
		if u.Dir != "" {
			cl.add(u.Dir, Reason{ClassRule, "working directory of " + u.Name})
		}
	}
	if err := cl.packages(c.service); err != nil {
		return err
	}
	for _, p := range c.Include {
		in, err := includePath(p)
		if err != nil {
			return err
		}
		if err := cl.addTree(ctx, in, Reason{ClassUser, includeText + p}); err != nil {
			return err
		}
	}
	if err := c.grow(ctx); err != nil {
		return err
	}
	return c.hashAhead(ctx)
}

// mostAhead is the number of paths up to which they are hashed ahead. To look at
// a large tree twice costs more than is won.
const mostAhead = 50_000

// hashAhead makes the digests of what is new in the closure known, while the
// service is busy or waits.
func (c *capturing) hashAhead(ctx context.Context) error {
	if len(c.closure.items) > mostAhead {
		return nil
	}
	c.closure.chooseFresh() // what changes all the time is not to be read
	fresh := map[string]*item{}
	changing := map[string]bool{} // is copied, and the copy is hashed
	if !c.NoFreeze {
		for _, p := range c.closure.changing() {
			changing[p] = true
		}
	}
	for p, it := range c.closure.items {
		if it.ahead || changing[p] {
			continue
		}
		it.ahead = true
		fresh[p] = it
		parents(p, func(dir string) bool {
			_, ok := fresh[dir]
			fresh[dir] = c.closure.items[dir]
			return !ok
		})
	}
	nodes, err := scan(ctx, c.dir, fresh)
	if err != nil {
		return err
	}
	return c.hasher.ahead(ctx, nodes)
}

// shut closes the set of paths over everything that it needs, while the service
// is being stopped, and then adds what it touched meanwhile.
func (c *capturing) shut(ctx context.Context) (string, error) {
	if err := c.grow(ctx); err != nil {
		return "", err
	}
	if err := c.hashAhead(ctx); err != nil {
		return "", err
	}
	<-c.first.done
	out := &c.first.out
	if out.err != nil {
		return "", out.err
	}
	for _, g := range out.gaps {
		c.warn(g.String())
	}
	c.addFolders(out.accesses)
	if len(out.accesses) > c.seen {
		c.closure.observe(out.accesses[c.seen:])
		if err := c.grow(ctx); err != nil {
			return "", err
		}
	}
	for _, m := range slices.Sorted(maps.Keys(c.closure.missing)) {
		c.Log.Debug("library missing on the source", "library", m)
	}
	return fmt.Sprintf("%d paths", len(c.closure.items)), nil
}

// grow adds what follows from what was added since it was last called.
func (c *capturing) grow(ctx context.Context) error {
	if err := c.closure.interpret(ctx); err != nil {
		return err
	}
	if err := c.closure.usedPackages(c.service); err != nil {
		return err
	}
	return c.closure.applyRules(ctx)
}

func (c *capturing) build(ctx context.Context) (string, error) {
	t, err := build(ctx, c.hasher, c.closure.items)
	if err != nil {
		return "", err
	}
	c.tree = t
	return fmt.Sprintf("%d entries, %d files of %.1f MB, %.1f MB read", t.totals.Entries, t.totals.Files, float64(t.totals.Bytes)/1e6, float64(t.hashed)/1e6), nil
}

// chunkList returns a chunk list that the library has, or nil: then the file is
// read again.
func (c *capturing) chunkList(d manifest.Digest) []byte {
	var b []byte
	err := c.live.FetchBatch(context.Background(), []manifest.Range{{Digest: d, Len: -1}}, func(_ int, data []byte, err error) error {
		if err == nil {
			b = slices.Clone(data)
		}
		return err
	})
	if err != nil {
		return nil
	}
	return b
}

func (c *capturing) publish(ctx context.Context) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	accesses := c.last.accesses[:c.last.started]
	touches := c.closure.narrow(profile(c.closure, c.tree, accesses), c.large, accesses, c.last.reads)
	metadata, err := c.tree.lead(c.closure.way(accesses), touches)
	if err != nil {
		return "", err
	}
	snap := &manifest.Snapshot{
		Service: c.Name, Sequence: 1, Created: time.Now().UnixNano(), Source: host,
		Root: c.tree.root, Totals: c.tree.totals, Probes: c.Probes, Profile: touches, Metadata: metadata,
	}
	for _, u := range c.service.units {
		snap.Units = append(snap.Units, *u)
	}
	if snap.Order, err = c.tree.order(); err != nil {
		return "", err
	}
	index, err := c.tree.index(c.Root)
	if err != nil {
		return "", err
	}
	scope, err := c.scope()
	if err != nil {
		return "", err
	}
	p, err := c.library.publish(snap, edition{meta: c.tree.meta, index: index, scope: scope, frozen: c.tree.frozenDigests(), copies: c.frozenFolder()})
	if err != nil {
		return "", err
	}
	if err := c.heal(p.Sequence); err != nil {
		c.warn("what standbys had reported and is in now is still listed: " + err.Error())
	}
	if err := c.library.sweepRoots(c.Name); err != nil {
		c.warn("unpacked packages of earlier snapshots are left: " + err.Error())
	}
	c.result.Published, c.result.Snapshot = p, snap
	c.result.Classes = map[Class]Count{}
	for _, n := range c.tree.nodes {
		if n.path == "/" {
			continue
		}
		k := n.item.reasons[0].Class
		count := c.result.Classes[k]
		count.Entries++
		if n.entry.Type == manifest.File {
			count.Files++
			count.Bytes += uint64(n.entry.Size)
		}
		c.result.Classes[k] = count
	}
	return fmt.Sprintf("snapshot %d, root %v", p.Sequence, snap.Root.Digest), nil
}

// below returns the path p of this host as one in root.
func below(root, p string) (string, bool) {
	if resolved, err := filepath.EvalSymlinks(p); err == nil {
		p = resolved
	}
	if !inside(p, root) {
		return "", false
	}
	rel, err := filepath.Rel(root, p)
	return path.Join("/", rel), err == nil
}

// few joins the first of many paths, for people.
func few(ss []string) string {
	const most = 5
	s := ""
	for i, v := range ss {
		if i == most {
			return s + fmt.Sprintf(" and %d more", len(ss)-most)
		}
		if i > 0 {
			s += ", "
		}
		s += v
	}
	return s
}
