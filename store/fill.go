package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// fill returns when all chunks are verified, with several requests under way.
func (p *partial) fill(ctx context.Context, by asker) error {
	var mine []*haul
	defer func() {
		for _, h := range mine {
			p.quit(h)
		}
	}()
	for next := int64(0); ; {
		if by.background {
			if err := p.s.demand.yield(ctx); err != nil {
				return err
			}
		}
		p.mu.Lock()
		kept := mine[:0]
		var failed error
		var coming int64 // chunks
		for _, h := range mine {
			if !h.over {
				kept = append(kept, h)
				coming += h.to - h.from
			} else if h.waiters--; h.err != nil {
				failed = h.err
			}
		}
		if mine = kept; failed != nil {
			p.mu.Unlock()
			return failed
		}
		patience := p.overtake(by, next, int64(len(p.state)))
		for next < int64(len(p.state)) && (p.state[next] == chunkVerified || p.whole) {
			next++
		}
		i := next
		for i < int64(len(p.state)) && !p.whole && (p.state[i] == chunkComing || p.state[i] == chunkVerified) {
			i++
		}
		switch end := int64(len(p.state)); {
		case p.err != nil:
			defer p.mu.Unlock()
			return p.err
		case next == end:
			p.mu.Unlock()
			return nil
		case i < end && p.state[i] == chunkClaimed:
			p.mu.Unlock()
			if err := p.recheck(i); err != nil {
				return err
			}
			continue
		case i < end && p.state[i] == chunkOlder:
			p.mu.Unlock()
			if err := p.borrow(i); err != nil {
				return err
			}
			continue
		case i < end && len(mine) < fillRequests && coming <= (fillStreams-1)*fillChunks:
			h := p.send(by, i, min(end, i+fillChunks))
			if h == nil {
				p.mu.Unlock()
				return errClosed
			}
			h.waiters++
			mine = append(mine, h)
			p.mu.Unlock()
			continue
		}
		changed := p.changed
		p.mu.Unlock()
		late := time.NewTimer(patience)
		select {
		case <-changed:
		case <-late.C:
		case <-ctx.Done():
			late.Stop()
			return context.Cause(ctx)
		}
		late.Stop()
	}
}

// sumUp goes on with the digest of the whole, as far as the chunks have no gap,
// so that a file need not be read again when its last chunk has come. data is
// chunk i, which has just been verified. Nobody waits for it: who comes while
// another is at it leaves it to him.
func (p *partial) sumUp(i int64, data []byte) {
	if !p.summing.TryLock() {
		return
	}
	defer p.summing.Unlock()
	if p.sum == nil {
		p.sum = sha256.New()
	}
	if p.summed == i {
		_, _ = p.sum.Write(data)
		p.summed++
	}
	p.sumOn()
}

// sumOn sums up what has come meanwhile. The caller holds p.summing.
func (p *partial) sumOn() {
	buf := takeBuffer(manifest.ChunkSize)
	defer giveBuffer(buf)
	for p.summed < int64(len(p.state)) {
		p.mu.Lock()
		there := p.state[p.summed] == chunkVerified
		p.mu.Unlock()
		if !there {
			return
		}
		off, n := p.span(p.summed, p.summed+1)
		if _, err := p.file.ReadAt((*buf)[:n], off); err != nil {
			return // who sums up the whole meets it again
		}
		_, _ = p.sum.Write((*buf)[:n])
		p.summed++
	}
}

// proven reports whether all chunks have been summed up and are what the
// digest says. If not, one of them was wrong, or is now.
func (p *partial) proven() bool {
	p.summing.Lock()
	defer p.summing.Unlock()
	if p.sum == nil {
		return false
	}
	p.sumOn()
	return p.summed == int64(len(p.state)) && manifest.Digest(p.sum.Sum(nil)) == p.c.Digest
}

// finish makes the blob of a file whose chunks are all verified: it hashes the
// whole, since a hostile chunk list may not belong to the digest.
func (p *partial) finish(ctx context.Context) error {
	p.finishing.Lock()
	defer p.finishing.Unlock()
	p.mu.Lock()
	done, err := p.whole, p.err
	p.mu.Unlock()
	if done || err != nil {
		return err
	}
	proven := p.proven()
	if !proven {
		v, n, err := statcache.Hash(ctx, p.file, false)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		proven = err == nil && v.Digest == p.c.Digest && n == p.c.Size
	}
	if proven {
		p.mu.Lock()
		defer p.mu.Unlock()
		if err := p.s.commit(p.path(), p.c.Digest); err != nil {
			return p.s.onDisk(err, p.c.Path, p.c.Size)
		}
		p.whole = true
		p.notify()
		if err := os.Remove(p.marksPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return p.s.onDisk(err, p.c.Path, 0)
		}
		p.s.stats.fetchedFiles.add(1)
		return nil
	}
	// Either the disk has changed bytes that were right, or the list lies.
	for i := range p.state {
		if err := p.recheck(int64(i)); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verified < int64(len(p.state)) {
		return nil // the caller fills the gaps and comes again
	}
	p.err = fmt.Errorf("%s: its chunk list does not belong to its digest %v: %w", p.c.Path, p.c.Digest, manifest.ErrCorrupt)
	_ = os.Remove(p.path())
	_ = os.Remove(p.marksPath())
	p.notify()
	return p.err
}
