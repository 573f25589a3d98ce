package capture

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// A hasher finds the digests of files: in the cache, or by reading them with as
// many readers as there are processors. It may be used for one set of files after
// the other, and remembers their chunk lists.
type hasher struct {
	root  *os.File
	cache *statcache.Cache // may be nil
	// earlier finds a chunk list that an earlier snapshot has: the cache knows
	// only its digest. It may be nil.
	earlier func(manifest.Digest) []byte
	// shipped finds a digest that a package manager has; see shipped.digest. It
	// may be nil.
	shipped func(*node) (manifest.Digest, bool)
	// frozen are the files of which there are copies of one moment, by path.
	frozen map[string]*frozen

	mu    sync.Mutex
	lists map[manifest.Digest][]byte // chunk lists, encoded
	bytes int64                      // read
}

func newHasher(root *os.File, cache *statcache.Cache, earlier func(manifest.Digest) []byte) *hasher {
	return &hasher{root: root, cache: cache, earlier: earlier, lists: map[manifest.Digest][]byte{}}
}

// ahead makes what all will need known, as far as it does not change meanwhile.
func (h *hasher) ahead(ctx context.Context, nodes []*node) error {
	return h.each(ctx, nodes, true)
}

// all sets Digest and Chunks, and what else stat says, of every file among the
// nodes. Files that have vanished become nil.
func (h *hasher) all(ctx context.Context, nodes []*node) error {
	return h.each(ctx, nodes, false)
}

// each is all, or if it is asked to be lenient gives up on files that change.
func (h *hasher) each(ctx context.Context, nodes []*node, lenient bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// One of a file's hard links is read, and the others take its result.
	type key struct{ dev, ino uint64 }
	first := map[key]int{}
	var work, links []int
	for i, n := range nodes {
		if n.entry.Type != manifest.File {
			continue
		}
		if n.nlink > 1 {
			k := key{n.id.Dev, n.id.Ino}
			if _, ok := first[k]; ok {
				links = append(links, i)
				continue
			}
			first[k] = i
		}
		work = append(work, i)
	}
	work = slices.DeleteFunc(work, func(i int) bool { return h.known(nodes[i]) })
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), len(work)) {
		wg.Go(func() {
			r := reader{hasher: h}
			defer r.record()
			for k := int(next.Add(1)) - 1; k < len(work) && ctx.Err() == nil; k = int(next.Add(1)) - 1 {
				i := work[k]
				err := r.file(ctx, nodes[i])
				switch {
				case err == nil || lenient && errors.Is(err, manifest.ErrStale):
				case errors.Is(err, manifest.ErrNotFound):
					nodes[i] = nil
				default:
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	last := reader{hasher: h}
	defer last.record()
	for _, i := range links {
		n := nodes[i]
		from := nodes[first[key{n.id.Dev, n.id.Ino}]]
		if from == nil || from.id.Dev != n.id.Dev || from.id.Ino != n.id.Ino {
			// The first name was replaced after the scan; this one was perhaps not.
			err := last.file(ctx, n)
			switch {
			case err == nil || lenient && errors.Is(err, manifest.ErrStale):
			case errors.Is(err, manifest.ErrNotFound):
				nodes[i] = nil
			default:
				return err
			}
			continue
		}
		name := n.entry.Name
		n.entry, n.id, n.looked, n.frozen = from.entry, from.id, from.looked, from.frozen
		n.entry.Name = name
	}
	return nil
}

// known answers without reading.
func (h *hasher) known(n *node) bool {
	if f := h.frozen[n.path]; f != nil && !n.fresh() {
		n.id, n.frozen = f.id, true
		n.entry.Size, n.entry.Mtime, n.entry.Digest, n.entry.Chunks = f.id.Size, f.mtime, f.digest, f.chunks
		return true
	}
	if n.entry.Size == 0 {
		n.entry.Digest = manifest.EmptyDigest
		return true
	}
	if h.shipped != nil {
		if d, ok := h.shipped(n); ok {
			n.entry.Digest = d
			return true
		}
	}
	if h.cache == nil {
		return false
	}
	v, ok := h.cache.Get(n.id)
	if !ok || (n.entry.Size > manifest.ChunkSize) == v.Chunks.IsZero() {
		return false
	}
	if !v.Chunks.IsZero() && !h.haveList(v.Chunks) {
		return false
	}
	n.entry.Digest, n.entry.Chunks = v.Digest, v.Chunks
	return true
}

func (h *hasher) haveList(d manifest.Digest) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.lists[d]; ok {
		return true
	}
	if h.earlier == nil {
		return false
	}
	b := h.earlier(d)
	if b == nil || manifest.Sum(b) != d {
		return false
	}
	h.lists[d] = b
	return true
}
