package store

import (
	"context"
	"errors"
	"io"
	"os"

	"srvfs/manifest"
)

// A Count is a number of files and of their bytes.
type Count struct {
	Files uint64 `json:"files"`
	Bytes int64  `json:"bytes"`
}

func (c *Count) add(files uint64, bytes int64) {
	c.Files += files
	c.Bytes += bytes
}

// A Tally says where a snapshot's content is. Files with several names count
// once, as in [manifest.Totals]. Local, Stored, Partial and Missing add up to
// Total.
type Tally struct {
	Total   Count `json:"total"`   // as the snapshot says
	Local   Count `json:"local"`   // the host's own, pinned in the store
	Stored  Count `json:"stored"`  // whole in the store, from elsewhere
	Partial Count `json:"partial"` // files of which some chunks are there, and the bytes of these
	// Missing counts the files of which nothing is there, and all bytes that
	// are not. Files in directories that are not known yet are among them.
	Missing Count `json:"missing"`
	// MissingMeta is how many directory pages and chunk lists are known to be
	// missing. There may be more below them.
	MissingMeta int   `json:"missing_meta"`
	Fetched     Count `json:"fetched"` // by the whole store since it was opened
	// Detached: every byte and every name is in the store, verified and flushed.
	// Neither network nor source are needed any more.
	Detached bool `json:"detached"`
}

// Tally looks where the content of a snapshot is. It fetches nothing, and looks
// for nothing on the host: what Match, Prefetch or a first read has not pinned yet
// counts as missing. Blobs whose stat has changed are hashed again.
//
// The error wraps ErrInvalid if the tree is malformed, or is the context's.
func (r *Reader) Tally(ctx context.Context, snap *manifest.Snapshot) (Tally, error) {
	s := r.store
	t := Tally{Total: Count{snap.Totals.Files, int64(snap.Totals.Bytes)}}
	err := walk(ctx, snap, s.storedMeta, visitor{
		absent: func(string, manifest.Digest) { t.MissingMeta++ },
		file: func(_ string, e *manifest.Entry) error {
			c := e.Content("")
			there, err := s.check(ctx, c.Digest)
			if err != nil {
				return err
			}
			switch {
			case there && s.pins.get(c.Digest) != Unpinned:
				t.Local.add(1, c.Size)
			case there:
				t.Stored.add(1, c.Size)
			case c.Size > manifest.ChunkSize:
				if have := s.partialBytes(c); have > 0 {
					t.Partial.add(1, have)
				}
			}
			if c.Size > manifest.ChunkSize && s.readMeta(c.Chunks) == nil {
				t.MissingMeta++
			}
			return nil
		},
	})
	if err != nil {
		return t, err
	}
	t.Missing.Files = t.Total.Files - t.Local.Files - t.Stored.Files - t.Partial.Files
	t.Missing.Bytes = t.Total.Bytes - t.Local.Bytes - t.Stored.Bytes - t.Partial.Bytes
	st := s.Stats()
	t.Fetched = Count{st.FetchedFiles, int64(st.FetchedBytes)}
	if t.MissingMeta == 0 && t.Missing == (Count{}) && t.Partial == (Count{}) {
		if err := s.Flush(); err != nil {
			return t, err
		}
		t.Detached = true
	}
	return t, nil
}

// partialBytes returns how many bytes of c's chunks have been written.
func (s *Store) partialBytes(c manifest.Content) (n int64) {
	b, err := os.ReadFile(s.partialPath(partialID(c)) + ".map")
	if err != nil {
		return 0
	}
	m, err := decodeChunkMap(b, c.Size)
	if err != nil {
		return 0
	}
	for i := range manifest.Chunks(c.Size) {
		if m.has(i) {
			n += min(manifest.ChunkSize, c.Size-i*manifest.ChunkSize)
		}
	}
	return n
}

// A Verification is what Verify found.
type Verification struct {
	Count                     // blobs that are what their name says
	Removed []manifest.Digest // blobs that were not
}

// Verify reads all blobs again, whatever their stat says, and removes those
// that are damaged. It yields to those who wait for content.
func (s *Store) Verify(ctx context.Context) (Verification, error) {
	var v Verification
	dir, err := os.Open(s.BlobDir())
	if err != nil {
		return v, err
	}
	defer func() { _ = dir.Close() }()
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			d, err := manifest.ParseDigest(e.Name())
			if err != nil {
				s.log.Warn("a foreign file lies in the store", "path", s.BlobDir()+"/"+e.Name())
				continue
			}
			if err := s.demand.yield(ctx); err != nil {
				return v, err
			}
			there, err := s.rehash(ctx, d)
			if err != nil {
				return v, err
			}
			if there {
				if k, ok := s.blobKey(d); ok {
					v.add(1, k.Size)
				}
			} else {
				v.Removed = append(v.Removed, d)
			}
		}
		if errors.Is(err, io.EOF) {
			return v, nil
		}
		if err != nil {
			return v, err
		}
	}
}
