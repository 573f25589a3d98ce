package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// Collect removes what neither a stored snapshot nor one of keep needs: blobs,
// partial files, pages and chunk lists. It returns the bytes that this gave back
// to the disk; a hard link to a host's file gives none.
//
// What comes into the store after Collect began is left alone. What was there
// before, and is needed by a page that comes only now, may go: it is then missing
// like any other content. So a Collect beside a Prefetch can undo a part of it,
// and nothing worse. One Collect runs at a time; a crash leaves
// content that a later Collect removes. A stored snapshot that can't be read
// makes it fail before it has removed anything.
func (s *Store) Collect(ctx context.Context, keep ...*manifest.Snapshot) (freed int64, err error) {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	s.mu.Lock()
	s.arrived = map[manifest.Digest]bool{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.arrived = nil
		s.mu.Unlock()
	}()
	refs, err := s.Snapshots()
	if err != nil {
		return 0, err
	}
	for _, ref := range refs {
		snap, err := s.LoadSnapshotAt(ref.Source, ref.Service, ref.Sequence)
		if err != nil {
			return 0, err
		}
		keep = append(keep, snap)
	}
	needed := map[manifest.Digest]bool{}
	partials := map[manifest.Digest]bool{}
	for _, snap := range keep {
		if err := s.mark(ctx, snap, needed, partials); err != nil {
			return 0, err
		}
	}
	for folder, used := range map[string]map[manifest.Digest]bool{"blobs": needed, "meta": needed, "partial": partials} {
		n, err := s.sweep(ctx, folder, used)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// mark notes what a snapshot needs, as far as its pages are in the store: below
// a page that is missing there is nothing of which we would know.
func (s *Store) mark(ctx context.Context, snap *manifest.Snapshot, needed, partials map[manifest.Digest]bool) error {
	for _, d := range snap.Metadata {
		needed[d] = true
	}
	needed[snap.Order] = true
	pages := func(_ context.Context, digests []manifest.Digest) ([][]byte, error) {
		out := make([][]byte, len(digests))
		for i, d := range digests {
			needed[d] = true
			out[i] = s.readMeta(d)
		}
		return out, nil
	}
	return walk(ctx, snap, pages, visitor{absent: func(string, manifest.Digest) {}, file: func(_ string, e *manifest.Entry) error {
		needed[e.Digest] = true
		if !e.Chunks.IsZero() {
			needed[e.Chunks] = true
			partials[partialID(e.Content(""))] = true
		}
		return nil
	}})
}

// sweep removes the files of a folder that are neither used nor newly arrived.
func (s *Store) sweep(ctx context.Context, folder string, used map[manifest.Digest]bool) (freed int64, err error) {
	dir := filepath.Join(s.dir, folder)
	list, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		hex, _, _ := strings.Cut(e.Name(), ".")
		d, err := manifest.ParseDigest(hex)
		if err != nil || used[d] {
			continue
		}
		n, err := s.discard(filepath.Join(dir, e.Name()), folder == "blobs", d)
		if err != nil {
			return freed, err
		}
		freed += n
	}
	return freed, nil
}

// discard removes one file of the store, unless d has come in since Collect
// began.
func (s *Store) discard(path string, blob bool, d manifest.Digest) (freed int64, err error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.arrived[d] || s.partials[d] != nil {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, nil // gone already
	}
	if blob {
		delete(s.pending, d)
		_ = s.pins.set(d, Unpinned) // its loss costs a wrong word in the status
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if st.Nlink == 1 {
		freed = st.Blocks * 512
	}
	return freed, nil
}
