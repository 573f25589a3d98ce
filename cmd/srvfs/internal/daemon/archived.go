package daemon

import (
	"context"
	"fmt"
	"io"

	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/store"
)

type archived struct {
	control.Archive
	health store.Health
}

func (d *daemon) archived(a control.Archive) *archived { return &archived{Archive: a} }

func (a *archived) Fetch(ctx context.Context, digest manifest.Digest, off, n int64) (io.ReadCloser, error) {
	return nil, manifest.ErrUnavailable
}

func (d *daemon) openArchived(ctx context.Context, from *origins, ref manifest.Ref, offline error) (*opened, error) {
	return nil, fmt.Errorf("TODO: %w", manifest.ErrUnavailable)
}
