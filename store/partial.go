package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

const (
	// groupChunks is how many adjacent chunks one request asks for at most on
	// behalf of a read: 1 MiB.
	groupChunks = 4
	// fillChunks is the same for filling a file: 2 MiB.
	fillChunks = 8
	// fillStreams requests of fillChunks in flight fill a wire of 1 Gbit/s at
	// 50 ms, which holds 6 MiB, also while the next is on its way to the source.
	fillStreams = 6
	// fillRequests is how many requests may be in flight when they are shorter,
	// since an older version of the file has what is between them.
	fillRequests = 32
)

type chunkState uint8

const (
	chunkMissing  chunkState = iota
	chunkClaimed             // an earlier process wrote it
	chunkOlder               // an older version of the file seems to have it
	chunkComing              // a haul is at it
	chunkVerified            // its bytes are in the file and were right
)

// A partial is a file of which some chunks are in the store. All who read or
// fill one content share it.
type partial struct {
	s     *Store
	id    manifest.Digest
	c     manifest.Content
	list  manifest.ChunkList
	file  *os.File // becomes the blob when it is complete
	refs  int      // guarded by s.mu; at 0 it is closed and forgotten
	older *older   // nil: there is none

	finishing sync.Mutex // one at a time hashes the whole

	summing sync.Mutex // guards sum and summed; taken before mu
	sum     hash.Hash  // of the first summed chunks; nil: of none
	summed  int64

	mu       sync.Mutex
	marks    *os.File
	bits     chunkMap
	state    []chunkState
	verified int64         // chunks
	hauls    []*haul       // under way
	changed  chan struct{} // closed, and made anew, when anything below mu changes
	whole    bool          // it is a blob
	err      error         // why it can never be one
}

// partialID names the partial of c. It covers the chunk list, since that comes
// from a snapshot that may be hostile: a false one must not meet the reader of
// another snapshot that has the same file.
func partialID(c manifest.Content) manifest.Digest {
	b := append(c.Digest[:], c.Chunks[:]...)
	return manifest.Sum(binary.LittleEndian.AppendUint64(b, uint64(c.Size)))
}

// A haul is one request for adjacent chunks, and those who wait for it.
type haul struct {
	by       asker
	from, to int64   // chunks
	at       stretch // of by.pace's stream
	waiters  int
	cancel   context.CancelFunc
	dropped  bool // cancelled because nobody waited
	over     bool
	err      error
}

// partial returns the shared partial of c; the caller calls release. list is
// c's chunk list, verified; older is closed with the partial, or at once. It returns nil if the blob stands: the one who
// brought the last chunk may have made it since the caller looked.
func (s *Store) partial(c manifest.Content, list manifest.ChunkList, older *older) (*partial, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := partialID(c)
	if p := s.partials[id]; p != nil {
		p.refs++
		older.close()
		return p, nil
	}
	if k, ok := s.blobKey(c.Digest); ok && s.trustedLocked(c.Digest, k) {
		older.close()
		return nil, nil
	}
	p := &partial{s: s, id: id, c: c, list: list, older: older, refs: 1, changed: make(chan struct{})}
	if err := p.open(); err != nil {
		p.closeFiles()
		return nil, s.onDisk(err, c.Path, c.Size)
	}
	s.partials[id] = p
	return p, nil
}

// shared reports whether somebody has the partial of c open.
func (s *Store) shared(c manifest.Content) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.partials[partialID(c)] != nil
}

func (p *partial) retain() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.refs++
}

func (p *partial) release() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.refs--; p.refs == 0 {
		delete(p.s.partials, p.id)
		p.closeFiles()
	}
}

func (p *partial) closeFiles() {
	if p.file != nil {
		_ = p.file.Close()
	}
	if p.marks != nil {
		_ = p.marks.Close()
	}
	p.older.close()
}

func (p *partial) path() string      { return p.s.partialPath(p.id) }
func (p *partial) marksPath() string { return p.path() + ".map" }

func (p *partial) open() (err error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	if p.marks, err = os.OpenFile(p.marksPath(), flags, 0o600); err != nil {
		return err
	}
	if p.file, err = os.OpenFile(p.path(), flags, 0o444); err != nil {
		return err
	}
	old, err := os.ReadFile(p.marksPath())
	if err != nil {
		return err
	}
	p.state = make([]chunkState, manifest.Chunks(p.c.Size))
	if p.bits, err = decodeChunkMap(old, p.c.Size); err == nil {
		for i := range p.state {
			if p.bits.has(int64(i)) {
				p.state[i] = chunkClaimed
			}
		}
	} else {
		p.bits = newChunkMap(p.c.Size)
		if err := errors.Join(p.marks.Truncate(0), p.file.Truncate(0)); err != nil {
			return err
		}
		if _, err := p.marks.WriteAt(p.bits, 0); err != nil {
			_ = os.Remove(p.marksPath())
			_ = os.Remove(p.path())
			return err
		}
	}
	for i := range p.state {
		if p.state[i] == chunkMissing && p.older.has(int64(i)) {
			p.state[i] = chunkOlder
		}
	}
	return p.file.Truncate(p.c.Size)
}

// tidyPartials removes files without a map and maps without a file: an earlier
// process was killed between two steps.
func tidyPartials(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
	}
	for name := range there {
		other, isMap := strings.CutSuffix(name, ".map")
		if !isMap {
			other = name + ".map"
		}
		if !there[other] {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// span returns the offset and length of chunks from up to to.
func (p *partial) span(from, to int64) (off, n int64) {
	off = from * manifest.ChunkSize
	return off, min(to*manifest.ChunkSize, p.c.Size) - off
}

// notify wakes all who wait for a change. The caller holds p.mu.
func (p *partial) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// mark sets the state of chunk i. The caller holds p.mu.
func (p *partial) mark(i int64, st chunkState) error {
	old := p.state[i]
	if old == st {
		return nil
	}
	p.state[i] = st
	switch {
	case st == chunkVerified:
		p.verified++
	case old == chunkVerified:
		p.verified--
	}
	there := st == chunkVerified || st == chunkClaimed
	if p.whole || p.bits.has(i) == there {
		return nil
	}
	at := p.bits.set(i, there)
	_, err := p.marks.WriteAt(p.bits[at:at+1], at)
	return err
}

// recheck verifies a chunk that an earlier process wrote, or that is suspect.
func (p *partial) recheck(i int64) error {
	off, n := p.span(i, i+1)
	buf := takeBuffer(n)
	defer giveBuffer(buf)
	data := (*buf)[:n]
	_, err := p.file.ReadAt(data, off)
	st := chunkVerified
	if err != nil || manifest.Sum(data) != p.list[i] {
		st = chunkMissing
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state[i] == chunkComing || p.whole {
		return nil
	}
	defer p.notify()
	return p.s.onDisk(p.mark(i, st), p.c.Path, n)
}

// need returns when chunks from up to to are verified.
func (p *partial) need(ctx context.Context, by asker, from, to int64) error {
	for i := from; i < to; {
		p.mu.Lock()
		p.overtake(by, i, min(to, i+groupChunks))
		switch {
		case p.whole || p.state[i] == chunkVerified:
			p.mu.Unlock()
			i++
		case p.err != nil:
			defer p.mu.Unlock()
			return p.err
		case p.state[i] == chunkClaimed:
			p.mu.Unlock()
			if err := p.recheck(i); err != nil {
				return err
			}
		case p.state[i] == chunkOlder:
			p.mu.Unlock()
			if err := p.borrow(i); err != nil {
				return err
			}
		case p.state[i] == chunkMissing:
			h := p.send(by, i, min(to, i+groupChunks))
			if h == nil {
				p.mu.Unlock()
				return errClosed
			}
			fallthrough
		default:
			h := p.haulOf(i)
			p.mu.Unlock()
			// Another asker's failure is not ours, nor is that of a haul which
			// was given up before we came.
			if dropped, err := p.await(ctx, by, h, i); err != nil && (ctx.Err() != nil || h.by == by && !dropped) {
				return err
			}
		}
	}
	return nil
}

// haulOf returns the haul that brings chunk i, for a further waiter. The caller
// holds p.mu.
func (p *partial) haulOf(i int64) *haul {
	h := p.newest(i)
	if h == nil {
		panic("store: a chunk is coming and nobody brings it")
	}
	h.waiters++
	return h
}

// newest returns the haul for chunk i, or nil: the last if one has overtaken
// another. The caller holds p.mu.
func (p *partial) newest(i int64) *haul {
	for _, h := range slices.Backward(p.hauls) {
		if h.from <= i && i < h.to {
			return h
		}
	}
	return nil
}

// await returns when h has brought chunk i, or has failed, and whether it was
// given up.
func (p *partial) await(ctx context.Context, by asker, h *haul, i int64) (dropped bool, err error) {
	for {
		p.mu.Lock()
		patience := h.patience(by)
		if p.whole || p.state[i] == chunkVerified || h.over || patience <= 0 {
			h.waiters--
			err := h.err
			if p.whole || p.state[i] == chunkVerified {
				err = nil
			}
			dropped := h.dropped
			p.mu.Unlock()
			return dropped, err
		}
		changed := p.changed
		p.mu.Unlock()
		late := time.NewTimer(patience)
		select {
		case <-changed:
		case <-late.C:
		case <-ctx.Done():
			p.quit(h)
			late.Stop()
			return false, context.Cause(ctx)
		}
		late.Stop()
	}
}

// quit ends a waiter's part in h without success: with the last one it ends
// the haul. (A waiter who got its chunk leaves the rest of the haul to finish.)
func (p *partial) quit(h *haul) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.waiters--; h.waiters == 0 && !h.over {
		h.dropped = true
		h.cancel()
	}
}

// send starts a haul for chunk from and the missing ones that follow it, up to
// to. The caller holds p.mu. It returns nil when the store is being closed.
func (p *partial) send(by asker, from, to int64) *haul {
	end := from
	for end < to && p.state[end] == chunkMissing {
		end++
	}
	h := &haul{by: by, from: from, to: end}
	var ctx context.Context
	ctx, h.cancel = context.WithCancel(p.s.ctx)
	p.retain()
	if !p.s.flights.spawn(func() { p.run(ctx, h); p.release() }) {
		h.cancel()
		p.release()
		return nil
	}
	for i := from; i < end; i++ {
		p.state[i] = chunkComing
	}
	p.hauls = append(p.hauls, h)
	return h
}

// run brings the chunks of h.
func (p *partial) run(ctx context.Context, h *haul) {
	off, n := p.span(h.from, h.to)
	err := h.by.reader.bring(ctx, job{
		what: p.c.Path, digest: p.c.Digest, background: h.by.background, off: off, n: n, piece: manifest.ChunkSize,
		accept: func(off int64, data []byte) error { return p.accept(off/manifest.ChunkSize, data) },
	})
	if p.s.ctx.Err() != nil && err != nil {
		err = errClosed
	}
	if err != nil && ctx.Err() == nil {
		p.s.report(p.c.Path, p.c.Digest, err)
	}
	p.end(h, err)
}

// end takes a haul off the list.
func (p *partial) end(h *haul, err error) {
	h.cancel()
	if h.by.background && err == nil {
		off, n := p.span(h.from, h.to)
		// So that the flush at the end finds little left. It is only a hint.
		_ = unix.SyncFileRange(int(p.file.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h.over, h.err = true, err
	p.hauls = slices.DeleteFunc(p.hauls, func(o *haul) bool { return o == h })
	for i := h.from; i < h.to; i++ {
		if p.state[i] == chunkComing && p.newest(i) == nil {
			p.state[i] = chunkMissing
		}
	}
	p.notify()
}

// patience returns how long by should wait for what h brings.
func (h *haul) patience(by asker) time.Duration {
	if by.background {
		return math.MaxInt64
	}
	return h.by.pace.patience(h.at)
}

// overtake makes those of the chunks missing again that come with a stream which
// is far from them, and returns how long the others are worth waiting for. The
// caller holds p.mu, and is to ask for them itself.
func (p *partial) overtake(by asker, from, to int64) time.Duration {
	least := time.Duration(math.MaxInt64)
	for _, h := range p.hauls {
		if h.to <= from || to <= h.from {
			continue
		}
		patience := h.patience(by)
		if patience > 0 {
			least = min(least, patience)
			continue
		}
		for i := max(from, h.from); i < min(to, h.to); i++ {
			if p.state[i] == chunkComing && p.newest(i) == h {
				p.state[i] = chunkMissing
			}
		}
	}
	return least
}

// expect says that chunks which are missing among those from up to to come with
// a stream, and where in it. The stream passes them to deliver.
func (p *partial) expect(by asker, from, to int64, at stretch) *haul {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := &haul{by: by, from: from, to: to, at: at, waiters: 1, cancel: func() {}}
	for i := from; i < to; i++ {
		if p.state[i] == chunkMissing {
			p.state[i] = chunkComing
		}
	}
	p.hauls = slices.Insert(p.hauls, 0, h) // behind those of who asked for less
	return h
}

// deliver accepts what a stream has brought for h.
func (p *partial) deliver(h *haul, data []byte) error {
	for i := h.from; i < h.to; i++ {
		n := min(len(data), manifest.ChunkSize)
		if err := p.accept(i, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// accept verifies a chunk that has arrived and writes it.
func (p *partial) accept(i int64, data []byte) error {
	p.mu.Lock()
	there := p.whole || p.state[i] == chunkVerified
	p.mu.Unlock()
	if there {
		return nil // a stream brings what was asked for alone meanwhile
	}
	if manifest.Sum(data) != p.list[i] {
		return fmt.Errorf("chunk %d: %w", i, manifest.ErrCorrupt)
	}
	if _, err := p.file.WriteAt(data, i*manifest.ChunkSize); err != nil {
		return p.s.onDisk(err, p.c.Path, p.c.Size)
	}
	p.s.stats.fetchedChunks.add(1)
	p.s.stats.fetchedBytes.add(int64(len(data)))
	return p.keep(i, data)
}

// keep notes that chunk i is in the file and is data.
func (p *partial) keep(i int64, data []byte) error {
	p.mu.Lock()
	err := p.mark(i, chunkVerified)
	p.notify()
	p.mu.Unlock()
	p.sumUp(i, data)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verified == int64(len(p.state)) && !p.whole {
		p.retain()
		if !p.s.flights.spawn(func() { p.conclude(); p.release() }) {
			p.release()
		}
	}
	return p.s.onDisk(err, p.c.Path, p.c.Size)
}

// conclude makes the blob when reads alone have brought the last chunk.
func (p *partial) conclude() {
	if err := p.finish(p.s.ctx); err != nil && p.s.ctx.Err() == nil {
		p.s.report(p.c.Path, p.c.Digest, err)
	}
}
