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
	exact  bool    // the length was given: neither more nor less is accepted
	left   int64   // bytes that may still come
	msg    message // what unread may be of
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
	r.msg.free()
	var raw uint32
	var data []byte
	err := r.watch.await(func() error { return r.stream.RecvMsg(&r.msg) })
	if err == nil {
		raw, data, r.err = parsePiece(r.msg.body())
	}
	switch {
	case errors.Is(err, io.EOF) && r.exact && r.left > 0:
		r.err = r.watch.client.wrap(r.watch.what, fmt.Errorf("cut short by %d bytes: %w", r.left, manifest.ErrCorrupt))
	case errors.Is(err, io.EOF):
		r.err = io.EOF
	case err != nil:
		r.err = r.watch.fail(err)
	case r.err != nil:
	case raw == 0: // as it is: no copy
		if r.err = checkPiece(raw, data, r.left); r.err == nil {
			r.unread = data
		}
	default:
		if r.piece, r.err = appendPiece(r.piece[:0], raw, data, r.left); r.err == nil {
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
func checkPiece(raw uint32, data []byte, limit int64) error {
	n := int64(raw)
	if n == 0 {
		n = int64(len(data))
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
func appendPiece(dst []byte, raw uint32, data []byte, limit int64) ([]byte, error) {
	if err := checkPiece(raw, data, limit); err != nil {
		return dst, err
	}
	return unpack(dst, data, raw)
}

// An assembler makes items of the messages of one batch, whoever wrote these.
type assembler struct {
	want  []manifest.Range
	yield func(i int, data []byte, err error) error
	next  int    // the item that comes
	have  []byte // its pieces so far
}

// add takes the next message, an encoded Batch. It holds no more of an item than
// its range asked for, and nothing of the message.
func (a *assembler) add(body []byte) error {
	any := false // a source could send any number of messages without
	err := items(body, func(v *item) error {
		any = true
		return a.item(v)
	})
	if err == nil && !any {
		err = fmt.Errorf("message without items: %w", manifest.ErrInvalid)
	}
	return err
}

func (a *assembler) item(v *item) error {
	i := a.next
	if i >= len(a.want) || int64(v.index) != int64(i) {
		return fmt.Errorf("item %d where %d of %d is expected: %w", v.index, i, len(a.want), manifest.ErrInvalid)
	}
	if code := codes.Code(v.code); code != codes.OK {
		if v.more || len(v.data) > 0 {
			return fmt.Errorf("item %d: an error with content: %w", i, manifest.ErrInvalid)
		}
		a.next, a.have = i+1, a.have[:0]
		return a.yield(i, nil, errorOf(code, v.text))
	}
	size, exact := a.want[i].Len, true
	if size < 0 {
		size, exact = manifest.MaxMeta, false
	}
	var data []byte
	if last := !v.more; last && len(v.data) == 0 && v.raw == 0 && len(a.have) == 0 {
		// An empty content: the one item without bytes.
	} else if limit := size - int64(len(a.have)); last && v.raw == 0 && len(a.have) == 0 {
		if err := checkPiece(0, v.data, limit); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
		data = v.data // as it is: no copy
	} else {
		var err error
		if a.have, err = appendPiece(a.have, v.raw, v.data, limit); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
		data = a.have
	}
	if v.more {
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
