package store

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A Damage is something that was not what its digest says.
type Damage struct {
	// Path is that of the file; of a directory page or a chunk list, of what it
	// belongs to.
	Path   string          `json:"path"`
	What   string          `json:"what"` // "file", "directory" or "chunk list"
	Digest manifest.Digest `json:"-"`
}

// String returns the path, and what of it is damaged if that is not the content.
func (d Damage) String() string {
	if d.What == "file" {
		return d.Path
	}
	return fmt.Sprintf("%s (%s)", d.Path, d.What)
}

// Verified is what Verify found of one snapshot.
type Verified struct {
	Count           // files that were read, and are what their digests say; a content counts once
	Pages   int     `json:"pages"`             // directory pages and chunk lists that are
	Damaged Damages `json:"damaged,omitempty"` // what was not, and was removed
	// Lost are those of Damaged that could not be had anew, and Reason says why.
	Lost   Damages `json:"lost,omitempty"`
	Reason string  `json:"reason,omitempty"`
}

// Damages are all that were found, by path.
type Damages []Damage

// maxDamages bounds what is remembered of a disk that is damaged all over.
const maxDamages = 10_000

// String names all, separated by commas.
func (ds Damages) String() string {
	names := make([]string, len(ds))
	for i, d := range ds {
		names[i] = d.String()
	}
	return strings.Join(names, ", ")
}

// Verify reads all that the store has of a snapshot again, pinned files too, from the
// disk and whatever their stat says: pages, chunk lists and blobs. (Chunks of a file
// that is not whole are verified when it becomes that.) What is damaged it removes.
// Then it brings in what is missing, as Prefetch does: so when it returns nil the
// snapshot is detached, and every byte of it was read since the call.
//
// report is as for Prefetch; while files are read the stage is "verify", and Done
// counts those.
//
// Errors are as for Prefetch, with one exception: if something was damaged and can't
// be had anew, the error is nil or the context's, and Lost says what.
func (r *Reader) Verify(ctx context.Context, snap *manifest.Snapshot, report func(Progress)) (Verified, error) {
	v := &verification{r: r, snap: snap, report: report, seen: map[manifest.Digest]bool{}}
	var err error
	// Below a page that is missing nothing is known. When it has come, the rest is read.
	for more, passes := true, 0; more && err == nil && passes < 3; passes++ {
		if more, err = v.pass(ctx); err == nil {
			err = r.Prefetch(ctx, snap, report)
		}
	}
	if ctx.Err() != nil {
		return v.found, context.Cause(ctx)
	}
	for _, d := range v.found.Damaged {
		if !r.store.known(d.Digest) && r.store.readMeta(d.Digest) == nil {
			v.found.Lost = append(v.found.Lost, d)
		}
	}
	if len(v.found.Lost) > 0 && err != nil {
		v.found.Reason = err.Error()
		return v.found, nil //nolint:nilerr // Lost is the answer
	}
	return v.found, err
}

// verification is one Verify under way.
type verification struct {
	r      *Reader
	snap   *manifest.Snapshot
	report func(Progress)
	seen   map[manifest.Digest]bool // what was read
	found  Verified
	told   time.Time // when report was called
}

// pass reads all that was not read yet, and returns whether pages are missing.
func (v *verification) pass(ctx context.Context) (missing bool, err error) {
	s := v.r.store
	bad := map[manifest.Digest]bool{}
	read := func(d manifest.Digest) []byte {
		if v.seen[d] {
			return s.readMeta(d)
		}
		v.seen[d] = true
		forget(s.metaPath(d))
		_, err := os.Lstat(s.metaPath(d))
		b := s.readMeta(d)
		switch {
		case b != nil:
			v.found.Pages++
		case err == nil:
			bad[d] = true
		}
		return b
	}
	pages := func(_ context.Context, digests []manifest.Digest) ([][]byte, error) {
		out := make([][]byte, len(digests))
		for i, d := range digests {
			out[i] = read(d)
		}
		return out, nil
	}
	return missing, walk(ctx, v.snap, pages, visitor{
		absent: func(path string, page manifest.Digest) {
			missing = true
			if bad[page] {
				v.damaged(Damage{path, "directory", page})
			}
		},
		file: func(path string, e *manifest.Entry) error {
			if !e.Chunks.IsZero() && !v.seen[e.Chunks] {
				if read(e.Chunks); bad[e.Chunks] {
					v.damaged(Damage{path, "chunk list", e.Chunks})
				}
			}
			return v.file(ctx, path, e)
		},
	})
}

// file reads one file, if it is whole.
func (v *verification) file(ctx context.Context, path string, e *manifest.Entry) error {
	s := v.r.store
	if v.seen[e.Digest] {
		return nil
	}
	v.seen[e.Digest] = true
	if err := s.demand.yield(ctx); err != nil {
		return err
	}
	if _, there := s.blobKey(e.Digest); !there {
		return nil
	}
	forget(s.blobPath(e.Digest))
	right, err := s.rehash(ctx, e.Digest)
	switch {
	case err != nil:
		return err
	case !right:
		v.damaged(Damage{path, "file", e.Digest})
	default:
		v.found.add(1, e.Size)
		if v.report != nil && time.Since(v.told) >= reportEvery {
			v.told = time.Now()
			v.report(Progress{Done: v.found.Count, Total: Count{v.snap.Totals.Files, int64(v.snap.Totals.Bytes)}, Stage: "verify"})
		}
	}
	return nil
}

func (v *verification) damaged(d Damage) {
	if len(v.found.Damaged) < maxDamages {
		v.found.Damaged = append(v.found.Damaged, d)
	}
}

// forget has the kernel read a file from the disk when it is read next. It keeps what
// some process has mapped, and what it has not written yet.
func forget(path string) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	_ = unix.Close(fd)
}
