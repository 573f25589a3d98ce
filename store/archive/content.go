package archive

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"srvfs/manifest"
)

// A Source is where an export reads what it writes. What it returns is verified.
type Source interface {
	manifest.MetaSource
	// Read returns the bytes of one file.
	Read(ctx context.Context, c manifest.Content) (io.ReadCloser, error)
}

// FromOrigin makes a Source of an origin that has all of the snapshot.
func FromOrigin(o manifest.Batcher) Source { return originSource{o} }

type originSource struct{ o manifest.Batcher }

func (s originSource) Read(ctx context.Context, c manifest.Content) (io.ReadCloser, error) {
	return s.o.Fetch(ctx, c.Digest, 0, c.Size)
}

func (s originSource) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	want := make([]manifest.Range, len(digests))
	for i, d := range digests {
		want[i] = manifest.Range{Digest: d, Len: -1}
	}
	out := make([][]byte, len(digests))
	err := s.o.FetchBatch(ctx, want, func(i int, data []byte, err error) error {
		out[i] = bytes.Clone(data)
		return err
	})
	return out, err
}

// meta reads metadata of any number, and verifies it.
func meta(ctx context.Context, src manifest.MetaSource, digests []manifest.Digest, each func(d manifest.Digest, b []byte) error) error {
	const most = 256
	for len(digests) > 0 {
		some := digests[:min(most, len(digests))]
		digests = digests[len(some):]
		bodies, err := src.Meta(ctx, some)
		if err != nil {
			return err
		}
		if len(bodies) != len(some) {
			return fmt.Errorf("%d pieces of metadata for %d digests: %w", len(bodies), len(some), manifest.ErrInvalid)
		}
		for i, b := range bodies {
			if err := verify(b, some[i], "metadata"); err != nil {
				return err
			}
			if err := each(some[i], b); err != nil {
				return err
			}
		}
	}
	return nil
}
