package capture

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"srvfs/capture/notify"
	"srvfs/manifest"
)

// explain finds what the index says of the paths that were looked at. The other names
// of files with several are looked at too: what they say of themselves depends on
// each other.
func (u *updating) explain() error {
	for {
		linked := map[notify.Inode]bool{}
		maps.Copy(linked, u.inodes)
		for _, s := range u.seen {
			switch {
			case s.now != nil && s.now.nlink > 1 && s.now.entry.Type == manifest.File:
				linked[notify.Inode{Dev: s.now.id.Dev, Ino: s.now.id.Ino}] = true
			case s.now != nil && s.now.nlink > 1 && s.now.entry.Type != manifest.Dir, s.old != nil && s.old.Link != 0 && s.old.Type != manifest.File:
				// Of others the index has no inode: then all of them.
				if u.seen["/"] == nil || !u.all {
					u.all = true
					if err := u.visit("/", true); err != nil {
						return err
					}
				}
			}
		}
		var others []string
		if err := u.entriesOfMany(); err != nil {
			return err
		}
		for p, s := range u.seen {
			if s.entry == nil && s.old != nil {
				e, err := u.known.find(p)
				if err != nil {
					return err
				}
				s.entry = e
			}
			if e := s.entry; e != nil && e.Type == manifest.File && s.old != nil && s.old.Link != 0 {
				linked[notify.Inode{Dev: e.Identity.Dev, Ino: e.Identity.Ino}] = true
			}
			if !s.wasFolder() {
				continue
			}
			// Of what went with a folder nothing was looked at: it may have had a name
			// elsewhere.
			for e, err := range u.known.inside(p) {
				if err != nil {
					return err
				}
				if e.Type == manifest.File && u.seen[e.Path] == nil {
					linked[notify.Inode{Dev: e.Identity.Dev, Ino: e.Identity.Ino}] = true
				}
			}
		}
		if len(linked) > 0 {
			c := u.known.start()
			for c.next() {
				if c.kind == manifest.File && linked[notify.Inode{Dev: c.id.Dev, Ino: c.id.Ino}] && u.seen[string(c.path)] == nil && !u.above(string(c.path), (*looked).wasFolder) {
					others = append(others, string(c.path))
				}
			}
			if err := c.failed(); err != nil {
				return err
			}
		}
		if len(others) == 0 {
			break
		}
		for _, p := range others {
			if err := u.visit(p, false); err != nil {
				return err
			}
			if u.seen[p] == nil { // it must not be looked at: then neither are its other names
				return errors.New(p + ": it is another name of a file that is followed, and is not followed itself")
			}
		}
	}
	for _, s := range u.seen {
		if s.now == nil || s.entry == nil {
			continue
		}
		if why := startsEmptyReason(s.entry); why != "" && s.now.entry.Type == manifest.File && s.now.nlink == 1 {
			s.now.item = &item{fresh: why}
			s.now.entry.Size, s.now.entry.Mtime = 0, manifest.Time{}
		}
	}
	return nil
}

// manyPaths is from how many paths on it is quicker to read the index as a whole than to
// look each one up: that decodes half of markEvery entries.
const manyPaths = 1000

// entriesOfMany finds what the index says, if it is many paths.
func (u *updating) entriesOfMany() error {
	if len(u.seen) < manyPaths {
		return nil
	}
	c := u.known.start()
	for c.next() {
		if s := u.seen[string(c.path)]; s != nil && s.entry == nil {
			e, err := c.entry()
			if err != nil {
				return err
			}
			s.entry = &e
		}
	}
	return c.failed()
}

// manyUnknown is from how many files on it is worth while to load what digests are known:
// fewer are read as quickly.
const manyUnknown = 500

// wasFolder reports whether it was a folder, and is none now.
func (s *looked) wasFolder() bool {
	return s.old != nil && s.old.Type == manifest.Dir && (s.now == nil || s.now.entry.Type != manifest.Dir)
}

// startsEmptyReason returns the reason that says that a file starts empty, or "".
func startsEmptyReason(e *Entry) string {
	for _, r := range e.Reasons {
		if e.Size == 0 && r.Class == ClassRule && strings.HasPrefix(r.Text, emptyText) {
			return r.Text
		}
	}
	return ""
}

// hash finds the digests of the files. What changes while it is read is left out, and
// comes back.
func (u *updating) hash() (retry []string, err error) {
	var nodes []*node
	var paths []string
	for p, s := range u.seen {
		if s.now != nil && s.now.entry.Type == manifest.File && !u.unchanged(s) {
			nodes, paths = append(nodes, s.now), append(paths, p)
		}
	}
	if u.cache != nil && len(nodes) >= manyUnknown {
		done, err := u.cache.Use()
		if err != nil {
			return nil, err
		}
		defer done()
	}
	if err := u.hasher.ahead(u.ctx, nodes); err != nil {
		return nil, err
	}
	for i, p := range paths {
		s := u.seen[p]
		switch {
		case nodes[i] == nil:
			s.now = nil // it has gone since it was looked at
		case nodes[i].entry.Digest.IsZero():
			retry = append(retry, p)
		}
	}
	if len(retry) > 0 {
		// All names of a file, and what they say, go by the one that was read.
		again := map[[2]uint64]bool{}
		for _, p := range retry {
			n := u.seen[p].now
			again[[2]uint64{n.id.Dev, n.id.Ino}] = true
		}
		maps.DeleteFunc(u.seen, func(p string, s *looked) bool {
			if s.now == nil || s.now.entry.Type != manifest.File || !again[[2]uint64{s.now.id.Dev, s.now.id.Ino}] {
				return false
			}
			if dir := u.seen[path.Dir(p)]; dir != nil && dir.now != nil {
				dir.now.compared = false // this name was not
			}
			return true
		})
	}
	return retry, nil
}

// unchanged finds the digest of a file that is what it was for sure.
func (u *updating) unchanged(s *looked) bool {
	if s.old == nil || s.old.Type != manifest.File || s.entry == nil || s.entry.racy || s.entry.Frozen || s.entry.Identity != s.now.id || s.now.item != nil ||
		u.hasher.frozen[s.now.path] != nil || !s.old.Chunks.IsZero() && !u.hasher.haveList(s.old.Chunks) {
		return false
	}
	s.now.entry.Digest, s.now.entry.Chunks = s.old.Digest, s.old.Chunks
	return true
}

// edits returns what has changed, in the order of the paths.
func (u *updating) edits() (list []manifest.Edit) {
	u.dropOrphans()
	var nodes []*node
	paths := slices.Sorted(maps.Keys(u.seen))
	for _, p := range paths {
		if n := u.seen[p].now; n != nil {
			nodes = append(nodes, n)
		}
	}
	linkUp(nodes)
	// A file with several names is edited as a whole: one name may look the same when
	// another has taken the place of a third.
	links := map[uint64]bool{}
	for _, s := range u.seen {
		if s.old != nil && s.now != nil && sameEntry(s.old, &s.now.entry) {
			continue
		}
		if s.old != nil {
			links[s.old.Link] = true
		}
		if s.now != nil {
			links[s.now.entry.Link] = true
		}
	}
	delete(links, 0)
	for _, p := range paths {
		s := u.seen[p]
		switch {
		case s.now == nil && s.old == nil:
		case s.now == nil:
			if !u.above(p, func(s *looked) bool { return s.now == nil || s.now.entry.Type != manifest.Dir }) {
				list = append(list, manifest.Edit{Path: p})
			}
		case s.old == nil || links[s.old.Link] || links[s.now.entry.Link] || !sameEntry(s.old, &s.now.entry):
			e := s.now.entry
			list = append(list, manifest.Edit{Path: p, Entry: &e})
		}
	}
	return list
}

// dropOrphans forgets what was there a moment before its folder, which was looked at later,
// was not. If it is there again that is reported.
func (u *updating) dropOrphans() {
	gone := func(s *looked) bool { return s.now == nil || s.now.entry.Type != manifest.Dir }
	for p, s := range u.seen {
		switch {
		case s.now == nil || !u.above(p, gone):
		case s.old == nil:
			delete(u.seen, p)
		default:
			s.now = nil
		}
	}
}

// above reports whether ok is true of anything that was looked at above p.
func (u *updating) above(p string, ok func(*looked) bool) (found bool) {
	parents(p, func(dir string) bool {
		s := u.seen[dir]
		found = s != nil && ok(s)
		return !found
	})
	return found
}

// sameEntry reports whether a tree would say the same of both. Of a folder the edits
// below it decide.
func sameEntry(a, b *manifest.Entry) bool {
	x := *a
	if x.Type == manifest.Dir && b.Type == manifest.Dir {
		x.Digest, x.Links = b.Digest, b.Links
	}
	return x.Equal(b)
}

// publish makes a snapshot of what has changed.
// With is the folder of copies, and their digests, if it has such.
func (u *updating) publish(edits []manifest.Edit, with edition) error {
	pages := metaSet{}
	root, totals, err := manifest.Apply(u.ctx, u.live, u.snap.Root, u.snap.Totals, edits, pages.put)
	if err != nil {
		return err
	}
	for _, e := range edits {
		if e.Entry != nil && !e.Entry.Chunks.IsZero() {
			pages[e.Entry.Chunks] = u.hasher.lists[e.Entry.Chunks]
		}
	}
	snap := *u.snap
	snap.Created, snap.Root, snap.Totals = time.Now().UnixNano(), root, totals
	snap.Profile = reprofile(u.snap.Profile, edits)
	if snap.Metadata, err = u.leading(edits, pages, &root); err != nil {
		return err
	}
	entries, err := u.entries(edits)
	if err != nil {
		return err
	}
	if entries, err = u.withBetter(entries); err != nil {
		return err
	}
	with.meta = pages
	p, err := u.lib.publishChange(u.at, u.index, &snap, with, entries)
	if err != nil {
		return err
	}
	u.at, u.snap, u.better = p, &snap, nil
	u.index, err = u.index.next(u.lib, p)
	u.known = u.index
	return err
}

// mostBetter bounds the entries that remember keeps in memory: some 80 bytes each.
const mostBetter = 1 << 17

// remember notes what is known better now of what has not changed: a file that was racy
// when it was looked at last and is not any more, or whose identity alone is another. The
// next look at everything need not look at it in full; the next snapshot says it too.
func (u *updating) remember(edits []manifest.Edit) error {
	changed := map[string]bool{}
	for _, e := range edits {
		changed[e.Path] = true
	}
	var list []Entry
	for p, s := range u.seen {
		if changed[p] || s.old == nil || s.now == nil || s.entry == nil || s.entry.Frozen || s.now.frozen || s.now.item != nil {
			continue
		}
		x := *s.entry
		if x.Identity, x.racy = s.now.identity(); x.Identity == s.entry.Identity && x.racy == s.entry.racy || x.Identity == s.entry.Identity && x.racy {
			continue
		}
		list = append(list, x)
	}
	if len(list) == 0 || len(list) > mostBetter || u.better != nil && len(list)+u.better.count > mostBetter {
		return nil
	}
	all, err := u.withBetter(list)
	if err != nil {
		return err
	}
	var w indexWriter
	for i := range all {
		if err := w.add(&all[i]); err != nil {
			return err
		}
	}
	if u.better, err = decodeIndex(w.finish(u.index.root, 0)); err != nil {
		return err
	}
	u.known = u.index.with(u.better)
	return nil
}

// withBetter adds what is known better to entries that say still better.
func (u *updating) withBetter(list []Entry) (all []Entry, err error) {
	slices.SortFunc(list, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	if u.better == nil {
		return list, nil
	}
	mine := func(yield func(Entry, error) bool) {
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
	}
	for e, err := range merge(mine, u.better.entries()) {
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// reprofile returns the profile with the content that files have now.
func reprofile(touches []manifest.Touch, edits []manifest.Edit) []manifest.Touch {
	changed := map[string]*manifest.Entry{}
	for _, e := range edits {
		changed[e.Path] = e.Entry
	}
	out := make([]manifest.Touch, 0, len(touches))
	for _, t := range touches {
		e, ok := changed[t.Path]
		switch {
		case !ok || t.Fresh:
		case e == nil || e.Type != manifest.File:
			continue
		default:
			whole := t.Off == 0 && t.Len%manifest.ChunkSize != 0 || t.Len == 0
			if t.Content = e.Digest; whole || t.Off+t.Len > e.Size {
				t.Len = max(e.Size-t.Off, 0)
			}
			if t.Off > 0 && t.Len == 0 {
				continue
			}
		}
		out = append(out, t)
	}
	return out
}

// leading returns the metadata that the profile leads through: what it was, with the
// pages of folders that have changed in the place of those that they had.
func (u *updating) leading(edits []manifest.Edit, pages metaSet, root *manifest.Entry) ([]manifest.Digest, error) {
	dirs := map[string]bool{}
	for _, e := range edits {
		parents(e.Path, func(dir string) bool {
			known := dirs[dir]
			dirs[dir] = true
			return !known
		})
	}
	src := overlaid{pages, u.live}
	instead := map[manifest.Digest][]manifest.Digest{}
	for dir := range dirs {
		old, err := u.lookup(dir)
		if err != nil || old == nil || old.Type != manifest.Dir {
			continue
		}
		now, err := manifest.Lookup(u.ctx, src, root, dir)
		if err != nil {
			return nil, err
		}
		before, err := manifest.DirectoryPages(u.ctx, u.live, old.Digest, mostListed)
		if err != nil {
			return nil, err
		}
		var after []manifest.Digest
		if now != nil && now.Type == manifest.Dir {
			if after, err = manifest.DirectoryPages(u.ctx, src, now.Digest, mostListed); err != nil {
				return nil, err
			}
		}
		for _, d := range before {
			if !slices.Contains(after, d) {
				instead[d] = after
			}
		}
	}
	var out []manifest.Digest
	seen := map[manifest.Digest]bool{}
	add := func(d manifest.Digest) {
		if !seen[d] {
			seen[d] = true
			out = append(out, d)
		}
	}
	add(root.Digest)
	for _, d := range u.snap.Metadata {
		if now, ok := instead[d]; ok {
			for _, d := range now {
				add(d)
			}
		} else {
			add(d)
		}
	}
	return out, nil
}

// entries returns what the index says of what has changed.
func (u *updating) entries(edits []manifest.Edit) ([]Entry, error) {
	var out []Entry
	for _, e := range edits {
		s := u.seen[e.Path]
		switch {
		case e.Path == "/":
		case e.Entry == nil:
			out = append(out, Entry{Path: e.Path, gone: true})
		default:
			x := Entry{Path: e.Path, Type: e.Entry.Type}
			if s.entry != nil {
				x.Reasons, x.Secret, x.Modified = s.entry.Reasons, s.entry.Secret, s.entry.Modified
				packaged := slices.ContainsFunc(x.Reasons, func(r Reason) bool { return r.Class == ClassPackage })
				x.Modified = x.Modified || packaged && x.Type == manifest.File && s.entry.Digest != e.Entry.Digest
			} else {
				x.Reasons = []Reason{{ClassData, "it came into a folder that is in as a whole"}}
			}
			if x.Identity, x.racy = s.now.identity(); x.Type == manifest.File {
				x.Size, x.Digest, x.Frozen = e.Entry.Size, e.Entry.Digest, s.now.frozen
			}
			out = append(out, x)
		}
	}
	// What was below a folder that is one no more has gone with it.
	for _, e := range edits {
		if !u.seen[e.Path].wasFolder() {
			continue
		}
		for below, err := range u.known.inside(e.Path) {
			if err != nil {
				return nil, err
			}
			out = append(out, Entry{Path: below.Path, gone: true})
		}
	}
	slices.SortStableFunc(out, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	return slices.CompactFunc(out, func(a, b Entry) bool { return a.Path == b.Path }), nil
}

// overlaid is metadata of which some is not in the library yet.
type overlaid struct {
	fresh metaSet
	below manifest.MetaSource
}

func (o overlaid) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	out := make([][]byte, len(digests))
	var rest []manifest.Digest
	for i, d := range digests {
		if out[i] = o.fresh[d]; out[i] == nil {
			rest = append(rest, d)
		}
	}
	if len(rest) == 0 {
		return out, nil
	}
	found, err := o.below.Meta(ctx, rest)
	if err != nil {
		return nil, err
	}
	for i := range out {
		if out[i] == nil {
			out[i], found = found[0], found[1:]
		}
	}
	return out, nil
}
