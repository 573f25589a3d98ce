package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"srvfs/manifest"
)

// A Source is an origin with a name for messages and logs, such as
// "web1:7411".
type Source struct {
	Name string
	manifest.Origin
	// Bulk is the same origin on another way, for transfers that the reads
	// somebody waits for should overtake; nil: there is one way for all.
	Bulk manifest.Origin
	// Rank is its place in the order in which sources are asked: the lowest first, and
	// of those that have the same the nearest.
	Rank int
	// Health is shared by all Sources that lead to the same place; nil: by nobody.
	Health *Health
}

// way returns the origin to ask.
func (s *Source) way(background bool) manifest.Origin {
	if background && s.Bulk != nil {
		return s.Bulk
	}
	return s.Origin
}

// A Reader reads content for one snapshot: from the store, from the host's
// identical files, then from its sources in order.
type Reader struct {
	store   *Store
	sources func() []Source // each with a Health
	rate    meter
	stream  atomic.Pointer[stream] // the one under way, or the last
}

// Reader returns a Reader that asks these sources for what neither the store nor the
// host has: by their rank, and in this order. Without sources it reads what is there.
// It needs no closing; it must not be used after the store was closed.
func (s *Store) Reader(sources ...Source) *Reader {
	for i := range sources {
		if sources[i].Health == nil {
			sources[i].Health = &Health{}
		}
	}
	return s.ReaderOf(func() []Source { return sources })
}

// ReaderOf is Reader for sources that come and go: whenever content is to be fetched
// it asks which there are. Each must have a Health.
func (s *Store) ReaderOf(sources func() []Source) *Reader {
	s.host.prepare(s)
	return &Reader{store: s, sources: sources}
}

// Sources returns where content comes from now, in the order in which it is asked for.
func (r *Reader) Sources() []Source { return r.order(false) }

// BlobDir is [Store.BlobDir].
func (r *Reader) BlobDir() string { return r.store.BlobDir() }

// Meta returns directory pages and chunk lists by digest, in the order asked,
// verified, and keeps them. What is not in the store is asked for in one batch
// where the source is a [manifest.Batcher]. Meta implements
// [manifest.MetaSource].
//
// The error wraps ErrUnavailable, ErrStale or ErrCorrupt, as for Open; or it
// is the context's.
func (r *Reader) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	defer r.store.demand.enter()()
	return r.meta(ctx, digests, keepIfPossible)
}

// Open returns the content for reading. It returns at once if the content is
// whole in the store, or can be pinned from the host (which may mean hashing a
// host file: half a second for a GB), and when it has arrived if it is at
// most 1 MiB. A larger one is fetched chunk by chunk by the reads that need
// them. c.Path is a hint at where the host may have the file.
//
// The error wraps one of manifest's: ErrUnavailable (it names the sources that were
// asked, each one's reason, and how long it took), ErrStale (a source had it, and the
// file has changed; it names the path), ErrCorrupt (what arrived was wrong
// from every source), ErrNoSpace (it says how much is needed, and where),
// ErrInvalid (c contradicts itself); or it is the context's.
func (r *Reader) Open(ctx context.Context, c manifest.Content) (*File, error) {
	defer r.store.demand.enter()()
	return r.open(ctx, c)
}

// Holds reports whether the content stands, whole and verified, in the store's
// [Store.BlobDir]: Ensure would return at once. It costs an lstat.
func (r *Reader) Holds(c manifest.Content) bool {
	if !r.store.known(c.Digest) {
		return false
	}
	r.store.stats.blobHits.add(1)
	return true
}

// OpenHeld is Open for a content that is whole in the store; ok is false for any
// other. It waits for nothing but the disk.
func (r *Reader) OpenHeld(c manifest.Content) (f *File, ok bool) {
	b, ok := r.store.openBlob(c.Digest)
	if !ok {
		return nil, false
	}
	r.store.stats.blobHits.add(1)
	return &File{r: r, c: c, body: b}, true
}

// Ensure returns when the content stands, whole and verified, in the store's
// [Store.BlobDir]. Any number of callers cause one fetch. Errors are as for
// Open.
func (r *Reader) Ensure(ctx context.Context, c manifest.Content) error {
	defer r.store.demand.enter()()
	return r.ensure(ctx, c)
}

// smallFile is the size up to which a file is fetched in one request and
// verified as a whole, in bytes. It must not exceed manifest.MaxRange.
const smallFile = groupChunks * manifest.ChunkSize

func (r *Reader) open(ctx context.Context, c manifest.Content) (*File, error) {
	b, err := r.acquire(ctx, c)
	if err != nil {
		return nil, err
	}
	return &File{r: r, c: c, body: b}, nil
}

// acquire returns where c's bytes are, or will be.
func (r *Reader) acquire(ctx context.Context, c manifest.Content) (body, error) {
	for range 3 { // a blob can be found damaged between one step and the next
		if c.Size <= smallFile {
			if err := r.ensure(ctx, c); err != nil {
				return body{}, err
			}
		} else if there, err := r.local(ctx, c, quick); err != nil {
			return body{}, err
		} else if !there {
			if p, err := r.part(ctx, c); p != nil || err != nil {
				return body{part: p}, err
			}
		}
		if b, ok := r.store.openBlob(c.Digest); ok {
			return b, nil
		}
	}
	return body{}, fmt.Errorf("%s: %s changes as fast as it is verified: %w", c.Path, r.store.blobPath(c.Digest), manifest.ErrCorrupt)
}

// part returns the partial of a large file, or nil if its blob stands.
func (r *Reader) part(ctx context.Context, c manifest.Content) (*partial, error) {
	if err := valid(c); err != nil {
		return nil, err
	}
	bodies, err := r.meta(ctx, []manifest.Digest{c.Chunks}, keepIfPossible)
	if err != nil {
		return nil, fmt.Errorf("%s: chunk list: %w", c.Path, err)
	}
	list, err := manifest.DecodeChunkList(bodies[0], c.Size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	if err := r.stream.Load().claimed(ctx, c.Digest); err != nil {
		return nil, err
	}
	return r.store.begin(ctx, c, list)
}

// begin returns the partial of c, as partial does, with what an older version
// of the file has.
func (s *Store) begin(ctx context.Context, c manifest.Content, list manifest.ChunkList) (*partial, error) {
	var before *older
	if !s.shared(c) {
		var err error
		if before, err = s.older(ctx, c, list); err != nil {
			return nil, err
		}
	}
	return s.partial(c, list, before)
}

func valid(c manifest.Content) error {
	if c.Size < 0 || (c.Size == 0) != (c.Digest == manifest.EmptyDigest) || c.Digest.IsZero() || (c.Size > manifest.ChunkSize) != !c.Chunks.IsZero() {
		return fmt.Errorf("%s: %d bytes with digest %v and chunk list %v: %w", c.Path, c.Size, c.Digest, c.Chunks, manifest.ErrInvalid)
	}
	return nil
}

// A whereabouts says what look has found.
type whereabouts uint8

const (
	absent whereabouts = iota // neither in blobs nor on the host
	stored                    // in blobs
	pinned                    // in blobs, as the host's file, since just now
)

// A search says how much is done to find an identical file on the host.
type search bool

const (
	// quick looks under the same path, and under the same name elsewhere if the
	// index of names is there already: somebody waits.
	quick search = false
	// thorough waits for the index.
	thorough search = true
)

// local reports whether c stands in blobs, after pinning the host's identical
// file if there is one.
func (r *Reader) local(ctx context.Context, c manifest.Content, how search) (bool, error) {
	where, err := r.look(ctx, c, how)
	return where != absent, err
}

// look is local, and says more. A file that is neither here nor there costs it
// one system call where there is no host to search.
func (r *Reader) look(ctx context.Context, c manifest.Content, how search) (whereabouts, error) {
	s := r.store
	switch k, there := s.blobKey(c.Digest); {
	case there && s.trusted(c.Digest, k):
		s.stats.blobHits.add(1)
		return stored, nil
	case !there && (s.host == nil || c.Size == 0):
		return absent, nil
	}
	kind := workLocal
	if how == thorough {
		kind = workSearch
	}
	err := s.flights.one(ctx, asker{}, key{kind, c.Digest}, func(ctx context.Context) error {
		return s.findLocal(ctx, c, how)
	})
	switch {
	case err != nil || !s.known(c.Digest):
		return absent, err
	case s.pins.get(c.Digest) == Unpinned:
		return stored, nil
	}
	return pinned, nil
}

func (s *Store) findLocal(ctx context.Context, c manifest.Content, how search) error {
	if there, err := s.check(ctx, c.Digest); there || err != nil {
		return err
	}
	if s.host == nil || c.Size == 0 {
		return nil
	}
	m, err := s.host.find(ctx, s, c, how)
	if m == nil || err != nil {
		return err
	}
	defer func() { _ = m.file.Close() }()
	if err := s.pin(ctx, m, c); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, manifest.ErrNoSpace) {
			return err
		}
		if s.quiet.pass("pin " + c.Digest.Hex()) {
			s.log.Warn("an identical file of this host can't be pinned", "path", m.path, "err", err)
		}
	}
	return nil
}

func (r *Reader) ensure(ctx context.Context, c manifest.Content) error {
	s := r.store
	if s.known(c.Digest) {
		s.stats.blobHits.add(1)
		return nil
	}
	if err := valid(c); err != nil {
		return err
	}
	by := asker{reader: r}
	if c.Size > smallFile {
		return r.ensureLarge(ctx, by, workFill, c)
	}
	return s.flights.one(ctx, by, key{workBlob, c.Digest}, func(ctx context.Context) error {
		if there, err := r.local(ctx, c, quick); there || err != nil {
			return err
		}
		if c.Size == 0 {
			return s.acceptSmall(c, nil)
		}
		err := r.bring(ctx, job{
			what: c.Path, digest: c.Digest, n: c.Size, piece: c.Size,
			accept: func(_ int64, data []byte) error { return s.acceptSmall(c, data) },
		})
		if err != nil && ctx.Err() == nil {
			s.report(c.Path, c.Digest, err)
		}
		return err
	})
}

// acceptSmall verifies a whole file and makes a blob of it.
func (s *Store) acceptSmall(c manifest.Content, data []byte) error {
	if int64(len(data)) != c.Size || manifest.Sum(data) != c.Digest {
		return fmt.Errorf("%d bytes with digest %v: %w", len(data), manifest.Sum(data), manifest.ErrCorrupt)
	}
	if err := s.writeBlob(c.Digest, data, c.Path); err != nil {
		return err
	}
	s.stats.fetchedFiles.add(1)
	s.stats.fetchedBytes.add(c.Size)
	return nil
}

// ensureLarge fetches what is missing of a file, several chunks at a time.
func (r *Reader) ensureLarge(ctx context.Context, by asker, kind work, c manifest.Content) error {
	s := r.store
	return s.flights.one(ctx, by, key{kind, partialID(c)}, func(ctx context.Context) error {
		if there, err := r.local(ctx, c, search(by.background)); there || err != nil {
			return err
		}
		p, err := r.part(ctx, c)
		if p == nil || err != nil {
			return err
		}
		defer p.release()
		for range 3 { // a disk that loses chunks may do so once or twice
			if err := p.fill(ctx, by); err != nil {
				return err
			}
			if err := p.finish(ctx); err != nil {
				return err
			}
			if s.known(c.Digest) {
				return nil
			}
		}
		return fmt.Errorf("%s: %s does not keep what is written to it: %w", c.Path, s.dir, manifest.ErrCorrupt)
	})
}
