package statcache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"srvfs/manifest"
)

// Sum returns the digest and the chunk list digest of an open file, from the
// cache or by reading it, and the key that the file had all the while. Reading
// does not use the file's position. A new value is recorded unless it is racy;
// that it can't be written down is no error.
//
// The error wraps [manifest.ErrStale] if the file changed while it was read;
// else it is the context's, or an [os.PathError].
func (c *Cache) Sum(ctx context.Context, f *os.File) (Value, Key, error) {
	return c.sum(ctx, f, true)
}

// Digest is Sum for those who need no chunk list: it reads at twice the speed,
// and leaves Chunks zero unless the cache knows it.
func (c *Cache) Digest(ctx context.Context, f *os.File) (Value, Key, error) {
	return c.sum(ctx, f, false)
}

func (c *Cache) sum(ctx context.Context, f *os.File, chunks bool) (Value, Key, error) {
	k, err := FileKey(f)
	if err != nil {
		return Value{}, k, err
	}
	if v, ok := c.Get(k); ok && (!chunks || k.Size <= manifest.ChunkSize || !v.Chunks.IsZero()) {
		return v, k, nil
	}
	started := time.Now()
	v, n, err := Hash(ctx, f, chunks)
	if err != nil {
		return Value{}, k, err
	}
	after, err := FileKey(f)
	if err != nil {
		return Value{}, k, err
	}
	if after != k || n != k.Size {
		return Value{}, after, fmt.Errorf("%s changed while it was read: %w", f.Name(), manifest.ErrStale)
	}
	_, _ = c.Put(k, v, started)
	return v, k, nil
}

var buffers = sync.Pool{New: func() any { return new([manifest.ChunkSize]byte) }}

// Hash reads the whole of r and returns its digest, the digest of its chunk
// list if chunks asks for it and there is one, and the number of bytes. It
// looks at ctx every 256 KiB.
func Hash(ctx context.Context, r io.ReaderAt, chunks bool) (Value, int64, error) {
	buf := buffers.Get().(*[manifest.ChunkSize]byte)
	defer buffers.Put(buf)
	both, whole := (*manifest.Hasher)(nil), hash.Hash(nil)
	var w io.Writer
	if chunks {
		both = manifest.NewHasher()
		w = both
	} else {
		whole = sha256.New()
		w = whole
	}
	var off int64
	for {
		if err := ctx.Err(); err != nil {
			return Value{}, off, err
		}
		n, err := r.ReadAt(buf[:], off)
		_, _ = w.Write(buf[:n])
		off += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Value{}, off, err
		}
	}
	if !chunks {
		return Value{Digest: manifest.Digest(whole.Sum(nil))}, off, nil
	}
	d, _, list := both.Sum()
	v := Value{Digest: d}
	if list != nil {
		v.Chunks = manifest.Sum(list.Encode())
	}
	return v, off, nil
}
