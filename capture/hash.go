package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// A hasher finds the digests of files: in the cache, or by reading them with as
// many readers as there are processors.
type hasher struct {
	root  *os.File
	cache *statcache.Cache
	// lists finds a chunk list that an earlier snapshot has: the cache knows
	// only its digest.
	lists func(manifest.Digest) []byte

	mu    sync.Mutex
	meta  metaSet
	bytes int64 // read
}

// rereads is how often a file that changes while it is read is read again.
const rereads = 3

// all sets Digest and Chunks, and what else stat says, of every file among the
// nodes. Files that have vanished become nil.
func (h *hasher) all(ctx context.Context, nodes []*node) error {
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
	var wg sync.WaitGroup
	next := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				if ctx.Err() != nil {
					continue
				}
				err := h.file(ctx, nodes[i])
				if errors.Is(err, manifest.ErrNotFound) {
					nodes[i] = nil
				} else if err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, i := range work {
		n := nodes[i]
		if n.entry.Size == 0 {
			n.entry.Digest = manifest.EmptyDigest
			continue
		}
		if h.known(n) {
			continue
		}
		next <- i
	}
	close(next)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for _, i := range links {
		n := nodes[i]
		from := nodes[first[key{n.id.Dev, n.id.Ino}]]
		if from == nil || from.id.Dev != n.id.Dev || from.id.Ino != n.id.Ino {
			// The first name was replaced after the scan; this one was perhaps not.
			if err := h.file(ctx, n); errors.Is(err, manifest.ErrNotFound) {
				nodes[i] = nil
			} else if err != nil {
				return err
			}
			continue
		}
		name := n.entry.Name
		n.entry, n.id = from.entry, from.id
		n.entry.Name = name
	}
	return nil
}

// known answers from the cache.
func (h *hasher) known(n *node) bool {
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
	if _, ok := h.meta[d]; ok {
		return true
	}
	if h.lists == nil {
		return false
	}
	b := h.lists(d)
	if b == nil || manifest.Sum(b) != d {
		return false
	}
	h.meta[d] = b
	return true
}

// file reads the file n until its stat is the same before and after. The error
// wraps [manifest.ErrNotFound] if it is gone, and [manifest.ErrStale] if it
// keeps changing.
func (h *hasher) file(ctx context.Context, n *node) error {
	for range rereads {
		f, err := openCanonical(h.root, n.path)
		if err != nil {
			if gone(err) {
				return fmt.Errorf("%s: %w: %w", n.path, err, manifest.ErrNotFound)
			}
			return err
		}
		err = h.once(ctx, f, n)
		_ = f.Close()
		if !errors.Is(err, manifest.ErrStale) {
			return err
		}
	}
	return fmt.Errorf("%s: %w: it changed %d times while it was read; stop what writes it, or leave it out with --exclude", n.path, manifest.ErrStale, rereads)
}

func (h *hasher) once(ctx context.Context, f *os.File, n *node) error {
	before, err := f.Stat()
	if err != nil {
		return err
	}
	if !before.Mode().IsRegular() {
		return fmt.Errorf("%s: no longer a file: %w", n.path, manifest.ErrNotFound)
	}
	id := identify(before)
	if id.Size > manifest.MaxChunks*manifest.ChunkSize {
		return fmt.Errorf("%s: %d bytes exceed %d, the largest file that a snapshot can hold; leave it out with --exclude: %w", n.path, id.Size, int64(manifest.MaxChunks*manifest.ChunkSize), manifest.ErrInvalid)
	}
	started := time.Now()
	sum := manifest.NewHasher()
	size, err := copyContext(ctx, sum, f, id.Size)
	if err != nil {
		return fmt.Errorf("%s: %w", n.path, err)
	}
	after, err := f.Stat()
	if err != nil {
		return err
	}
	if identify(after) != id || size != id.Size {
		return manifest.ErrStale
	}
	d, _, list := sum.Sum()
	v := statcache.Value{Digest: d}
	if list != nil {
		b := list.Encode()
		v.Chunks = manifest.Sum(b)
		h.mu.Lock()
		h.meta[v.Chunks] = b
		h.mu.Unlock()
	}
	if id != n.id {
		// It changed between the scan and now: the attributes that go into the
		// tree are those of the bytes that were read.
		if err := h.restat(f, n); err != nil {
			return err
		}
		if n.id != id {
			return manifest.ErrStale
		}
	}
	n.entry.Digest, n.entry.Chunks = v.Digest, v.Chunks
	h.mu.Lock()
	h.bytes += size
	h.mu.Unlock()
	if h.cache != nil {
		_, _ = h.cache.Put(id, v, started) // what can't be recorded is read again next time
	}
	return nil
}

var hashBuffers = sync.Pool{New: func() any { return new([1 << 20]byte) }}

// copyContext hashes f to its end, or until it is longer than it was.
func copyContext(ctx context.Context, w io.Writer, f *os.File, size int64) (int64, error) {
	buf := hashBuffers.Get().(*[1 << 20]byte)
	defer hashBuffers.Put(buf)
	var n int64
	for n <= size {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		k, err := f.Read(buf[:])
		_, _ = w.Write(buf[:k])
		n += int64(k)
		if err == io.EOF {
			break
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
