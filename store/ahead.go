package store

import (
	"context"
	"os"
	"sync"

	"srvfs/manifest"
)

// Limits of what is under way ahead of demand, for the whole store. What
// exceeds them is dropped: it was a guess, and whoever needs it will ask.
const (
	aheadBytes = 8 << 20 // what a wire of 1 Gbit/s at 50 ms holds
	aheadFiles = 2048
	aheadPages = 1024
	aheadCalls = 32
)

// ahead bounds what is brought in ahead of demand.
type ahead struct {
	mu           sync.Mutex
	bytes        int64
	files, pages int
	calls        int
}

// begin takes a place for one call, if there is one left.
func (a *ahead) begin() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.calls == aheadCalls {
		return false
	}
	a.calls++
	return true
}

// take reserves room for files of so many bytes, and pages.
func (a *ahead) take(files int, bytes int64, pages int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.files+files > aheadFiles || a.bytes+bytes > aheadBytes || a.pages+pages > aheadPages {
		return false
	}
	a.files, a.bytes, a.pages = a.files+files, a.bytes+bytes, a.pages+pages
	return true
}

// give returns what take reserved, and the places of so many calls.
func (a *ahead) give(files int, bytes int64, pages, calls int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files, a.bytes, a.pages, a.calls = a.files-files, a.bytes-bytes, a.pages-pages, a.calls-calls
}

// guess runs f in the background, as one call ahead of demand, unless there are
// too many of them.
func (s *Store) guess(f func()) {
	if !s.ahead.begin() {
		return
	}
	if !s.flights.spawn(func() {
		defer s.ahead.give(0, 0, 0, 1)
		f()
	}) {
		s.ahead.give(0, 0, 0, 1)
	}
}

// ReadAhead begins to bring in contents that will probably be asked for next,
// in this order, and returns at once. Identical files of the host are pinned
// first, the others fetched many to a request, each there as soon as it has
// arrived; who asks for one meanwhile waits for it and not for the others.
// Files of more than 1 MiB are left to the reads of their parts.
//
// It is a guess, so nothing is promised: at most 8 MiB are under way at a time and
// what exceeds them is dropped, a failure is not told to anybody, and whoever
// asks for that content then tries by himself. Closing the store ends it.
func (r *Reader) ReadAhead(contents []manifest.Content) {
	r.store.guess(func() { r.readAhead(r.store.ctx, contents) })
}

func (r *Reader) readAhead(ctx context.Context, contents []manifest.Content) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var g group
	send := func() {
		if sent := g; len(sent.contents) > 0 {
			wg.Go(func() {
				defer r.store.ahead.give(len(sent.contents), sent.bytes, 0, 0)
				r.fetchAhead(ctx, sent.contents)
			})
		}
		g = group{}
	}
	defer send()
	for _, c := range contents {
		if c.Size == 0 || c.Size > smallFile || valid(c) != nil {
			continue
		}
		if there, err := r.local(ctx, c, quick); there || err != nil {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		if !r.store.ahead.take(1, c.Size, 0) {
			return
		}
		if !g.add(c) {
			send()
			g.add(c)
		}
	}
}

// fetchAhead fetches a group in one request, and says nothing of failures.
func (r *Reader) fetchAhead(ctx context.Context, contents []manifest.Content) {
	keys := make([]key, 0, len(contents))
	byDigest := make(map[manifest.Digest]manifest.Content, len(contents))
	for _, c := range contents {
		if _, twice := byDigest[c.Digest]; !twice {
			byDigest[c.Digest] = c
			keys = append(keys, key{workBlob, c.Digest})
		}
	}
	by := asker{reader: r, ahead: true}
	r.store.flights.do(ctx, by, keys, func(ctx context.Context, mine []key, land landing) map[key]error {
		return r.fetchGroup(ctx, by, mine, byDigest, land)
	})
}

// MetaAhead is ReadAhead for directory pages and chunk lists.
func (r *Reader) MetaAhead(digests []manifest.Digest) {
	r.store.guess(func() { r.metaAhead(r.store.ctx, digests) })
}

func (r *Reader) metaAhead(ctx context.Context, digests []manifest.Digest) {
	var keys []key
	seen := map[manifest.Digest]bool{}
	for _, d := range digests {
		if _, err := os.Lstat(r.store.metaPath(d)); err != nil && !seen[d] {
			if seen[d] = true; !r.store.ahead.take(0, 0, 1) {
				break
			}
			keys = append(keys, key{workMeta, d})
		}
	}
	defer r.store.ahead.give(0, 0, len(keys), 0)
	by := asker{reader: r, ahead: true}
	for start := 0; start < len(keys); start += walkPages {
		r.store.flights.do(ctx, by, keys[start:min(len(keys), start+walkPages)], func(ctx context.Context, mine []key, land landing) map[key]error {
			return r.fetchMeta(ctx, by, mine, keepIfPossible, func(d manifest.Digest, _ []byte) { land(key{workMeta, d}, nil) })
		})
	}
}

// A group is small files that go into one request.
type group struct {
	contents []manifest.Content
	bytes    int64
}

// add reports false, and does not, if the group is full.
func (g *group) add(c manifest.Content) bool {
	if len(g.contents) == groupFiles || len(g.contents) > 0 && g.bytes+c.Size > groupBytes {
		return false
	}
	g.contents = append(g.contents, c)
	g.bytes += c.Size
	return true
}
