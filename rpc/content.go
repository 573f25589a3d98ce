package rpc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"google.golang.org/grpc/codes"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// A contentReader is the body of one Fetch.
type contentReader struct {
	watch  *watch
	stream srvfspb.Srvfs_FetchClient
	exact  bool  // the length was given: neither more nor less is accepted
	left   int64 // bytes that may still come
	piece  []byte
	unread []byte
	err    error // sticky
	closed atomic.Bool
}

func (r *contentReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.unread) == 0 {
		if r.closed.Load() {
			return 0, r.watch.client.wrap(r.watch.what, os.ErrClosed)
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.unread)
	r.unread = r.unread[n:]
	return n, nil
}

// next waits for the next piece.
func (r *contentReader) next() error {
	if r.err != nil {
		return r.err
	}
	var p *srvfspb.Piece
	err := r.watch.await(func() (err error) { p, err = r.stream.Recv(); return err })
	switch {
	case errors.Is(err, io.EOF) && r.exact && r.left > 0:
		r.err = r.watch.client.wrap(r.watch.what, fmt.Errorf("cut short by %d bytes: %w", r.left, manifest.ErrCorrupt))
	case errors.Is(err, io.EOF):
		r.err = io.EOF
	case err != nil:
		r.err = r.watch.fail(err)
	case p.GetRaw() == 0: // as it is: no copy
		if r.err = checkPiece(p, r.left); r.err == nil {
			r.unread = p.GetData()
		}
	default:
		if r.piece, r.err = appendPiece(r.piece[:0], p, r.left); r.err == nil {
			r.unread = r.piece
		}
	}
	if r.err != nil && err == nil {
		r.err = r.watch.client.wrap(r.watch.what, r.err)
	}
	r.left -= int64(len(r.unread))
	if r.err != nil {
		r.watch.close()
	}
	return r.err
}

// Close stops the transfer. It may be called while a Read waits.
func (r *contentReader) Close() error {
	r.closed.Store(true)
	r.watch.close()
	return nil
}

// checkPiece refuses pieces that hold nothing, of which a hostile source could
// send any number, and those that hold too much.
func checkPiece(p *srvfspb.Piece, limit int64) error {
	n := int64(p.GetRaw())
	if n == 0 {
		n = int64(len(p.GetData()))
	}
	if n == 0 {
		return fmt.Errorf("empty piece: %w", manifest.ErrInvalid)
	}
	if n > pieceSize || n > limit {
		return fmt.Errorf("%d bytes where at most %d are expected: %w", n, min(limit, pieceSize), manifest.ErrCorrupt)
	}
	return nil
}

// appendPiece appends what a piece holds to dst, at most limit bytes.
func appendPiece(dst []byte, p *srvfspb.Piece, limit int64) ([]byte, error) {
	if err := checkPiece(p, limit); err != nil {
		return dst, err
	}
	return unpack(dst, p.GetData(), p.GetRaw())
}

// An assembler makes items of the messages of one batch, whoever wrote these.
type assembler struct {
	want  []manifest.Range
	yield func(i int, data []byte, err error) error
	next  int    // the item that comes
	have  []byte // its pieces so far
}

// add takes the next message. It holds no more of an item than its range asked for.
func (a *assembler) add(b *srvfspb.Batch) error {
	if len(b.GetItems()) == 0 {
		return fmt.Errorf("empty message: %w", manifest.ErrInvalid)
	}
	for _, v := range b.GetItems() {
		if err := a.item(v); err != nil {
			return err
		}
	}
	return nil
}

func (a *assembler) item(v *srvfspb.Item) error {
	i := a.next
	if i >= len(a.want) || int64(v.GetIndex()) != int64(i) {
		return fmt.Errorf("item %d where %d of %d is expected: %w", v.GetIndex(), i, len(a.want), manifest.ErrInvalid)
	}
	if code := codes.Code(v.GetCode()); code != codes.OK {
		if v.GetMore() || len(v.GetData()) > 0 {
			return fmt.Errorf("item %d: an error with content: %w", i, manifest.ErrInvalid)
		}
		a.next, a.have = i+1, a.have[:0]
		return a.yield(i, nil, errorOf(code, v.GetText()))
	}
	size, exact := a.want[i].Len, true
	if size < 0 {
		size, exact = manifest.MaxMeta, false
	}
	p := &srvfspb.Piece{Raw: v.GetRaw(), Data: v.GetData()}
	var data []byte
	if last := !v.GetMore(); last && len(p.Data) == 0 && p.Raw == 0 && len(a.have) == 0 {
		// An empty content: the one item without bytes.
	} else if limit := size - int64(len(a.have)); last && p.Raw == 0 && len(a.have) == 0 {
		if err := checkPiece(p, limit); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
		data = p.Data // as it is: no copy
	} else {
		var err error
		if a.have, err = appendPiece(a.have, p, limit); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
		data = a.have
	}
	if v.GetMore() {
		return nil
	}
	if exact && int64(len(data)) != size {
		return fmt.Errorf("item %d: %d bytes instead of %d: %w", i, len(data), size, manifest.ErrCorrupt)
	}
	a.next, a.have = i+1, a.have[:0]
	return a.yield(i, data, nil)
}

// end says whether everything has come.
func (a *assembler) end() error {
	if a.next < len(a.want) || len(a.have) > 0 {
		return fmt.Errorf("cut short at item %d of %d: %w", a.next, len(a.want), manifest.ErrCorrupt)
	}
	return nil
}
