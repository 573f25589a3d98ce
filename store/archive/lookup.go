package archive

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"srvfs/manifest"
)

// An index is an open one: its head is in memory, and groups of places as they are
// needed.
type index struct {
	desc   descriptor
	blobs  []blobRef
	groups []group

	mu    sync.Mutex
	cache map[int][]located
	held  int // places in cache
}

// mostHeld is how many places of one index are kept in memory; some 100 bytes each.
const mostHeld = 256 << 10

// openIndex reads the head of an index, which the artefact's manifest vouches for.
func (a *Archive) openIndex(ctx context.Context, d descriptor) (*index, error) {
	n, head, err := parseHeadNote(d.Annotations[noteHead])
	if err != nil {
		return nil, err
	}
	if n > d.Size {
		return nil, fmt.Errorf("index %v: a head of %d bytes in %d: %w", d.Digest, n, d.Size, manifest.ErrCorrupt)
	}
	b, err := a.shelf.read(ctx, d.Digest, 0, n)
	if err == nil {
		err = verify(b, head, "head of index")
	}
	if err != nil {
		return nil, fmt.Errorf("index %v: %w", d.Digest, err)
	}
	i := &index{desc: d, cache: map[int][]located{}}
	i.blobs, i.groups, err = decodeHead(b, d.Size)
	return i, err
}

// groupOf returns the number of the group in which d may be, or -1.
func (i *index) groupOf(d manifest.Digest) int {
	k, ok := slices.BinarySearchFunc(i.groups, d, func(g group, d manifest.Digest) int { return bytes.Compare(g.first[:], d[:]) })
	if ok {
		return k
	}
	return k - 1
}

func (i *index) cached(k int) []located {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cache[k]
}

// fetch reads groups, neighbours in one request.
func (i *index) fetch(ctx context.Context, s shelf, groups []int) error {
	slices.Sort(groups)
	groups = slices.Compact(groups)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for len(groups) > 0 {
		n := 1
		start := i.groups[groups[0]].off
		end := start + i.groups[groups[0]].length
		for n < len(groups) && i.groups[groups[n]].off-end <= gap && i.groups[groups[n]].off-start < span {
			end = i.groups[groups[n]].off + i.groups[groups[n]].length
			n++
		}
		some := groups[:n]
		groups = groups[n:]
		g.Go(func() error {
			b, err := s.read(ctx, i.desc.Digest, start, end-start)
			if err != nil {
				return fmt.Errorf("index %v: %w", i.desc.Digest, err)
			}
			for _, k := range some {
				at := i.groups[k]
				frame := b[at.off-start : at.off-start+at.length]
				if err := verify(frame, at.digest, "part of index"); err != nil {
					return err
				}
				raw, err := decompress(frame, at.raw)
				if err != nil {
					return fmt.Errorf("index %v: %w", i.desc.Digest, err)
				}
				all, err := decodeGroup(raw, i.blobs)
				if err != nil {
					return fmt.Errorf("index %v: %w", i.desc.Digest, err)
				}
				i.mu.Lock()
				if i.held += len(all); i.held > mostHeld {
					clear(i.cache)
					i.held = len(all)
				}
				i.cache[k] = all
				i.mu.Unlock()
			}
			return nil
		})
	}
	return g.Wait()
}

// A spot is where a content lies, with the blob in place of its number.
type spot struct {
	place
	in blobRef
}

// locate finds contents. One that is not in the result is not here.
func (a *Archive) locate(ctx context.Context, digests []manifest.Digest) (map[manifest.Digest]spot, error) {
	found := make(map[manifest.Digest]spot, len(digests))
	for _, i := range a.indices {
		if len(found) == len(digests) {
			break
		}
		if err := i.locate(ctx, a.shelf, digests, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (i *index) locate(ctx context.Context, s shelf, digests []manifest.Digest, found map[manifest.Digest]spot) error {
	var want []manifest.Digest
	var groups []int
	for _, d := range digests {
		if _, ok := found[d]; ok {
			continue
		}
		if k := i.groupOf(d); k >= 0 {
			want = append(want, d)
			if i.cached(k) == nil {
				groups = append(groups, k)
			}
		}
	}
	// A few at a time, so that what one fetches is still there when it is looked at.
	for {
		some := groups[:min(len(groups), mostHeld/groupPlaces/2)]
		groups = groups[len(some):]
		if err := i.fetch(ctx, s, some); err != nil {
			return err
		}
		left := want[:0]
		for _, d := range want {
			if all := i.cached(i.groupOf(d)); all == nil {
				left = append(left, d)
			} else if p, ok := find(all, d); ok {
				found[d] = spot{p, i.blobs[p.blob]}
			}
		}
		if want = left; len(want) == 0 {
			return nil
		}
		if len(groups) == 0 { // forgotten again by another that looks
			for _, d := range want {
				groups = append(groups, i.groupOf(d))
			}
		}
	}
}
