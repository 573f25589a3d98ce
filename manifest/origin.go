package manifest

import (
	"context"
	"io"
)

// An Origin provides content by digest: a file's bytes, an encoded directory
// page, a chunk list. What it returns is not verified: whoever asks, checks.
type Origin interface {
	// Fetch returns n bytes of the content d from offset off. A negative n
	// means all from off to the end, and is for content whose length the
	// caller can't know (directory pages, chunk lists); it is at most
	// MaxMeta bytes. The reader ends early with an error that wraps one of
	// the sentinels when the origin fails on the way; closing it early, or
	// cancelling ctx, stops the transfer.
	//
	// ErrNotFound: this origin does not have d. ErrStale: it had it, and the
	// file has changed. ErrUnavailable: it can't be reached.
	Fetch(ctx context.Context, d Digest, off, n int64) (io.ReadCloser, error)
}

// A Range is a part of one content: Len bytes from Off. A negative Len means
// to the end, as in [Origin.Fetch].
type Range struct {
	Digest   Digest
	Off, Len int64
}

// MaxBatch is the largest number of ranges in one batch, and MaxRange the
// largest Len of a range in it, in bytes.
const (
	MaxBatch = 4096
	MaxRange = 2 << 20
)

// A Batcher is an Origin that answers many requests in one round trip. One
// round trip for each small file is what makes other network file systems
// slow; so whoever wants several pieces asks for them together.
type Batcher interface {
	Origin
	// FetchBatch calls yield once for each element of want, in that order, from
	// the calling goroutine, with its index and either its bytes (valid until
	// yield returns) or the error that stands in their place. It stops when
	// yield returns an error and returns that. An error of the whole exchange
	// (the origin went away) is returned and not yielded.
	FetchBatch(ctx context.Context, want []Range, yield func(i int, data []byte, err error) error) error
}

// A Content is all that a reader needs to know of one regular file's bytes.
type Content struct {
	Digest Digest
	Size   int64  // bytes
	Chunks Digest // of the chunk list; zero when Size <= ChunkSize
	// Path is where the snapshot has the file, absolute and clean. It is a
	// hint at which local file may be identical, and what log lines name.
	Path string
}
