package main

import (
	"context"

	"srvfs/test/world"
)

// The rest of the main job, with no delay on the wire: a standby of the same
// release, and what comes after the first answer.
var _ = add(Row{
	Place: 210, Name: "the main job, no delay",
	Prepare: func(ctx context.Context, s *Site) error { return s.Service(ctx, "web", nil, "") },
	Runs: []Run{
		answers("first answer, nothing local", "web", world.Wire{}),
		{"first answer, the standby has the same release", func(ctx context.Context, s *Site) (Sample, error) {
			if err := s.Daemon(ctx, s.Standby, world.Wire{}); err != nil {
				return Sample{}, err
			}
			return s.runs(ctx, s.Standby, world.Wire{}, "srvfs run "+s.Spec("web"))
		}},
		{"prefetch, nothing local", func(ctx context.Context, s *Site) (Sample, error) {
			sample, err := s.prefetches(ctx)
			if err != nil {
				return sample, err
			}
			return sample, s.EndDaemon(ctx, s.Standby)
		}},
		{"start again, detached", func(ctx context.Context, s *Site) (Sample, error) {
			if _, err := s.prefetches(ctx); err != nil {
				return Sample{}, err
			}
			return s.runs(ctx, s.Standby, world.Wire{}, "srvfs run "+s.Spec("web"))
		}},
	},
})

// prefetches measures how long it takes until the source is needed no more, on a
// standby whose own files are not used. The daemon goes on running.
func (s *Site) prefetches(ctx context.Context) (Sample, error) {
	if err := s.Daemon(ctx, s.Standby, world.Wire{}, "--host-root", ""); err != nil {
		return Sample{}, err
	}
	return s.Timed(s.Standby, func() error {
		_, err := s.Standby.Shell(ctx, "srvfs prefetch "+s.Spec("web"))
		return err
	})
}
