package archive

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"srvfs/manifest"
)

// frameSize is how many bytes of a file are compressed together. It is one chunk, so
// that what a standby asks for is whole frames.
const frameSize = manifest.ChunkSize

// maxFrame bounds what a frame may hold: one piece of metadata at most, or metadata of
// packSize.
const maxFrame = manifest.MaxMeta + packSize

// The one encoder and decoder; both may be used by many at a time.
var (
	encoder = sync.OnceValues(func() (*zstd.Encoder, error) {
		return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(true), zstd.WithSingleSegment(true))
	})
	decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
		return zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxFrame))
	})
)

// compress appends a frame with the bytes of b to dst.
func compress(dst, b []byte) ([]byte, error) {
	e, err := encoder()
	if err != nil {
		return nil, err
	}
	return e.EncodeAll(b, dst), nil
}

// compressed bounds the length of a frame that holds n bytes.
func compressed(n int64) int64 { return n + n/128 + 64 }

// decompress returns the raw bytes that a frame holds. They must be as many as are
// expected, which is looked at before they are made. The error wraps ErrCorrupt.
func decompress(frame []byte, raw int64) ([]byte, error) {
	d, err := decoder()
	if err != nil {
		return nil, err
	}
	var h zstd.Header
	switch err := h.Decode(frame); {
	case err != nil:
		return nil, fmt.Errorf("zstd frame: %w: %w", err, manifest.ErrCorrupt)
	case h.Skippable || !h.HasFCS || raw > maxFrame || h.FrameContentSize != uint64(raw):
		return nil, fmt.Errorf("zstd frame: it says that it holds %d bytes, not %d: %w", h.FrameContentSize, raw, manifest.ErrCorrupt)
	}
	b, err := d.DecodeAll(frame, make([]byte, 0, raw))
	if err == nil && int64(len(b)) != raw {
		err = fmt.Errorf("it holds %d bytes, not %d", len(b), raw)
	}
	if err != nil {
		return nil, fmt.Errorf("zstd frame: %w: %w", err, manifest.ErrCorrupt)
	}
	return b, nil
}
