package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/capture/notify"
	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// A follower brings the newest snapshot of a service up to what its files are now. It
// keeps no list of the files: what the snapshot says it finds in the snapshot's own
// pages and index, of which it reads what it needs.
//
// What belongs to the service was found when it was captured. Each path of the snapshot
// is followed, and what comes into a folder that was taken with all that is in it.
// What must be of one moment with other files (see frozen) is looked at on its own, and
// copied as a whole.
type follower struct {
	lib     *Library
	live    *Live
	cache   *statcache.Cache
	log     *slog.Logger
	at      Published
	snap    *manifest.Snapshot
	index   *layered
	better  *index   // what is known better than in the snapshot's own layers; see remember
	known   *layered // the index with that
	scope   *scope
	exclude []Pattern
	dir     *os.File // the root
	// tops are the folders of the snapshot down to a depth of topDepth.
	tops map[string]bool
	// moments are the data folders that hold files of one moment, and such files
	// elsewhere.
	moments []string
}

// errSuperseded: there is a newer snapshot than the one that was to be followed.
var errSuperseded = errors.New("another snapshot was published meanwhile")

// newFollower reads what the newest snapshot of service says. Its caller closes it.
func newFollower(l *Library, live *Live, cache *statcache.Cache, log *slog.Logger, service string) (*follower, error) {
	f := &follower{lib: l, live: live, cache: cache, log: log, tops: map[string]bool{"/": true}}
	err := l.again(manifest.Ref{Service: service}, func(p Published) (err error) {
		f.at = p
		if f.index, err = l.layers(p); err != nil {
			return err
		}
		b, err := l.encoded(p)
		if err != nil {
			return err
		}
		if f.snap, err = manifest.DecodeSnapshot(b); err != nil {
			return err
		}
		f.scope, err = l.scope(p)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, text := range f.scope.Exclude {
		p, err := ParsePattern(text)
		if err != nil {
			return nil, err
		}
		f.exclude = append(f.exclude, p)
	}
	if in, ok := below(f.index.root, l.dir); ok {
		f.exclude = append(f.exclude, literal(in))
	}
	f.known = f.index
	c := f.index.start()
	for c.next() {
		if c.kind == manifest.Dir && bytes.Count(c.path, []byte("/")) <= topDepth {
			f.tops[string(c.path)] = true
		}
		if c.flags&flagFrozen == 0 || f.ofAMoment(string(c.path)) {
			continue
		}
		p := string(c.path)
		at := p
		for _, dir := range f.scope.Folders {
			if inside(p, dir) {
				at = dir
			}
		}
		f.moments = append(f.moments, at)
	}
	if err := c.failed(); err != nil {
		return nil, err
	}
	fd, err := unix.Open(f.index.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.index.root, Err: err}
	}
	f.dir = os.NewFile(uintptr(fd), f.index.root)
	return f, nil
}

func (f *follower) ref() manifest.Ref { return manifest.Ref{Service: f.at.Service} }

func (f *follower) close() { _ = f.dir.Close() }

func (f *follower) ofAMoment(p string) bool {
	return slices.ContainsFunc(f.moments, func(dir string) bool { return inside(p, dir) })
}

// takes reports whether a path that the snapshot does not have belongs to it when it
// comes.
func (f *follower) takes(p string) bool {
	return f.scope.whole(path.Dir(p)) && !matchAny(secret, p) && !matchAny(key, p) && !matchAny(logs, p) && !matchAny(unwanted, p) && !f.ignores(p)
}

// topDepth is how deep a reported path is looked at before it is followed up. A file
// system holds more than the service, and most of that lies in other folders.
const topDepth = 3

// far reports whether a path lies in a folder that the snapshot does not have, and that
// would not be taken if it came.
func (f *follower) far(p string) bool {
	depth := 0
	for i := 1; i < len(p) && depth < topDepth; i++ {
		if p[i] != '/' {
			continue
		}
		if depth++; !f.tops[p[:i]] {
			return !f.scope.whole(p[:i]) // all that is deeper is in such a folder as well, or in none
		}
	}
	return false
}

// ignores reports whether nothing at p matters.
func (f *follower) ignores(p string) bool {
	return isPseudo(p) || matchAny(f.exclude, p)
}

// update looks at the paths given, with all that is below those of which that is said,
// and at all names of the files given, and publishes a snapshot if anything has changed.
// Retry are those that changed while they were read.
func (f *follower) update(ctx context.Context, paths map[string]bool, inodes map[notify.Inode]bool) (published bool, retry []string, err error) {
	published, retry, err = f.look(ctx, paths, inodes, (*updating).sweep)
	if errors.Is(err, manifest.ErrInvalid) {
		// They do not fit the tree, which a full look at everything can't fail to do.
		f.log.Warn("looking at all files", "service", f.at.Service, "reason", err)
		return f.look(ctx, map[string]bool{"/": true}, nil, func(u *updating) error { return u.visit("/", true) })
	}
	return published, retry, err
}

// look is update, with what looks at everything.
func (f *follower) look(ctx context.Context, paths map[string]bool, inodes map[notify.Inode]bool, all func(*updating) error) (published bool, retry []string, err error) {
	if err := f.rooted(); err != nil {
		return false, nil, err
	}
	u := f.begin(ctx)
	u.inodes = inodes
	if paths["/"] {
		if err := all(u); err != nil {
			return false, nil, err
		}
		paths = maps.Clone(paths)
		delete(paths, "/")
	}
	for p, below := range paths {
		if err := u.visit(p, below); err != nil {
			return false, nil, err
		}
	}
	if err := u.explain(); err != nil {
		return false, nil, err
	}
	if retry, err = u.hash(); err != nil {
		return false, nil, err
	}
	edits := u.edits()
	if err := u.remember(edits); err != nil {
		return false, nil, err
	}
	if len(edits) == 0 {
		return false, retry, nil
	}
	// Now, when all was looked at: what goes away from here on was not.
	if err = f.mounted(); err == nil {
		err = u.publish(edits, edition{})
	}
	if err != nil {
		f.better, f.known = nil, f.index // it may count on what was to be published
	}
	return err == nil, retry, err
}

// errUnmounted: a file system of the service is not there. What is missing then has not
// been deleted.
var errUnmounted = errors.New("not mounted")

// rooted fails if the root that is followed is not where it was.
func (f *follower) rooted() error {
	var opened, there unix.Stat_t
	if err := unix.Fstat(int(f.dir.Fd()), &opened); err != nil {
		return &os.PathError{Op: "stat", Path: f.index.root, Err: err}
	}
	switch err := unix.Stat(f.index.root, &there); {
	case err != nil:
		return fmt.Errorf("the root folder %s: %w: nothing is published until it is back: %w", f.index.root, errUnmounted, err)
	case there.Dev != opened.Dev || there.Ino != opened.Ino:
		return fmt.Errorf("the root folder %s is another now: all of it is looked at", f.index.root)
	}
	return nil
}

// mounted fails if one of the snapshot's file systems is not there.
func (f *follower) mounted() error {
	if err := f.rooted(); err != nil {
		return err
	}
	if len(f.scope.Mounts) == 0 {
		return nil
	}
	now, err := mountsBelow(f.index.root)
	if err != nil {
		return err
	}
	for _, p := range f.scope.Mounts {
		there := slices.ContainsFunc(now, func(m sourceMount) bool { return m.path == p && m.real })
		if p == "/" {
			there = mountedAt(f.index.root)
		}
		if !there {
			return fmt.Errorf("the file system of %s: %w: nothing is published until it is, or the service is captured without it", path.Join(f.index.root, p), errUnmounted)
		}
	}
	return nil
}

func (f *follower) begin(ctx context.Context) *updating {
	u := &updating{follower: f, ctx: ctx, dirs: map[string][]manifest.Entry{}, found: map[string]*manifest.Entry{}, asked: map[string]int{}, seen: map[string]*looked{}}
	u.hasher = newHasher(f.dir, f.cache, f.chunkList)
	return u
}

// chunkList returns a chunk list that the library has, or nil.
func (f *follower) chunkList(d manifest.Digest) []byte {
	all, err := f.live.Meta(context.Background(), []manifest.Digest{d})
	if err != nil {
		return nil
	}
	return all[0]
}

// An updating is one update.
type updating struct {
	*follower
	ctx    context.Context
	hasher *hasher
	// Of the snapshot, as far as it was read: folders as a whole, and single names, with
	// how many of each folder.
	dirs   map[string][]manifest.Entry
	listed int // in dirs
	found  map[string]*manifest.Entry
	asked  map[string]int
	seen   map[string]*looked
	all    bool // everything was looked at
	moment bool // what must be of one moment is looked at, and nothing else
	inodes map[notify.Inode]bool
}

// A looked is what was found at a path: what the snapshot has there, and what is there
// now. One of them may be nil.
type looked struct {
	old   *manifest.Entry
	now   *node
	entry *Entry // the index's, if it has one
}

// mostEntries is how many entries of the snapshot an update keeps decoded, beside those of
// the folder that it looks at.
const mostEntries = 1 << 14

// listing returns what the snapshot has in a folder; nothing if there is none.
func (u *updating) listing(dir string) ([]manifest.Entry, error) {
	if all, ok := u.dirs[dir]; ok {
		return all, nil
	}
	e, err := u.lookup(dir)
	if err != nil || e == nil || e.Type != manifest.Dir {
		return nil, err
	}
	all, err := manifest.ReadDirectory(u.ctx, u.live, e.Digest, u.snap.Totals.Entries)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if u.listed += len(all); u.listed > mostEntries {
		clear(u.dirs)
		u.listed = len(all)
	}
	u.dirs[dir] = all
	return all, nil
}

// fewNames is how many names of a folder are looked up alone before it is read as a
// whole, which may have a million.
const fewNames = 32

// lookup returns what the snapshot has at a path, or nil.
func (u *updating) lookup(p string) (*manifest.Entry, error) {
	if p == "/" {
		return &u.snap.Root, nil
	}
	if e, ok := u.found[p]; ok {
		return e, nil
	}
	dir := path.Dir(p)
	if u.dirs[dir] == nil && u.asked[dir] < fewNames {
		above, err := u.lookup(dir)
		if err != nil || above == nil || above.Type != manifest.Dir {
			return nil, err
		}
		e, err := manifest.LookupIn(u.ctx, u.live, above.Digest, path.Base(p))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		u.asked[dir]++
		u.found[p] = e
		return e, nil
	}
	all, err := u.listing(dir)
	if err != nil {
		return nil, err
	}
	i, ok := slices.BinarySearchFunc(all, path.Base(p), func(e manifest.Entry, name string) int { return strings.Compare(e.Name, name) })
	if !ok {
		return nil, nil
	}
	return &all[i], nil
}

// passes reports whether this update does not look at a path.
func (u *updating) passes(p string) bool {
	return u.ignores(p) || u.ofAMoment(p) != u.moment
}

// visit looks at a path, and at all that is below it if it is asked to, or if that
// can't be as it was.
func (u *updating) visit(p string, below bool) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	if s := u.seen[p]; s != nil && !below || u.passes(p) {
		return nil
	}
	old, err := u.lookup(p)
	if err != nil {
		return err
	}
	if old == nil && !u.takes(p) {
		return nil
	}
	if p == "/" {
		n, err := scanRoot(u.dir)
		if err != nil {
			return err
		}
		u.seen[p] = &looked{old: old, now: n}
		if below {
			return u.content(p, old)
		}
		return nil
	}
	dir := path.Dir(p)
	if up := u.seen[dir]; up == nil || up.now == nil {
		above, err := u.lookup(dir)
		if err != nil {
			return err
		}
		if above == nil { // it has come with this one: all of it is new
			return u.visit(dir, true)
		}
	}
	nodes, err := scanDir(u.dir, dir, []string{path.Base(p)}, nil, nil)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		if old != nil {
			u.seen[p] = &looked{old: old}
		}
		return nil
	}
	u.seen[p] = &looked{old: old, now: nodes[0]}
	if nodes[0].entry.Type == manifest.Dir && (below || old == nil || old.Type != manifest.Dir) {
		return u.content(p, old)
	}
	return nil
}

// content looks at all that is in a folder, and below.
func (u *updating) content(p string, old *manifest.Entry) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	names := map[string]*manifest.Entry{}
	if old != nil && old.Type == manifest.Dir {
		all, err := u.listing(p)
		if err != nil {
			return err
		}
		for i := range all {
			names[all[i].Name] = &all[i]
		}
	}
	if u.scope.whole(p) {
		list, err := u.names(p)
		if err != nil {
			return err
		}
		for _, name := range list {
			if _, ok := names[name]; !ok && u.takes(path.Join(p, name)) {
				names[name] = nil
			}
		}
		u.seen[p].now.compared = true
	}
	var list []string
	for name := range names {
		if !u.passes(path.Join(p, name)) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	nodes, err := scanDir(u.dir, p, list, nil, nil)
	if err != nil {
		return err
	}
	found := map[string]*node{}
	for _, n := range nodes {
		found[n.entry.Name] = n
	}
	for _, name := range list {
		at, n := path.Join(p, name), found[name]
		if n == nil && names[name] == nil {
			continue
		}
		u.seen[at] = &looked{old: names[name], now: n}
		if n != nil && n.entry.Type == manifest.Dir {
			if err := u.content(at, names[name]); err != nil {
				return err
			}
		}
	}
	return nil
}
