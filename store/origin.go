package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"srvfs/manifest"
)

var _ manifest.Batcher = (*Store)(nil)

// Fetch implements [manifest.Origin] with what is whole in the store: files,
// directory pages, chunk lists. It asks no source and does not look at the
// host. The error wraps ErrNotFound, or ErrInvalid if the range does not lie in
// the content.
func (s *Store) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	body, size, err := s.find(ctx, d)
	if err != nil {
		return nil, err
	}
	if n < 0 {
		n = size - off
	}
	if off < 0 || n < 0 || off > size-n {
		return nil, errors.Join(fmt.Errorf("%v: %d bytes from %d of %d: %w", d, n, off, size, manifest.ErrInvalid), body.Close())
	}
	return &section{Reader: io.NewSectionReader(body, off, n), body: body, ctx: ctx}, nil
}

// FetchBatch implements [manifest.Batcher].
func (s *Store) FetchBatch(ctx context.Context, want []manifest.Range, yield func(i int, data []byte, err error) error) error {
	for i, g := range want {
		data, err := s.read(ctx, g)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := yield(i, data, err); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) read(ctx context.Context, g manifest.Range) ([]byte, error) {
	if g.Len > manifest.MaxRange {
		return nil, fmt.Errorf("%v: range of %d bytes: %w", g.Digest, g.Len, manifest.ErrInvalid)
	}
	body, err := s.Fetch(ctx, g.Digest, g.Off, g.Len)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	data, err := io.ReadAll(io.LimitReader(body, manifest.MaxMeta+1))
	if err == nil && len(data) > manifest.MaxMeta {
		err = fmt.Errorf("%v: more than %d bytes: %w", g.Digest, manifest.MaxMeta, manifest.ErrInvalid)
	}
	return data, err
}

type readerAtCloser interface {
	io.ReaderAt
	io.Closer
}

// find returns the whole content d and its length.
func (s *Store) find(ctx context.Context, d manifest.Digest) (readerAtCloser, int64, error) {
	there, err := s.check(ctx, d)
	if err != nil {
		return nil, 0, err
	}
	if there {
		if b, ok := s.openBlob(d); ok {
			return b.blob, b.key.Size, nil
		}
	}
	if b := s.readMeta(d); b != nil {
		return memory{bytes.NewReader(b)}, int64(len(b)), nil
	}
	return nil, 0, fmt.Errorf("%v in %s: %w", d, s.dir, manifest.ErrNotFound)
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// A section is the range of a content that a Fetch asked for. The interface
// ties it to the Fetch's context.
type section struct {
	io.Reader
	body io.Closer
	ctx  context.Context
}

func (r *section) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

// Close implements [io.Closer].
func (r *section) Close() error { return r.body.Close() }
