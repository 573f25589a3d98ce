package archive

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"srvfs/manifest"
)

// How content is asked for: what lies at most gap bytes apart comes in one request,
// which begins nothing new after span bytes; so many requests are under way for one
// caller; and so many raw bytes are in memory for one.
const (
	gap      = 64 << 10
	span     = 2 << 20
	parallel = 4
	window   = 8 << 20
)

// A frameKey names a frame.
type frameKey struct {
	blob manifest.Digest
	off  int64
}

// A frame is a part of a blob that is compressed by itself.
type frame struct {
	frameKey
	length, raw int64
}

// frames yields the frames that a range of the content touches, each with the part of
// its raw bytes that belongs to the range.
func (s spot) frames(off, n int64, yield func(f frame, from, to int64)) {
	if n == 0 {
		return
	}
	if s.in.pack {
		yield(frame{frameKey{s.in.digest, s.off}, s.place.frames[0], s.raw}, s.inner+off, s.inner+off+n)
		return
	}
	at := s.off
	for k, length := range s.place.frames {
		start := int64(k) * frameSize
		raw := min(frameSize, s.size-start)
		if from, to := max(off-start, 0), min(off+n-start, raw); from < to {
			yield(frame{frameKey{s.in.digest, at}, length, raw}, from, to)
		}
		at += length
	}
}

// load reads frames, coalescing neighbours, and passes on what they hold. Frames that
// are damaged are passed on with their error; the error of a server is returned.
func (a *Archive) loadFrames(ctx context.Context, frames []frame) (map[frameKey][]byte, map[frameKey]error, error) {
	slices.SortFunc(frames, func(x, y frame) int {
		return cmp.Or(bytes.Compare(x.blob[:], y.blob[:]), cmp.Compare(x.off, y.off))
	})
	frames = slices.CompactFunc(frames, func(x, y frame) bool { return x.frameKey == y.frameKey })
	type result struct {
		frame
		b   []byte
		err error
	}
	results := make([]result, len(frames))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := 0; i < len(frames); {
		k := i + 1
		start, end := frames[i].off, frames[i].off+frames[i].length
		for k < len(frames) && frames[k].blob == frames[i].blob && frames[k].off-end <= gap && frames[k].off-start < span {
			end = max(end, frames[k].off+frames[k].length)
			k++
		}
		first, some := i, frames[i:k]
		i = k
		g.Go(func() error {
			b, err := a.shelf.read(gctx, some[0].blob, start, end-start)
			if err != nil && !errors.Is(err, manifest.ErrCorrupt) {
				return err
			}
			for j, f := range some {
				r := result{frame: f, err: err}
				if err == nil {
					r.b, r.err = decompress(b[f.off-start:f.off-start+f.length], f.raw)
				}
				results[first+j] = r
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	loaded, bad := make(map[frameKey][]byte, len(results)), map[frameKey]error{}
	for _, r := range results {
		if r.err != nil {
			bad[r.frameKey] = fmt.Errorf("archive %s: blob %v at %d: %w", a.ref, r.blob, r.off, r.err)
			continue
		}
		loaded[r.frameKey] = r.b
	}
	return loaded, bad, nil
}

// resolve looks at what is asked for. A range is bounded as for Fetch.
func (a *Archive) resolve(found map[manifest.Digest]spot, r manifest.Range) (s spot, n int64, err error) {
	s, ok := found[r.Digest]
	switch {
	case r.Digest == manifest.EmptyDigest: // is everywhere
	case !ok:
		return s, 0, fmt.Errorf("archive %s: content %v: %w", a.ref, r.Digest, manifest.ErrNotFound)
	}
	n = r.Len
	if n < 0 {
		n = s.size - r.Off
		if n > manifest.MaxMeta {
			return s, 0, fmt.Errorf("archive %s: content %v has %d bytes, too many to be asked for without a length: %w", a.ref, r.Digest, s.size, manifest.ErrInvalid)
		}
	}
	if r.Off < 0 || n < 0 || r.Off > s.size || n > s.size-r.Off {
		return s, 0, fmt.Errorf("archive %s: content %v has %d bytes, not %d from %d: %w", a.ref, r.Digest, s.size, r.Len, r.Off, manifest.ErrInvalid)
	}
	return s, n, nil
}

// FetchBatch implements [manifest.Batcher]. What lies close together in the archive, as
// files of one folder do, comes in one request.
func (a *Archive) FetchBatch(ctx context.Context, want []manifest.Range, yield func(i int, data []byte, err error) error) error {
	if err := ctx.Err(); err != nil || len(want) == 0 {
		return err
	}
	digests := make([]manifest.Digest, 0, len(want))
	seen := make(map[manifest.Digest]bool, len(want))
	for _, r := range want {
		if !seen[r.Digest] {
			seen[r.Digest] = true
			digests = append(digests, r.Digest)
		}
	}
	found, err := a.locate(ctx, digests)
	if err != nil {
		return a.failed(ctx, err)
	}
	for next := 0; next < len(want); {
		first := next
		var frames []frame
		held := int64(0)
		for ; next < len(want) && held < window; next++ {
			if s, n, err := a.resolve(found, want[next]); err == nil {
				s.frames(want[next].Off, n, func(f frame, _, _ int64) {
					frames = append(frames, f)
					held += f.raw
				})
			}
		}
		loaded, bad, err := a.loadFrames(ctx, frames)
		if err != nil {
			return a.failed(ctx, err)
		}
		for i := first; i < next; i++ {
			data, err := a.assemble(found, want[i], loaded, bad)
			if err := yield(i, data, err); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// assemble returns the bytes of a range from frames that were loaded. Metadata that is
// asked for as a whole is verified.
func (a *Archive) assemble(found map[manifest.Digest]spot, r manifest.Range, loaded map[frameKey][]byte, bad map[frameKey]error) ([]byte, error) {
	s, n, err := a.resolve(found, r)
	if err != nil {
		return nil, err
	}
	var data []byte
	s.frames(r.Off, n, func(f frame, from, to int64) {
		if e := bad[f.frameKey]; e != nil {
			err = e
		} else if part := loaded[f.frameKey][from:to]; int64(len(part)) == n {
			data = part
		} else {
			data = append(data, part...)
		}
	})
	if err == nil && s.in.pack && n == s.size {
		err = verify(data, r.Digest, "metadata")
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

// failed gives the error of a whole exchange its kind.
func (a *Archive) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("archive %s: %w", a.ref, err)
}

// Fetch implements [manifest.Origin].
func (a *Archive) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found, err := a.locate(ctx, []manifest.Digest{d})
	if err != nil {
		return nil, a.failed(ctx, err)
	}
	s, n, err := a.resolve(found, manifest.Range{Digest: d, Off: off, Len: n})
	if err != nil {
		return nil, err
	}
	r := &reader{a: a, ctx: ctx, d: d, s: s, off: off, left: n}
	if n > 0 { // so that what can't be had fails here
		if err := r.more(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// A reader reads a range of one content, a few frames at a time. Its context is that
// of the Fetch that it is the result of.
type reader struct {
	a    *Archive
	ctx  context.Context
	d    manifest.Digest
	s    spot
	off  int64
	left int64 // that are not in b
	b    []byte
}

func (r *reader) more() error {
	// Up to the end of a frame, so that none is loaded twice.
	n := min(r.left, span+frameSize-r.off%frameSize)
	if r.s.in.pack {
		n = r.left
	}
	want := manifest.Range{Digest: r.d, Off: r.off, Len: n}
	var frames []frame
	r.s.frames(r.off, n, func(f frame, _, _ int64) { frames = append(frames, f) })
	loaded, bad, err := r.a.loadFrames(r.ctx, frames)
	if err != nil {
		return r.a.failed(r.ctx, err)
	}
	b, err := r.a.assemble(map[manifest.Digest]spot{r.d: r.s}, want, loaded, bad)
	if err != nil {
		return err
	}
	r.b, r.off, r.left = b, r.off+n, r.left-n
	return nil
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if len(r.b) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		if err := r.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

func (r *reader) Close() error { return nil }

// Meta implements [manifest.MetaSource].
func (a *Archive) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	want := make([]manifest.Range, len(digests))
	for i, d := range digests {
		want[i] = manifest.Range{Digest: d, Len: -1}
	}
	out := make([][]byte, len(digests))
	err := a.FetchBatch(ctx, want, func(i int, data []byte, err error) error {
		if err == nil {
			err = verify(data, digests[i], "metadata")
		}
		out[i] = bytes.Clone(data)
		return err
	})
	return out, err
}
