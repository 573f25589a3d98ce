package rpc

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

const (
	// pieceSize is the largest part of a content in one message, before it is
	// packed: one chunk, so that a reader can verify what it has.
	pieceSize = manifest.ChunkSize
	// flushSize is how many bytes of items make a message, and flushItems how
	// many items; with the last item's piece it is at most twice that.
	flushSize  = 256 << 10
	flushItems = 1024
	// flushAfter is how long a finished item waits for others.
	flushAfter = 20 * time.Millisecond
	// maxMessage bounds a message: items of flushSize, one more piece, and for
	// each item a text or its fields.
	maxMessage = 8 << 20

	sampleSize = 64 << 10
	minPacked  = 512 // bytes, below which packing saves nothing worth its time
)

var pieceBuffers = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// Both coders work on whole pieces and keep no state between them: one of each
// serves all calls.
var (
	encoders = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	})
	decoders = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(pieceSize), zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// A packer packs the pieces of one call where that pays. A sample of each piece
// says whether it packs at all, since contents differ within themselves. And
// what was sent before says whether the wire or this processor is the narrow
// place: packing takes some 3 to 15 ns a byte (see BenchmarkPack), 100 Mbit/s
// takes 80, 1 Gbit/s 8.
type packer struct {
	buf  []byte
	work float64   // ns of packing for a byte
	wire float64   // ns of sending for a byte; 0: not known yet
	last time.Time // when the last message was sent
}

// recent is the weight of the newest measurement.
const recent = 0.25

// pack returns b packed, with its length, or b itself and 0. The result is valid
// until the next call and until b changes.
func (p *packer) pack(b []byte) ([]byte, uint32) {
	if len(b) < minPacked {
		return b, 0
	}
	if p.wire > 0 && p.work > p.wire {
		p.work *= 1 - recent/8 // so that it is tried again
		return b, 0
	}
	start := time.Now()
	p.buf = encoders().EncodeAll(b[:min(len(b), sampleSize)], p.buf[:0])
	ok := pays(len(p.buf), min(len(b), sampleSize))
	if ok && len(b) > sampleSize {
		p.buf = encoders().EncodeAll(b, p.buf[:0])
		ok = pays(len(p.buf), len(b))
	}
	p.work += recent * (float64(time.Since(start))/float64(len(b)) - p.work)
	if !ok {
		return b, 0
	}
	return p.buf, uint32(len(b))
}

// sent tells how long it took to hand n bytes to the transport, which blocks
// when the wire is full.
func (p *packer) sent(n int, began time.Time) {
	if n < sampleSize {
		return // says little
	}
	now := time.Now()
	took := now.Sub(began)
	if cycle := now.Sub(p.last); !p.last.IsZero() && took > cycle/8 {
		took = cycle // it was full, also while the next piece was being packed
	}
	p.last = now
	ns := float64(took) / float64(n)
	if p.wire == 0 {
		p.wire = ns
	}
	p.wire += recent * (ns - p.wire)
}

// pays reports whether a tenth is saved.
func pays(packed, raw int) bool { return packed <= raw-raw/10 }

// unpack appends to dst what a piece holds; raw is at most pieceSize. No more
// memory than that is ever used, whatever the frame says. The error wraps
// ErrInvalid.
func unpack(dst, data []byte, raw uint32) ([]byte, error) {
	if raw == 0 {
		return append(dst, data...), nil
	}
	n := int(raw)
	dst = slices.Grow(dst, n)
	// The capacity is the decoder's limit: a frame that says, or holds, more fails.
	out, err := decoders().DecodeAll(data, dst[len(dst):len(dst):len(dst)+n])
	if err != nil {
		return dst, fmt.Errorf("packed piece of %d bytes: %s: %w", n, err.Error(), manifest.ErrInvalid)
	}
	if len(out) != n {
		return dst, fmt.Errorf("packed piece of %d bytes: %d come out of it: %w", n, len(out), manifest.ErrInvalid)
	}
	return dst[:len(dst)+n], nil
}

// A batchWriter gathers items into messages. What was gathered is sent when it
// is enough, and when it has waited for flushAfter, even while the provider is
// busy with the next item.
type batchWriter struct {
	send func(*srvfspb.Batch) error
	pk   packer

	mu  sync.Mutex
	msg srvfspb.Batch
	*batchMemory
	timer *time.Timer
	err   error // of a send; sticky
}

// A batchMemory is what a batch is gathered in; the next batch uses it again.
type batchMemory struct {
	items []*srvfspb.Item // up to flushItems of them
	buf   []byte          // what the items' data points to
}

var batchMemories = sync.Pool{New: func() any { return &batchMemory{buf: make([]byte, 0, flushSize+pieceSize)} }}

func newBatchWriter(send func(*srvfspb.Batch) error) *batchWriter {
	w := &batchWriter{send: send, batchMemory: batchMemories.Get().(*batchMemory)}
	w.timer = time.AfterFunc(flushAfter, func() { _ = w.flush() }) // the error stays in w.err
	return w
}

// close waits for a flush under way. Nothing is sent afterwards.
func (w *batchWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.msg.Items, w.buf = nil, w.buf[:0]
	batchMemories.Put(w.batchMemory)
	w.batchMemory = &batchMemory{} // a flush that the timer has begun finds nothing
}

// add is the yield of a FetchBatch.
func (w *batchWriter) add(i int, data []byte, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		item := w.item(i)
		item.Code, item.Text = uint32(codeOf(err)), textOf(err)
		w.buf = append(w.buf, item.Text...) // counted, so that a message of errors stays small too
		return w.sendIf(len(w.buf) >= flushSize || len(w.msg.Items) == flushItems)
	}
	for {
		item, n := w.item(i), min(len(data), pieceSize)
		packed, raw := w.pk.pack(data[:n])
		start := len(w.buf)
		w.buf = append(w.buf, packed...)
		item.More, item.Raw, item.Data = len(data) > n, raw, w.buf[start:len(w.buf):len(w.buf)]
		if err := w.sendIf(len(w.buf) >= flushSize || len(w.msg.Items) == flushItems); err != nil {
			return err
		}
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

// item appends an item to the message.
func (w *batchWriter) item(i int) *srvfspb.Item {
	n := len(w.msg.Items)
	if n == 0 {
		w.timer.Reset(flushAfter)
	}
	if n == len(w.items) {
		w.items = append(w.items, &srvfspb.Item{})
	}
	item := w.items[n]
	item.Index, item.More, item.Raw, item.Code, item.Text, item.Data = uint32(i), false, 0, 0, "", nil
	w.msg.Items = append(w.msg.Items, item)
	return item
}

// flush sends what was gathered.
func (w *batchWriter) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sendIf(true)
}

// sendIf sends the message if it is due and holds anything. A message is encoded
// when send returns, so its memory can be used again.
func (w *batchWriter) sendIf(due bool) error {
	if w.err == nil && due && len(w.msg.Items) > 0 {
		began := time.Now()
		w.err = w.send(&w.msg)
		w.pk.sent(len(w.buf), began)
		w.msg.Items, w.buf = w.msg.Items[:0], w.buf[:0]
	}
	return w.err
}
