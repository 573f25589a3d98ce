package daemon

import (
	"context"
	"fmt"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
)

// mostChanges bounds an answer. Who needs more mounts both snapshots.
const mostChanges = 50_000

// Differences is the result of a diff.
type Differences struct {
	Before, After uint64 // the numbers of the snapshots
	Changes       []cli.Change
	More          int // changes that are left out
}

// diffOp compares the snapshot that the call names with its other one, or with the
// newest. It needs directories only, of those that differ.
func (d *daemon) diffOp(ctx context.Context, c control.Call, _ control.Stream) (any, error) {
	with := control.Snapshot{Source: c.Source, Ref: manifest.Ref{Service: c.Service}, Archive: c.Archive}
	if c.With != nil {
		with = *c.With
	}
	before, err := d.openKnown(ctx, c.Snapshot)
	if err != nil {
		return nil, err
	}
	defer before.cancel()
	after, err := d.openKnown(ctx, with)
	if err != nil {
		return nil, err
	}
	defer after.cancel()
	changes, err := manifest.Compare(ctx, readers{before.reader, after.reader}, before.snapshot, after.snapshot)
	if err != nil {
		return nil, err
	}
	r := Differences{Before: before.snapshot.Sequence, After: after.snapshot.Sequence, Changes: []cli.Change{}}
	if len(changes) > mostChanges {
		r.More = len(changes) - mostChanges
		changes = changes[:mostChanges]
	}
	r.Changes = append(r.Changes, cli.Changes(changes)...)
	return r, nil
}

// openKnown is open, also for a service by its name here, or one that is followed.
func (d *daemon) openKnown(ctx context.Context, of control.Snapshot) (*opened, error) {
	if of.FromArchive() && of.Service == "" {
		var err error
		if of.Service, err = d.nameArchived(ctx, *of.Archive); err != nil {
			return nil, err
		}
	}
	if of.Source == "" {
		known, err := d.load(of.Service)
		if f := d.followOf(control.Snapshot{Ref: of.Ref}); err != nil && f != nil {
			known, err = &serviceRecord{Source: f.Source, Service: f.Service, Archive: f.Archive}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w; one that neither was run nor is followed here is named HOST/SERVICE", err)
		}
		of.Source, of.Service, of.Archive = known.Source, known.Service, known.Archive
	}
	return d.open(ctx, of)
}

// readers asks the first that has it: two snapshots may be of different sources.
type readers []manifest.MetaSource

func (rs readers) Meta(ctx context.Context, digests []manifest.Digest) (out [][]byte, err error) {
	for _, r := range rs {
		if out, err = r.Meta(ctx, digests); err == nil || ctx.Err() != nil {
			return out, err
		}
	}
	// Neither has all of them.
	out = make([][]byte, len(digests))
	for i, digest := range digests {
		for _, r := range rs {
			var one [][]byte
			if one, err = r.Meta(ctx, []manifest.Digest{digest}); err == nil {
				out[i] = one[0]
				break
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
