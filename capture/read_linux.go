package capture

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// A reader reads files for a hasher, one after the other. It makes five system
// calls for a small file and keeps nothing for it but its record.
type reader struct {
	*hasher
	buf     []byte
	read    int64             // bytes
	records []statcache.Entry // not in the cache yet
}

// readSize is how much is read at once. A file of one chunk takes one read, and
// one digest; a larger one has two, its own and its chunks', computed while the
// bytes are in the processor's cache.
const readSize = manifest.ChunkSize + 1

// flushRecords is how many records go into the cache together.
const flushRecords = 256

// rereads is how often a file that changes while it is read is read again.
const rereads = 3

// record hands over what was learned. What can't be recorded is read again next
// time.
func (r *reader) record() {
	if r.cache != nil && len(r.records) > 0 {
		_ = r.cache.PutAll(r.records)
	}
	r.records = r.records[:0]
	r.mu.Lock()
	r.bytes += r.read
	r.mu.Unlock()
	r.read = 0
}

// file reads the file n until its stat is the same before and after. The error
// wraps [manifest.ErrNotFound] if it is gone, and [manifest.ErrStale] if it
// keeps changing.
func (r *reader) file(ctx context.Context, n *node) error {
	for range rereads {
		fd, err := openFile(r.root, n.path)
		if err != nil {
			err = &fs.PathError{Op: "open", Path: path.Join(r.root.Name(), n.path), Err: err}
			if gone(err) {
				return fmt.Errorf("%s: %w: %w", n.path, err, manifest.ErrNotFound)
			}
			return err
		}
		err = r.once(ctx, fd, n)
		_ = unix.Close(fd)
		if !errors.Is(err, manifest.ErrStale) {
			return err
		}
	}
	return fmt.Errorf("%s: %w: it changed %d times while it was read; make what writes it hold still with --freeze and --thaw, or leave it out with --exclude", n.path, manifest.ErrStale, rereads)
}

func (r *reader) once(ctx context.Context, fd int, n *node) error {
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: stat: %w", n.path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%s: no longer a file: %w", n.path, manifest.ErrNotFound)
	}
	id := statcache.KeyOf(&st)
	if id.Size > manifest.MaxChunks*manifest.ChunkSize {
		return fmt.Errorf("%s: %d bytes exceed %d, the largest file that a snapshot can hold; leave it out with --exclude: %w", n.path, id.Size, int64(manifest.MaxChunks*manifest.ChunkSize), manifest.ErrInvalid)
	}
	started := time.Now()
	v, size, list, err := r.sum(ctx, fd, id.Size)
	if err != nil {
		return fmt.Errorf("%s: %w", n.path, err)
	}
	if err := fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: stat: %w", n.path, err)
	}
	if statcache.KeyOf(&st) != id || size != id.Size {
		return manifest.ErrStale
	}
	if list != nil {
		r.mu.Lock()
		r.lists[v.Chunks] = list
		r.mu.Unlock()
	}
	if id != n.id {
		// It changed between the scan and now: the attributes that go into the
		// tree are those of the bytes that were read.
		if err := restat(fd, n); err != nil {
			return err
		}
		if n.id != id {
			return manifest.ErrStale
		}
	}
	n.entry.Digest, n.entry.Chunks = v.Digest, v.Chunks
	r.read += size
	if r.records = append(r.records, statcache.Entry{Key: id, Value: v, Started: started}); len(r.records) >= flushRecords {
		r.record()
	}
	return nil
}

// sum hashes the file to its end, or until it is longer than it was. It returns
// the number of bytes, and the encoded chunk list of a file that has one.
func (r *reader) sum(ctx context.Context, fd int, size int64) (v statcache.Value, n int64, list []byte, err error) {
	if r.buf == nil {
		r.buf = make([]byte, readSize)
	}
	if size <= manifest.ChunkSize {
		k, err := r.fill(fd, int(size)+1)
		return statcache.Value{Digest: sha256.Sum256(r.buf[:k])}, int64(k), nil, err
	}
	sum := manifest.NewHasher()
	for n <= size {
		if err := ctx.Err(); err != nil {
			return v, n, nil, err
		}
		k, err := r.fill(fd, manifest.ChunkSize)
		if err != nil {
			return v, n, nil, err
		}
		if k == 0 {
			break
		}
		_, _ = sum.Write(r.buf[:k])
		n += int64(k)
	}
	d, _, chunks := sum.Sum()
	v.Digest = d
	if chunks != nil {
		list = chunks.Encode()
		v.Chunks = manifest.Sum(list)
	}
	return v, n, list, nil
}

// fill reads up to n bytes into the buffer. Fewer come at the end of the file
// only: the kernel cuts reads of regular files short nowhere else, but a file
// system in user space may.
func (r *reader) fill(fd, n int) (int, error) {
	have := 0
	for have < n {
		k, err := unix.Read(fd, r.buf[have:n])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return have, fmt.Errorf("read: %w", err)
		case k == 0:
			return have, nil
		}
		have += k
	}
	return have, nil
}

func fstat(fd int, st *unix.Stat_t) error {
	for {
		if err := unix.Fstat(fd, st); err != unix.EINTR {
			return err
		}
	}
}
