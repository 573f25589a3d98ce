package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// Collect removes what neither a stored snapshot nor one of keep needs: blobs,
// partial files, pages and chunk lists. It returns the bytes that this gave back
// to the disk; a hard link to a host's file gives none.
//
// What came into the store after Collect began is left alone, so it is safe
// beside fetches for snapshots that are stored or in keep. A crash leaves
// content that a later Collect removes. A stored snapshot that can't be read
// makes it fail before it has removed anything.
func (s *Store) Collect(ctx context.Context, keep ...*manifest.Snapshot) (freed int64, err error) {
	began := time.Now()
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
	s.mu.Lock()
	for id := range s.partials {
		partials[id] = true // open: whoever reads it is done when it closes
	}
	s.mu.Unlock()
	for folder, used := range map[string]map[manifest.Digest]bool{"blobs": needed, "meta": needed, "partial": partials} {
		n, err := s.sweep(ctx, folder, used, began)
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
	pages := func(_ context.Context, digests []manifest.Digest) ([][]byte, error) {
		out := make([][]byte, len(digests))
		for i, d := range digests {
			needed[d] = true
			out[i] = s.readMeta(d)
		}
		return out, nil
	}
	return walk(ctx, snap, pages, visitor{absent: func(int) {}, file: func(_ string, e *manifest.Entry) error {
		needed[e.Digest] = true
		if !e.Chunks.IsZero() {
			needed[e.Chunks] = true
			partials[partialID(e.Content(""))] = true
		}
		return nil
	}})
}

// sweep removes the files of a folder that are not used and older than began.
func (s *Store) sweep(ctx context.Context, folder string, used map[manifest.Digest]bool, began time.Time) (freed int64, err error) {
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
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			continue // gone already
		}
		if time.Unix(st.Ctim.Unix()).After(began.Add(-time.Second)) {
			// It may be for a page that was not there when we marked. The second
			// allows for the coarse clock of file times.
			continue
		}
		if folder == "blobs" {
			s.mu.Lock()
			delete(s.pending, d)
			s.mu.Unlock()
			_ = s.pins.set(d, Unpinned) // its loss costs a wrong word in the status
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, err
		}
		if st.Nlink == 1 {
			freed += st.Blocks * 512
		}
	}
	return freed, nil
}
