package fstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"srvfs/fs"
	"srvfs/manifest"
)

// A Call is one call of a [Source].
type Call struct {
	Op      string           // "meta", "open", "read" or "ensure"
	Content manifest.Content // of the others than "meta"
	Off     int64            // of "read"
}

// A Source is the fs.Content of a [Tree]. What it counts, it counts before the
// hook.
type Source struct {
	Tree  *Tree
	Blobs string // where Ensure puts content
	// Holding makes it say what it holds: as a [fs.Holder] it then opens every
	// file at once, and knows the blobs that stand.
	Holding bool

	called atomic.Pointer[Hook]

	Metas, Opens, Held, Reads, Ensures, Closes atomic.Int64
}

// ErrLost, returned by a hook in Ensure, makes Ensure say that the blob stands
// where it does not.
var ErrLost = errors.New("lost")

// A Hook is called first in each call; an error of it is the call's. It may
// wait, for ctx too.
type Hook func(ctx context.Context, c Call) error

// SetHook replaces the hook, at any time. Nil takes it away.
func (s *Source) SetHook(h Hook) { s.called.Store(&h) }

func (s *Source) hook(ctx context.Context, c Call) error {
	if h := s.called.Load(); h != nil && *h != nil {
		return (*h)(ctx, c)
	}
	return ctx.Err()
}

// Meta implements manifest.MetaSource.
func (s *Source) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	s.Metas.Add(1)
	if err := s.hook(ctx, Call{Op: "meta"}); err != nil {
		return nil, err
	}
	bodies := make([][]byte, len(digests))
	for i, d := range digests {
		b, ok := s.Tree.Meta[d]
		if !ok {
			return nil, fmt.Errorf("page %v: %w", d, manifest.ErrNotFound)
		}
		bodies[i] = b
	}
	return bodies, nil
}

// Open implements fs.Content.
func (s *Source) Open(ctx context.Context, c manifest.Content) (fs.File, error) {
	s.Opens.Add(1)
	if err := s.hook(ctx, Call{Op: "open", Content: c}); err != nil {
		return nil, err
	}
	return s.open(c)
}

func (s *Source) open(c manifest.Content) (fs.File, error) {
	path, ok := s.Tree.Files[c.Digest]
	if !ok {
		return nil, fmt.Errorf("%v: %w", c.Digest, manifest.ErrNotFound)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &file{source: s, content: c, f: f}, nil
}

// Holds implements fs.Holder.
func (s *Source) Holds(c manifest.Content) bool {
	if !s.Holding {
		return false
	}
	_, err := os.Stat(filepath.Join(s.Blobs, c.Digest.Hex()))
	return err == nil
}

// OpenHeld implements fs.Holder.
func (s *Source) OpenHeld(c manifest.Content) (fs.File, bool) {
	if !s.Holding {
		return nil, false
	}
	f, err := s.open(c)
	if err != nil {
		return nil, false
	}
	s.Held.Add(1)
	return f, true
}

// Ensure implements fs.Content.
func (s *Source) Ensure(ctx context.Context, c manifest.Content) (err error) {
	s.Ensures.Add(1)
	if err := s.hook(ctx, Call{Op: "ensure", Content: c}); errors.Is(err, ErrLost) {
		return nil
	} else if err != nil {
		return err
	}
	to := filepath.Join(s.Blobs, c.Digest.Hex())
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	path, ok := s.Tree.Files[c.Digest]
	if !ok {
		return fmt.Errorf("%v: %w", c.Digest, manifest.ErrNotFound)
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	tmp, err := os.CreateTemp(s.Blobs, "incoming-")
	if err != nil {
		return err
	}
	_, err = io.Copy(tmp, from)
	return errors.Join(err, tmp.Close(), os.Rename(tmp.Name(), to))
}

type file struct {
	source  *Source
	content manifest.Content
	f       *os.File
}

// ReadAt implements fs.File.
func (f *file) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	f.source.Reads.Add(1)
	if err := f.source.hook(ctx, Call{Op: "read", Content: f.content, Off: off}); err != nil {
		return 0, err
	}
	return f.f.ReadAt(p, off)
}

// Close implements fs.File.
func (f *file) Close() error {
	f.source.Closes.Add(1)
	return f.f.Close()
}
