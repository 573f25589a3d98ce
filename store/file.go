package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// A File is one content, open for reading. Its methods may be called from
// several goroutines.
type File struct {
	r *Reader
	c manifest.Content

	mu     sync.Mutex
	body   body
	closed bool
	ahead  readAhead
}

// A body is where a File's bytes are: in a blob, or in a partial. Neither: the
// content is empty.
type body struct {
	blob *os.File
	key  statcache.Key // of the blob when it was verified
	part *partial
}

func (b body) close() (err error) {
	if b.blob != nil {
		err = b.blob.Close()
	}
	if b.part != nil {
		b.part.release()
	}
	return err
}

// openBlob opens the blob of d if it is there and trusted. It is what a first
// read of a small file costs, so it is no os.Open, which asks for five system
// calls more.
func (s *Store) openBlob(d manifest.Digest) (body, bool) {
	var fd int
	if err := uninterrupted(func() (err error) {
		fd, err = unix.Openat(int(s.blobs.Fd()), d.Hex(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		return err
	}); err != nil {
		return body{}, false
	}
	var st unix.Stat_t
	if err := uninterrupted(func() error { return unix.Fstat(fd, &st) }); err == nil {
		if k := statcache.KeyOf(&st); s.trusted(d, k) {
			return body{blob: os.NewFile(uintptr(fd), s.blobPath(d)), key: k}, true
		}
	}
	_ = unix.Close(fd)
	return body{}, false
}

// Size returns the content's length in bytes.
func (f *File) Size() int64 { return f.c.Size }

// Whole reports whether all of the content is in the store, so that no read
// needs a source.
func (f *File) Whole() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.body.part == nil {
		return true
	}
	f.body.part.mu.Lock()
	defer f.body.part.mu.Unlock()
	return f.body.part.whole
}

// Path returns where the content stands in the store once it is whole.
func (f *File) Path() string { return f.r.store.blobPath(f.c.Digest) }

// ReadAt reads len(p) bytes from offset off into p. As [io.ReaderAt] it
// returns io.EOF with fewer bytes at the end of the file, and no fewer without
// an error. Chunks that are not there are fetched, each once however many
// readers wait for it; reads in sequence are fetched ahead of.
//
// Errors are as for [Reader.Open].
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: read at offset %d: %w", f.c.Path, off, manifest.ErrInvalid)
	}
	if off >= f.c.Size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), f.c.Size-off)]
	if len(want) == 0 {
		return 0, nil
	}
	for attempt := 1; ; attempt++ {
		b, err := f.current()
		if err != nil {
			return 0, err
		}
		if b.part != nil {
			err = f.readPart(ctx, b.part, want, off)
		} else {
			err = readBlob(b, want, off)
		}
		if err == nil {
			if len(want) < len(p) {
				return len(want), io.EOF
			}
			return len(want), nil
		}
		if b.part != nil || attempt == 3 {
			return 0, err
		}
		if err := f.reopen(ctx, b, err); err != nil {
			return 0, err
		}
	}
}

func (f *File) current() (body, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return body{}, fmt.Errorf("%s: %w", f.c.Path, os.ErrClosed)
	}
	return f.body, nil
}

// readBlob reads all of p, or fails. It looks at the stat after the read: a
// write sets mtime before it sets bytes, so what was read before a stat that
// has not changed is what was verified.
func readBlob(b body, p []byte, off int64) error {
	if _, err := b.blob.ReadAt(p, off); err != nil {
		return err // at EOF too: the blob is shorter than its content
	}
	k, err := statcache.FileKey(b.blob)
	if err == nil && k != b.key {
		err = errChanged
	}
	return err
}

// reopen replaces a blob that failed by what holds the content now.
func (f *File) reopen(ctx context.Context, bad body, why error) error {
	s := f.r.store
	f.mu.Lock()
	same := f.body == bad
	f.mu.Unlock()
	if !same {
		return nil // somebody else did
	}
	if !errors.Is(why, errChanged) && !errors.Is(why, os.ErrClosed) {
		s.drop(f.c.Digest, bad.key, why)
	}
	defer s.demand.enter()()
	next, err := f.r.acquire(ctx, f.c)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.body != bad {
		return next.close()
	}
	f.body = next
	return bad.close()
}

// readPart reads all of p from a partial.
func (f *File) readPart(ctx context.Context, part *partial, p []byte, off int64) error {
	from, to := off/manifest.ChunkSize, manifest.Chunks(off+int64(len(p)))
	by := asker{reader: f.r}
	f.runAhead(part, by, from, to)
	if err := part.need(ctx, by, from, to); err != nil {
		return err
	}
	if _, err := part.file.ReadAt(p, off); err != nil {
		return part.s.onDisk(err, f.c.Path, f.c.Size)
	}
	return nil
}

// Close releases the file and what it reads ahead. Reads under way may fail.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if f.body.part != nil {
		f.ahead.stop(f.body.part)
	}
	return f.body.close()
}

const (
	firstAhead = 4  // chunks that the second read in sequence asks for beyond its own
	maxAhead   = 32 // 8 MiB: what a wire of 1 Gbit/s at 50 ms holds
)

// readAhead watches for reads in sequence. It is guarded by its File's mu.
type readAhead struct {
	next  int64 // the chunk at which a read would be the next in sequence
	width int64 // chunks to send for beyond a read
	hauls []*haul
}

// runAhead sends for the chunks after a read of from up to to, if that goes on
// where the last one ended. The window doubles with each such read.
func (f *File) runAhead(part *partial, by asker, from, to int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &f.ahead
	if f.closed {
		return
	}
	if from != a.next && from != a.next-1 || from == 0 && a.next == 0 {
		a.width = 0
	} else if to > a.next {
		a.width = min(max(2*a.width, firstAhead), maxAhead)
	}
	a.next = to
	if a.width == 0 {
		return
	}
	part.mu.Lock()
	defer part.mu.Unlock()
	kept := a.hauls[:0]
	for _, h := range a.hauls {
		if h.over {
			h.waiters--
		} else {
			kept = append(kept, h)
		}
	}
	a.hauls = kept
	end := min(to+a.width, int64(len(part.state)))
	// A new request is sent when there is room for a whole one, so that they
	// do not become as short as the reads.
	for i := from; i < end && (end-i >= groupChunks || end == int64(len(part.state))); i++ {
		if part.state[i] != chunkMissing {
			continue
		}
		h := part.send(by, i, min(end, i+groupChunks))
		if h == nil {
			return
		}
		h.waiters++
		a.hauls = append(a.hauls, h)
		i = h.to - 1
	}
}

// stop gives up what was sent for.
func (a *readAhead) stop(part *partial) {
	for _, h := range a.hauls {
		part.quit(h)
	}
	a.hauls = nil
}
