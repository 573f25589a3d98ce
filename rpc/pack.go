package rpc

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/mem"

	"srvfs/manifest"
)

const (
	// pieceSize is the largest part of a content in one message, before it is
	// packed: one chunk, so that a reader can verify what it has.
	pieceSize = manifest.ChunkSize
	// flushSize is how many bytes of items make a message, and flushItems how
	// many items; with the last item's piece it is at most twice that.
	flushSize  = 256<<10 - maxHead
	flushItems = 1024
	// flushAfter is how long a finished item waits for others.
	flushAfter = 20 * time.Millisecond
	// maxMessage bounds a message: items of flushSize, one more piece, and for
	// each item a text or its fields.
	maxMessage = 8 << 20

	sampleSize = 64 << 10
	minPacked  = 512 // bytes, below which packing saves nothing worth its time
)

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
	send func(*message) error
	pk   packer

	mu    sync.Mutex
	buf   *[]byte // the message so far, or nil
	items int     // in it
	timer *time.Timer
	err   error // of a send; sticky
}

// messageSize is the room for a message, which is sent when it has flushSize: a
// power of two, as memory has it.
const messageSize = flushSize + maxHead + pieceSize

func newBatchWriter(send func(*message) error) *batchWriter {
	w := &batchWriter{send: send}
	w.timer = time.AfterFunc(flushAfter, func() { _ = w.flush() }) // the error stays in w.err
	return w
}

// close waits for a flush under way. Nothing is sent afterwards.
func (w *batchWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	if w.buf != nil {
		memory.Put(w.buf)
		w.buf, w.items = nil, 0 // a flush that the timer has begun finds nothing
	}
}

// add is the yield of a FetchBatch.
func (w *batchWriter) add(i int, data []byte, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return w.put(&item{index: uint32(i), code: uint32(codeOf(err)), text: textOf(err)})
	}
	for {
		n := min(len(data), pieceSize)
		packed, raw := w.pk.pack(data[:n])
		if err := w.put(&item{index: uint32(i), more: len(data) > n, raw: raw, data: packed}); err != nil {
			return err
		}
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

// addPacked adds a range that was packed before, piece by piece.
func (w *batchWriter) addPacked(i int, pieces []frame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, f := range pieces {
		if err := w.put(&item{index: uint32(i), more: k < len(pieces)-1, raw: f.raw, data: f.data}); err != nil {
			return err
		}
	}
	return nil
}

// put appends an item to the message, and sends it if it is due.
func (w *batchWriter) put(v *item) error {
	if w.buf == nil {
		w.buf = memory.Get(messageSize)
		*w.buf = (*w.buf)[:0]
		w.timer.Reset(flushAfter)
	}
	*w.buf = v.append(*w.buf)
	w.items++
	return w.sendIf(len(*w.buf) >= flushSize || w.items == flushItems)
}

// flush sends what was gathered.
func (w *batchWriter) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sendIf(true)
}

// sendIf sends the message if it is due and holds anything.
func (w *batchWriter) sendIf(due bool) error {
	if w.err == nil && due && w.buf != nil {
		n, began := len(*w.buf), time.Now()
		w.err = w.send(&message{mem.NewBuffer(w.buf, memory)})
		w.pk.sent(n, began)
		w.buf, w.items = nil, 0
	}
	return w.err
}
