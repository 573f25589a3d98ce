package daemon

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/store"
	"srvfs/store/archive"
)

// exportOp writes a snapshot into an archive. All of it is brought into the store first:
// that is the fast way over a wire, and it is verified there.
func (d *daemon) exportOp(ctx context.Context, c control.Call, out control.Stream) (any, error) {
	if c.Export == nil {
		return nil, fmt.Errorf("export: no destination: %w", manifest.ErrInvalid)
	}
	start := time.Now()
	o, err := d.openHere(ctx, c)
	if err != nil {
		return nil, err
	}
	defer o.cancel()
	if err := d.keep(o); err != nil {
		return nil, err
	}
	out.Step("snapshot", time.Since(start), o.describe())
	start = time.Now()
	err = o.reader.Prefetch(ctx, o.snapshot, func(p store.Progress) {
		out.Progress(control.Progress{Files: int64(p.Done.Files), TotalFiles: int64(p.Total.Files), Bytes: p.Done.Bytes, TotalBytes: p.Total.Bytes, Local: p.Host.Bytes, Fetched: p.Fetched.Bytes, Stage: p.Stage})
	})
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", o.snapshot.Service, err)
	}
	out.Step("content", time.Since(start), "")
	start = time.Now()
	e := c.Export
	last := time.Time{}
	w, err := archive.Write(ctx, e.Dest, o.snapshot, stored{o.reader}, archive.Options{
		Compact: e.Compact, Recipients: e.Recipients, Identity: e.Identity, Insecure: e.Insecure, Temp: filepath.Join(d.store.Dir(), "tmp"),
		Progress: func(p archive.Progress) {
			if now := time.Now(); now.Sub(last) > time.Second/10 {
				last = now
				out.Progress(control.Progress{Bytes: p.Bytes, TotalBytes: p.TotalBytes, Stage: p.Stage})
			}
		},
	})
	if err != nil {
		return nil, err
	}
	out.Step("archive", time.Since(start), w.Dest)
	return w, nil
}

// openHere opens the snapshot that is named. A service that was run here, named without a
// snapshot, stands for the one that it runs from.
func (d *daemon) openHere(ctx context.Context, c control.Call) (*opened, error) {
	if c.Source == "" && c.Newest() {
		if known, err := d.load(c.Service); err == nil {
			return d.choose(ctx, c, known)
		}
	}
	return d.openKnown(ctx, c.Snapshot)
}

// stored reads what is exported.
type stored struct{ *store.Reader }

func (s stored) Read(ctx context.Context, c manifest.Content) (io.ReadCloser, error) {
	f, err := s.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return &sequential{ctx: ctx, f: f}, nil
}

// A sequential reads a file of the store from its beginning. Its context is that of the
// export.
type sequential struct {
	ctx context.Context
	f   *store.File
	off int64
}

func (s *sequential) Read(p []byte) (int, error) {
	n, err := s.f.ReadAt(s.ctx, p, s.off)
	s.off += int64(n)
	return n, err
}

func (s *sequential) Close() error { return s.f.Close() }
