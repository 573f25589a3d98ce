package store

import (
	"context"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

const (
	// olderSnapshots bounds the stored snapshots in which an older version of a
	// file is looked for, and olderVersions how many of them are used.
	olderSnapshots = 64
	olderVersions  = 4
	// olderPages is how many pages are remembered of each snapshot.
	olderPages = 64
)

// An older is where chunks of a file that is missing may be: in the older
// versions of it that the store holds, whole or in part. What is read from
// there is verified like what comes from a source, so nothing depends on what
// becomes of them: their descriptors outlive a Collect, and a chunk that is
// damaged is fetched. Its methods may be called on nil.
type older struct {
	files []*os.File
	at    map[int64]olderChunk // by number in the missing file
}

type olderChunk struct {
	file   *os.File
	number int64 // in that file
}

func (o *older) close() {
	if o == nil {
		return
	}
	for _, f := range o.files {
		_ = f.Close() // it was only read from
	}
}

func (o *older) has(i int64) bool {
	if o == nil {
		return false
	}
	_, ok := o.at[i]
	return ok
}

// histories remembers how to find a path in the stored snapshots.
type histories struct {
	mu   sync.Mutex
	find map[manifest.Digest]*finder // by the digest of the snapshot; a nil one can't be read
}

// older looks for chunks of c, whose chunk list is list, in files that had the
// same path in the snapshots that are stored, the newest of each service first.
// It returns nil if there are none. An error is the context's; any other makes
// fewer chunks be found.
func (s *Store) older(ctx context.Context, c manifest.Content, list manifest.ChunkList) (*older, error) {
	if c.Path == "" || c.Path[0] != '/' {
		return nil, nil
	}
	refs, err := s.Snapshots()
	if err != nil {
		return nil, ctx.Err()
	}
	slices.Reverse(refs)
	o := &older{at: map[int64]olderChunk{}}
	seen := map[manifest.Digest]bool{c.Digest: true}
	for _, ref := range refs[:min(len(refs), olderSnapshots)] {
		e, err := s.formerly(ctx, ref, c.Path)
		if ctx.Err() != nil {
			o.close()
			return nil, context.Cause(ctx)
		}
		if err != nil || e == nil || e.Type != manifest.File || e.Size <= manifest.ChunkSize || seen[e.Digest] {
			continue
		}
		seen[e.Digest] = true
		if o.use(s, e.Content(c.Path), list); len(o.files) == olderVersions || len(o.at) == len(list) {
			break
		}
	}
	if len(o.at) == 0 {
		return nil, nil
	}
	return o, nil
}

// formerly returns the entry at a path in a stored snapshot, or nil, as far as
// its pages are here.
func (s *Store) formerly(ctx context.Context, ref SnapshotRef, path string) (*manifest.Entry, error) {
	h := &s.histories
	h.mu.Lock()
	defer h.mu.Unlock()
	f, known := h.find[ref.Digest]
	if !known {
		if snap, err := s.LoadSnapshotAt(ref.Source, ref.Service, ref.Sequence); err == nil {
			f = &finder{root: snap.Root.Digest, pages: map[manifest.Digest]*manifest.Page{}, meta: s.storedMeta}
		}
		if h.find == nil || len(h.find) >= 2*olderSnapshots {
			h.find = map[manifest.Digest]*finder{}
		}
		h.find[ref.Digest] = f
	}
	if f == nil {
		return nil, nil
	}
	if len(f.pages) > olderPages {
		clear(f.pages)
	}
	return f.find(ctx, path)
}

// storedMeta is a metaFunc that asks nobody.
func (s *Store) storedMeta(_ context.Context, digests []manifest.Digest) ([][]byte, error) {
	out := make([][]byte, len(digests))
	for i, d := range digests {
		out[i] = s.readMeta(d)
	}
	return out, nil
}

// use adds the chunks of list that the file was has and that are here: at the
// same place first, since most files change in place, else anywhere.
func (o *older) use(s *Store, was manifest.Content, list manifest.ChunkList) {
	had, err := manifest.DecodeChunkList(s.readMeta(was.Chunks), was.Size)
	if err != nil {
		return
	}
	here := func(int64) bool { return true }
	f, err := os.OpenFile(s.blobPath(was.Digest), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		path := s.partialPath(partialID(was))
		b, err := os.ReadFile(path + ".map")
		if err != nil {
			return
		}
		m, err := decodeChunkMap(b, was.Size)
		if err != nil {
			return
		}
		here = m.has
		if f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err != nil {
			return
		}
	}
	where := make(map[manifest.Digest]int64, len(had))
	for i, d := range had {
		if here(int64(i)) {
			where[d] = int64(i)
		}
	}
	used := false
	for i, d := range list {
		n := int64(i)
		if o.has(n) {
			continue
		}
		at, ok := where[d]
		if n < int64(len(had)) && had[n] == d && here(n) {
			at, ok = n, true
		}
		if ok {
			o.at[n], used = olderChunk{f, at}, true
		}
	}
	if !used {
		_ = f.Close()
		return
	}
	o.files = append(o.files, f)
}

// borrow takes chunk i from an older version of the file, or lets it be missing.
func (p *partial) borrow(i int64) error {
	off, n := p.span(i, i+1)
	buf := takeBuffer(n)
	defer giveBuffer(buf)
	data := (*buf)[:n]
	from := p.older.at[i]
	// The last chunk of either file may be shorter than a chunk.
	_, err := from.file.ReadAt(data, from.number*manifest.ChunkSize)
	right := err == nil && manifest.Sum(data) == p.list[i]
	p.mu.Lock()
	if p.state[i] != chunkOlder || p.whole {
		p.mu.Unlock()
		return nil
	}
	if !right {
		defer p.mu.Unlock()
		defer p.notify()
		return p.s.onDisk(p.mark(i, chunkMissing), p.c.Path, n)
	}
	p.mu.Unlock()
	if _, err := p.file.WriteAt(data, off); err != nil {
		return p.s.onDisk(err, p.c.Path, p.c.Size)
	}
	p.s.stats.reusedChunks.add(1)
	p.s.stats.reusedBytes.add(n)
	return p.keep(i, data)
}
