package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// An Opening is a snapshot, and the metadata that came with it. It is the
// source's [manifest.Batcher], and answers a request for such metadata itself.
type Opening struct {
	*Client
	Snapshot *manifest.Snapshot

	watch  *watch
	stream srvfspb.Srvfs_SnapshotClient

	mu      sync.Mutex
	pages   map[manifest.Digest][]byte // a nil page is to come; no map: forgotten
	changed chan struct{}              // closed, and made anew, when a page has come
	ended   bool                       // no more come
}

var _ manifest.Batcher = (*Opening)(nil)

// Open returns a service's snapshot with that sequence number, or the newest for
// 0. Behind it the source sends the metadata that the snapshot's profile leads
// through: whoever needs that need not wait for another round trip. The caller must
// call Receive; when ctx ends after Open has returned, that changes nothing.
func (c *Client) Open(ctx context.Context, ref manifest.Ref) (_ *Opening, err error) {
	what, service := "snapshot of "+ref.String(), ref.Service
	if !manifest.ValidService(service) {
		return nil, c.wrap(what, fmt.Errorf("%.80q is not a service name: %w", service, manifest.ErrInvalid))
	}
	o := &Opening{Client: c, watch: c.watch(ctx, what), pages: map[manifest.Digest][]byte{}, changed: make(chan struct{})}
	defer func() {
		if err != nil {
			o.watch.close()
		}
	}()
	err = o.watch.await(func() (err error) {
		o.stream, err = c.rpc.Snapshot(o.watch.ctx, &srvfspb.SnapshotRequest{Service: service, Sequence: ref.Sequence, By: ref.By, Source: c.of})
		return err
	})
	var raw []byte
	var first *srvfspb.Piece // of the metadata
	for err == nil {
		var p *srvfspb.Piece
		if p, err = o.next(); err != nil {
			break
		}
		if p.GetMetadata() {
			first = p
			break
		}
		if raw, err = appendPiece(raw, p.GetRaw(), p.GetData(), manifest.MaxSnapshot-int64(len(raw))); err != nil {
			return nil, c.wrap(what, err)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, o.watch.fail(err)
	}
	o.ended = err != nil
	s, err := manifest.DecodeSnapshot(raw)
	if err != nil {
		return nil, c.wrap(what, err)
	}
	if s.Service != service || !ref.Names(s.Sequence, s.Created) {
		return nil, c.wrap(what, fmt.Errorf("it sent number %d of %s: %w", s.Sequence, s.Service, manifest.ErrInvalid))
	}
	o.Snapshot = s
	for _, r := range metadataOf(s) {
		o.pages[r.Digest] = nil
	}
	if first != nil {
		if err := o.take(first); err != nil {
			return nil, c.wrap(what, err)
		}
	}
	o.watch.free()
	return o, nil
}

// next waits for the next piece.
func (o *Opening) next() (p *srvfspb.Piece, err error) {
	err = o.watch.await(func() (err error) { p, err = o.stream.Recv(); return err })
	return p, err
}

// Receive takes in the metadata. It returns when all has come, or ctx ends, or the
// transfer fails; then what has not come is asked for in the usual way.
func (o *Opening) Receive(ctx context.Context) error {
	defer o.watch.close()
	defer context.AfterFunc(ctx, func() { o.watch.cancel(ctx.Err()) })()
	defer o.end()
	for !o.ended {
		p, err := o.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return o.watch.fail(err)
		}
		if err := o.take(p); err != nil {
			return o.wrap(o.watch.what, err)
		}
	}
	return nil
}

// take takes a page in that was expected and has not come.
func (o *Opening) take(p *srvfspb.Piece) error {
	page, err := appendPiece(nil, p.GetRaw(), p.GetData(), pieceSize)
	if err != nil {
		return err
	}
	d := manifest.Sum(page)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pages == nil {
		return nil // forgotten
	}
	have, expected := o.pages[d]
	if !p.GetMetadata() || !expected || have != nil {
		return fmt.Errorf("%d bytes with digest %v behind the snapshot: not expected: %w", len(page), d, manifest.ErrCorrupt)
	}
	o.pages[d] = page
	close(o.changed)
	o.changed = make(chan struct{})
	return nil
}

// end lets go of those who wait.
func (o *Opening) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	close(o.changed)
	o.changed = make(chan struct{})
}

// page returns the metadata with that digest if it comes with the snapshot, and
// waits for it; else nil. It is returned once: the caller keeps it.
func (o *Opening) page(ctx context.Context, d manifest.Digest) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		b, expected := o.pages[d]
		if b != nil || !expected || o.ended {
			delete(o.pages, d)
			return b, nil
		}
		changed := o.changed
		o.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		o.mu.Lock()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// Forget lets go of the metadata, when nobody will ask for it any more.
func (o *Opening) Forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pages = nil
}

// FetchBatch implements [manifest.Batcher].
func (o *Opening) FetchBatch(ctx context.Context, want []manifest.Range, yield func(i int, data []byte, err error) error) error {
	for i, r := range want {
		var b []byte
		if r.Off == 0 && r.Len < 0 {
			var err error
			if b, err = o.page(ctx, r.Digest); err != nil {
				return o.wrap(fmt.Sprintf("batch of %d ranges", len(want)), err)
			}
		}
		if b == nil { // the others with it, in one request
			return o.Client.FetchBatch(ctx, want[i:], func(k int, data []byte, err error) error { return yield(i+k, data, err) })
		}
		if err := yield(i, b, nil); err != nil {
			return err
		}
	}
	return nil
}
