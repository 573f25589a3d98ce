package daemon

import (
	"context"
	"fmt"
	"time"

	"srvfs/cmd/srvfs/internal/control"
	"srvfs/store"
	"srvfs/store/plain"
)

// Materialised is the result of materialising a snapshot.
type Materialised struct {
	Source   string        `json:"source"`
	Service  string        `json:"service"`
	Sequence uint64        `json:"sequence"`
	Dir      string        `json:"dir"`
	Took     time.Duration `json:"took"` // nanoseconds
	plain.Result
}

// materialiseOp writes the tree of a snapshot to c.Dir as plain files, after bringing in
// what is missing of it; with c.Link as hard links to the store's files.
func (d *daemon) materialiseOp(ctx context.Context, c control.Call, out control.Stream) (any, error) {
	start := time.Now()
	unlock, err := d.lock(ctx, "materialise "+c.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	o, err := d.openKnown(ctx, c.Snapshot)
	if err != nil {
		return nil, err
	}
	defer o.cancel()
	if err := d.keep(o); err != nil {
		return nil, err
	}
	out.Step("snapshot", time.Since(start), o.describe())
	step := time.Now()
	t, done := d.transferring(d.sourceName(o.key), o)
	defer done()
	if err := o.reader.Prefetch(ctx, o.snapshot, func(p store.Progress) {
		t.report(p)
		out.Progress(progressOf(p))
	}); err != nil {
		return nil, fmt.Errorf("%s can't be materialised: %w", o.snapshot.Service, err)
	}
	out.Step("content", time.Since(step), "")
	step = time.Now()
	content := plain.Whole
	if c.Link {
		content = plain.Linked
	}
	r, err := plain.Write(ctx, plain.Options{Snapshot: o.snapshot, Reader: o.reader, Dir: c.Dir, Content: content})
	if err != nil {
		return nil, err
	}
	out.Step("files", time.Since(step), c.Dir)
	return Materialised{c.Source, o.snapshot.Service, o.snapshot.Sequence, c.Dir, time.Since(start), r}, nil
}

// progressOf is a prefetch's progress for who waits for it.
func progressOf(p store.Progress) control.Progress {
	return control.Progress{Files: int64(p.Done.Files), TotalFiles: int64(p.Total.Files), Bytes: p.Done.Bytes, TotalBytes: p.Total.Bytes, Local: p.Host.Bytes, Fetched: p.Fetched.Bytes, Stage: p.Stage}
}
