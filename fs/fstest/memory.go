package fstest

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"srvfs/fs"
	"srvfs/manifest"
)

// Memory is an fs.Content that has all that was ever put into it, so that a folder can
// be changed and scanned again, while views read what it was.
type Memory struct {
	mu      sync.RWMutex
	meta    map[manifest.Digest][]byte
	content map[manifest.Digest][]byte
}

// Put takes in a tree that was scanned just now, with its content.
func (m *Memory) Put(t *Tree) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.meta == nil {
		m.meta, m.content = map[manifest.Digest][]byte{}, map[manifest.Digest][]byte{}
	}
	for d, b := range t.Meta {
		m.meta[d] = b
	}
	for d, path := range t.Files {
		if m.content[d] != nil {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if manifest.Sum(b) != d {
			return fmt.Errorf("%s has changed since the scan", path)
		}
		m.content[d] = b
	}
	return nil
}

// PutContent takes in one content and returns its digest.
func (m *Memory) PutContent(b []byte) manifest.Digest {
	d := manifest.Sum(b)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.meta == nil {
		m.meta, m.content = map[manifest.Digest][]byte{}, map[manifest.Digest][]byte{}
	}
	m.content[d] = b
	return d
}

// Drop lets go of a content.
func (m *Memory) Drop(d manifest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.content, d)
}

// Meta implements manifest.MetaSource.
func (m *Memory) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	bodies := make([][]byte, len(digests))
	for i, d := range digests {
		if bodies[i] = m.meta[d]; bodies[i] == nil {
			return nil, fmt.Errorf("page %v: %w", d, manifest.ErrNotFound)
		}
	}
	return bodies, ctx.Err()
}

// Open implements fs.Content.
func (m *Memory) Open(_ context.Context, c manifest.Content) (fs.File, error) {
	if _, ok := m.bytes(c.Digest); !ok {
		return nil, fmt.Errorf("%v: %w", c.Digest, manifest.ErrNotFound)
	}
	return memoryFile{m, c.Digest}, nil
}

func (m *Memory) bytes(d manifest.Digest) ([]byte, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	b, ok := m.content[d]
	return b, ok
}

// Ensure implements fs.Content. There is no folder of blobs.
func (m *Memory) Ensure(_ context.Context, c manifest.Content) error {
	return fmt.Errorf("%v: %w", c.Digest, manifest.ErrNotFound)
}

type memoryFile struct {
	of     *Memory
	digest manifest.Digest
}

// ReadAt implements fs.File.
func (f memoryFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	b, ok := f.of.bytes(f.digest)
	if !ok {
		return 0, fmt.Errorf("%v: %w", f.digest, manifest.ErrNotFound)
	}
	n := copy(p, b[min(off, int64(len(b))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close implements fs.File.
func (memoryFile) Close() error { return nil }
