package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"srvfs/manifest"
)

// A Live is the origin of all that a library has published: metadata from the
// library, file content from the source's own files. It answers by digest
// alone; no path comes from outside.
//
// A file is read only while it is what was captured. Its stat is compared
// before and after each reading: one that differs in size or modification time
// is refused with [manifest.ErrStale]. One that differs only in device, inode
// number or change time (a chmod, a new hard link, a restored backup) is hashed
// again, once, and served if its bytes are the same.
//
// A Live follows the library: a request costs one stat to see whether something
// new was published. It is safe for concurrent use.
type Live struct {
	lib *Library

	mu       sync.Mutex
	stamp    Identity // of the file "current" when editions were listed
	editions []*liveEdition
	layers   map[layerKey]*liveEdition // these, and what they lie on
}

type layerKey struct {
	service  string
	sequence uint64
}

// Live returns the library's content as an origin.
func (l *Library) Live() *Live { return &Live{lib: l} }

// A liveEdition is the layer of one published snapshot, loaded when it is first asked
// for. Of a snapshot that only others lie on, the digest is not known.
type liveEdition struct {
	Published
	live *Live
	dir  string
	base atomic.Pointer[liveEdition] // set when it is loaded; nil: it is whole

	mu     sync.Mutex
	loaded bool
	err    error
	meta   *metaFile
	files  *liveFiles
}

// Fetch implements [manifest.Origin].
func (l *Live) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	return l.Restrict(nil).Fetch(ctx, d, off, n)
}

// FetchBatch implements [manifest.Batcher].
func (l *Live) FetchBatch(ctx context.Context, want []manifest.Range, yield func(int, []byte, error) error) error {
	return l.Restrict(nil).FetchBatch(ctx, want, yield)
}

// Meta implements [manifest.MetaSource].
func (l *Live) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	want := make([]manifest.Range, len(digests))
	for i, d := range digests {
		want[i] = manifest.Range{Digest: d, Len: -1}
	}
	out := make([][]byte, len(digests))
	err := l.FetchBatch(ctx, want, func(i int, data []byte, err error) error {
		if err == nil && manifest.Sum(data) != digests[i] {
			err = fmt.Errorf("metadata %v: %w: capture the service again", digests[i], manifest.ErrCorrupt)
		}
		out[i] = bytes.Clone(data)
		return err
	})
	return out, err
}

// Restrict returns an origin that has only what belongs to the services for
// which allowed returns true; nil allows all. It is asked at each request, and
// every sightLasts of a batch, so what is taken away is gone at once.
func (l *Live) Restrict(allowed func(service string) bool) manifest.Batcher {
	return &restricted{live: l, allowed: allowed}
}

// Belongs reports whether the content d, a file's or metadata, belongs to a
// service for which allowed returns true.
func (l *Live) Belongs(d manifest.Digest, allowed func(service string) bool) bool {
	s, err := (&restricted{live: l, allowed: allowed}).see()
	if err == nil {
		_, err = s.find(d)
	}
	return err == nil
}

// Close releases the files of the library.
func (l *Live) Close() error {
	l.mu.Lock()
	layers := l.layers
	l.editions, l.layers, l.stamp = nil, nil, Identity{}
	l.mu.Unlock()
	var errs []error
	for _, e := range layers {
		errs = append(errs, e.close())
	}
	return errors.Join(errs...)
}

// current returns the editions, of each service the latest first.
func (l *Live) current() ([]*liveEdition, error) {
	info, err := os.Stat(filepath.Join(l.lib.dir, currentName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("library: %w: %w", err, manifest.ErrUnavailable)
	}
	stamp := identify(info)
	l.mu.Lock()
	defer l.mu.Unlock()
	if stamp == l.stamp {
		return l.editions, nil
	}
	all, err := l.lib.all()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, manifest.ErrUnavailable)
	}
	old := map[Published]*liveEdition{}
	for _, e := range l.editions {
		old[e.Published] = e
	}
	editions := make([]*liveEdition, len(all))
	layers := map[layerKey]*liveEdition{}
	for i, p := range all {
		e, ok := old[p]
		if !ok {
			e = l.newEdition(p)
		}
		editions[i] = e
		for ; e != nil; e = e.base.Load() {
			layers[layerKey{e.Service, e.Sequence}] = e
		}
	}
	// Those that are gone are closed by the finalizer of their file, since a
	// request may be reading from them now.
	l.editions, l.layers, l.stamp = editions, layers, stamp
	return editions, nil
}

func (l *Live) newEdition(p Published) *liveEdition {
	return &liveEdition{Published: p, live: l, dir: l.lib.folder(p)}
}

// layer returns what another edition lies on.
func (l *Live) layer(service string, sequence uint64) *liveEdition {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := layerKey{service, sequence}
	e := l.layers[k]
	if e == nil {
		e = l.newEdition(Published{Service: service, Sequence: sequence})
		if l.layers == nil {
			l.layers = map[layerKey]*liveEdition{}
		}
		l.layers[k] = e
	}
	return e
}

func (e *liveEdition) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.meta == nil {
		return nil
	}
	return e.meta.f.Close()
}

// load reads the tables: once, also when it fails.
func (e *liveEdition) load() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.loaded {
		return e.err
	}
	e.loaded = true
	if e.meta, e.err = openMeta(filepath.Join(e.dir, "meta")); e.err != nil {
		return e.err
	}
	var x *index
	if x, e.err = openIndex(filepath.Join(e.dir, "index")); e.err != nil {
		return e.err
	}
	if x.base >= e.Sequence {
		e.err = fmt.Errorf("it lies on snapshot %d: %w", x.base, manifest.ErrCorrupt)
		return e.err
	}
	if e.files, e.err = newLiveFiles(x, filepath.Join(e.live.lib.dir, frozenFolder)); e.err == nil && x.base != 0 {
		e.base.Store(e.live.layer(e.Service, x.base))
	}
	return e.err
}

// find adds where the content d is, as far as the edition has it: what a layer says
// of a path counts for all below it. It stops at metadata.
func (e *liveEdition) find(d manifest.Digest, f *found) error {
	for l := e; l != nil; l = l.base.Load() {
		if err := l.load(); err != nil {
			return err
		}
		if w, ok := l.meta.find(d); ok {
			f.meta, f.where = l.meta, w
			return nil
		}
		recs, err := l.files.find(d)
		if err != nil {
			return err
		}
		for _, rec := range recs {
			ref := liveRef{l.files, rec}
			covered := false
			for above := e; above != l && !covered; above = above.base.Load() {
				if covered, err = above.files.covers(rec.path); err != nil {
					return err
				}
			}
			if !covered && !slices.Contains(f.files, ref) {
				f.files = append(f.files, ref)
			}
		}
	}
	return nil
}

// restricted is a Live as seen by a peer.
type restricted struct {
	live    *Live
	allowed func(string) bool

	mu    sync.Mutex
	whose map[manifest.Digest]string // the services of what was found
}

// note remembers whose a content is that was found.
func (r *restricted) note(d manifest.Digest, f found) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.whose == nil {
		r.whose = map[manifest.Digest]string{}
	}
	r.whose[d] = f.service
}

// ServiceOf returns a service that a content belongs to which was fetched here, or "".
func (r *restricted) ServiceOf(d manifest.Digest) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.whose[d]
}

// found is where a content is: metadata in a file of the library, or the
// candidates among live files, each with the edition's table that names it.
type found struct {
	meta    *metaFile
	where   metaWhere
	files   []liveRef
	service string // of the first that has it
}

// A sight is what a peer may see at one moment, the latest edition of each
// service first.
type sight struct {
	at       time.Time
	editions []*liveEdition
	latest   []bool // which of them are the latest of their service
}

// sightLasts is for how long a batch of small files relies on what it saw: to
// look costs two stats, which is a third of what it costs to read such a file.
const sightLasts = 10 * time.Millisecond

func (r *restricted) see() (*sight, error) {
	all, err := r.live.current()
	if err != nil {
		return nil, err
	}
	s := &sight{at: time.Now()}
	before, may := "", false
	for _, e := range all {
		latest := e.Service != before
		if before = e.Service; latest {
			may = r.allowed == nil || r.allowed(e.Service)
		}
		if may {
			s.editions, s.latest = append(s.editions, e), append(s.latest, latest)
		}
	}
	return s, nil
}

// find looks d up in the editions that the peer may see: first in the latest
// of each service, so that those that were retired need not be loaded for what
// is still current.
func (s *sight) find(d manifest.Digest) (found, error) {
	f, err := s.look(d, false)
	if err == nil && f.meta == nil && len(f.files) == 0 {
		f, err = s.look(d, true)
	}
	if err == nil && f.meta == nil && len(f.files) == 0 {
		err = fmt.Errorf("content %v: in no published snapshot: %w", d, manifest.ErrNotFound)
	}
	return f, err
}

// look looks d up in the latest edition of each service, or in all others.
// There is an error only if nothing was found, and an edition that may have it
// can't be read.
func (s *sight) look(d manifest.Digest, retired bool) (found, error) {
	var f found
	var failed error
	for i, e := range s.editions {
		if s.latest[i] == retired {
			continue
		}
		err := e.find(d, &f)
		if f.service == "" && (f.meta != nil || len(f.files) > 0) {
			f.service = e.Service
		}
		if f.meta != nil {
			return found{meta: f.meta, where: f.where, service: f.service}, nil
		}
		if err != nil {
			// Another process has retired it just now, or its disk is damaged:
			// others may have the content.
			if !errors.Is(err, fs.ErrNotExist) {
				failed = errors.Join(failed, fmt.Errorf("snapshot %d of %s: %w", e.Sequence, e.Service, err))
			}
		}
	}
	if failed != nil && len(f.files) == 0 {
		return found{}, fmt.Errorf("content %v: %w: %w", d, failed, manifest.ErrUnavailable)
	}
	return f, nil
}

// open calls use with each live file that has the content d and is still what
// was captured, until use succeeds. If none does, the error is the first.
func (s *sight) open(d manifest.Digest, f found, use func(*liveFile) error) error {
	var first error
	try := func(refs []liveRef) bool {
		for _, ref := range refs {
			file, err := ref.open()
			if err == nil {
				if err = use(file); err == nil {
					return true
				}
				file.close()
			}
			if first == nil {
				first = err
			}
		}
		return false
	}
	if try(f.files) {
		return nil
	}
	// A path that a retired snapshot had may hold the content again, or still.
	if old, err := s.look(d, true); err == nil && try(old.files) {
		return nil
	}
	return first
}

// Fetch implements [manifest.Origin].
func (r *restricted) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fmt.Errorf("content %v from %d: %w", d, off, manifest.ErrInvalid)
	}
	if d == manifest.EmptyDigest {
		if off > 0 || n > 0 {
			return nil, beyond(d, off, n, 0)
		}
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	s, err := r.see()
	if err != nil {
		return nil, err
	}
	f, err := s.find(d)
	if err != nil {
		return nil, err
	}
	r.note(d, f)
	if f.meta != nil {
		n, err := clip(d, off, n, int64(f.where.size))
		if err != nil {
			return nil, err
		}
		return io.NopCloser(io.NewSectionReader(f.meta.f, f.where.off+off, n)), nil
	}
	var out io.ReadCloser
	err = s.open(d, f, func(file *liveFile) error {
		n, err := clip(d, off, n, file.size)
		if err == nil {
			out = &liveReader{ctx: ctx, file: file, f: os.NewFile(uintptr(file.f), file.path), off: off, end: off + n}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// clip returns the length of the range, or an error if it leads past the end.
func clip(d manifest.Digest, off, n, size int64) (int64, error) {
	if n < 0 {
		n = size - off
	}
	if off > size || n > size-off || n < 0 {
		return 0, beyond(d, off, n, size)
	}
	return n, nil
}

func beyond(d manifest.Digest, off, n, size int64) error {
	return fmt.Errorf("content %v: %d bytes from %d of %d: %w", d, n, off, size, manifest.ErrInvalid)
}

// FetchBatch implements [manifest.Batcher]. Ranges of one content that stand
// together are read from one open file.
func (r *restricted) FetchBatch(ctx context.Context, want []manifest.Range, yield func(int, []byte, error) error) error {
	if len(want) > manifest.MaxBatch {
		return fmt.Errorf("batch of %d ranges: at most %d: %w", len(want), manifest.MaxBatch, manifest.ErrInvalid)
	}
	var open *liveFile
	var have manifest.Digest
	defer func() {
		if open != nil {
			open.close()
		}
	}()
	var buf []byte
	var s *sight
	read := func(w manifest.Range) ([]byte, error) {
		if w.Len > manifest.MaxRange {
			return nil, fmt.Errorf("range of %d bytes: at most %d: %w", w.Len, manifest.MaxRange, manifest.ErrInvalid)
		}
		if open != nil && have == w.Digest && w.Len >= 0 && w.Off >= 0 {
			n, err := clip(w.Digest, w.Off, w.Len, open.size)
			if err != nil {
				return nil, err
			}
			if b, err := open.readRange(&buf, w.Off, n); err == nil {
				return b, nil
			}
		}
		if open != nil {
			open.close()
			open = nil
		}
		if w.Digest == manifest.EmptyDigest && w.Off == 0 && w.Len <= 0 {
			return nil, nil
		}
		if s == nil || time.Since(s.at) > sightLasts {
			var err error
			if s, err = r.see(); err != nil {
				return nil, err
			}
		}
		f, err := s.find(w.Digest)
		if err != nil {
			return nil, err
		}
		r.note(w.Digest, f)
		if w.Off < 0 {
			return nil, fmt.Errorf("content %v from %d: %w", w.Digest, w.Off, manifest.ErrInvalid)
		}
		if f.meta != nil {
			n, err := clip(w.Digest, w.Off, w.Len, int64(f.where.size))
			if err != nil {
				return nil, err
			}
			if n > manifest.MaxMeta {
				return nil, fmt.Errorf("content %v: %d bytes in a batch: %w", w.Digest, n, manifest.ErrInvalid)
			}
			buf = slices.Grow(buf[:0], int(n))[:n]
			if _, err := f.meta.f.ReadAt(buf, f.where.off+w.Off); err != nil {
				return nil, fmt.Errorf("content %v: %w: %w", w.Digest, err, manifest.ErrUnavailable)
			}
			return buf, nil
		}
		var b []byte
		err = s.open(w.Digest, f, func(file *liveFile) error {
			n, err := clip(w.Digest, w.Off, w.Len, file.size)
			if err == nil && n > manifest.MaxRange {
				err = fmt.Errorf("range of %d bytes: at most %d: %w", n, manifest.MaxRange, manifest.ErrInvalid)
			}
			if err == nil {
				b, err = file.readRange(&buf, w.Off, n)
			}
			if err == nil {
				open, have = file, w.Digest
			}
			return err
		})
		return b, err
	}
	for i, w := range want {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := read(w)
		if err := yield(i, b, err); err != nil {
			return err
		}
	}
	return nil
}
