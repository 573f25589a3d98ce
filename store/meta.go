package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"srvfs/manifest"
)

// keeping says what becomes of metadata that can't be written to the store.
type keeping bool

const (
	keepIfPossible keeping = false // it is returned all the same
	mustKeep       keeping = true  // the call fails
)

// maxMetaCall bounds what one call holds in memory, in bytes: a source could
// answer each of thousands of pages with the longest that there may be.
const maxMetaCall = 2 * manifest.MaxMeta

// readMeta returns a page or chunk list from the store, or nil. It is hashed
// each time: 64 KiB take 35 us.
func (s *Store) readMeta(d manifest.Digest) []byte {
	p := s.metaPath(d)
	b, err := os.ReadFile(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && manifest.Sum(b) == d {
		return b
	}
	s.log.Warn("removed damaged metadata from the store; it will be fetched again", "digest", d.Hex(), "err", err)
	s.stats.dropped.add(1)
	_ = os.Remove(p)
	return nil
}

// writeMeta keeps verified metadata.
func (s *Store) writeMeta(d manifest.Digest, b []byte) error {
	_, err := s.writeNew(s.meta, d, b)
	s.metaNew.Store(true)
	return s.onDisk(err, "metadata", int64(len(b)))
}

func (r *Reader) meta(ctx context.Context, digests []manifest.Digest, keep keeping) ([][]byte, error) {
	out := make([][]byte, len(digests))
	var missing []key
	seen := map[manifest.Digest]bool{}
	for i, d := range digests {
		if out[i] = r.store.readMeta(d); out[i] == nil && !seen[d] {
			seen[d] = true
			missing = append(missing, key{workMeta, d})
		}
	}
	if len(missing) == 0 {
		return out, ctx.Err()
	}
	var mu sync.Mutex
	got := map[manifest.Digest][]byte{}
	by := asker{reader: r}
	fetch := func(ctx context.Context, mine []key, land landing) map[key]error {
		pass := func(d manifest.Digest, b []byte) {
			mu.Lock()
			got[d] = b
			mu.Unlock()
			land(key{workMeta, d}, nil)
		}
		// Since it was missed another call's flight may have come and gone.
		absent := mine[:0:0]
		for _, k := range mine {
			if b := r.store.readMeta(k.digest); b != nil {
				pass(k.digest, b)
			} else {
				absent = append(absent, k)
			}
		}
		if len(absent) == 0 {
			return nil
		}
		return r.fetchMeta(ctx, by, absent, keep, pass)
	}
	errs := r.store.flights.do(ctx, by, missing, fetch)
	for i, d := range digests {
		if out[i] != nil {
			continue
		}
		if err := errs[key{workMeta, d}]; err != nil {
			return nil, err
		}
		mu.Lock()
		out[i] = got[d]
		mu.Unlock()
		if out[i] == nil { // another call has fetched it
			out[i] = r.store.readMeta(d)
		}
		if out[i] == nil { // and could not keep it
			k := key{workMeta, d}
			if err := fetch(ctx, []key{k}, func(key, error) {})[k]; err != nil {
				return nil, err
			}
			mu.Lock()
			out[i] = got[d]
			mu.Unlock()
		}
	}
	return out, nil
}

// fetchMeta gets metadata from the sources in one batch, keeps it and passes it
// on.
func (r *Reader) fetchMeta(ctx context.Context, by asker, keys []key, keep keeping, pass func(manifest.Digest, []byte)) map[key]error {
	s := r.store
	want := make([]wanted, len(keys))
	for i, k := range keys {
		want[i] = wanted{Range: manifest.Range{Digest: k.digest, Len: -1}, what: "metadata"}
	}
	budget := maxMetaCall
	failed, err := r.batch(ctx, want, false, func(i int, data []byte) error {
		d := keys[i].digest
		if budget -= len(data); budget < 0 {
			return fmt.Errorf("more than %d bytes of metadata in one answer: %w", maxMetaCall, manifest.ErrInvalid)
		}
		if len(data) > manifest.MaxMeta || manifest.Sum(data) != d {
			return fmt.Errorf("%d bytes with digest %v: %w", len(data), manifest.Sum(data), manifest.ErrCorrupt)
		}
		s.stats.metaFetched.add(1)
		s.stats.metaBytes.add(int64(len(data)))
		if err := s.writeMeta(d, data); err != nil {
			if keep == mustKeep {
				return err
			}
			if s.quiet.pass("meta") {
				s.log.Error("metadata can't be kept; it will be fetched again", "err", err)
			}
		}
		pass(d, append([]byte{}, data...))
		return nil
	})
	errs := map[key]error{}
	if err != nil {
		return failAll(errs, keys, err)
	}
	for i, err := range failed {
		errs[keys[i]] = err
		if !by.ahead {
			s.report("metadata", keys[i].digest, err)
		}
	}
	return errs
}
