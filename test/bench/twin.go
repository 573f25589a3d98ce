package main

import (
	"context"
	"fmt"
	"time"

	"srvfs/test/world"
)

// The first answer on a standby that has the same packages: next to nothing
// needs to be moved, so that round trips are what is left.
var _ = add(Row{
	Place: 40, Name: "the same, standby has the same packages",
	Reach:   "native start + at most 8 round trips; under 500 KB moved",
	Prepare: func(ctx context.Context, s *Site) error { return s.Service(ctx, "web", nil, "") },
	Runs:    []Run{twinAnswers("srvfs, 50 ms RTT", far), twinAnswers("srvfs, no delay", world.Wire{Rate: gigabit}), nativeStart("native start", "web")},
	Judge: func(r Results) []Goal {
		trips := (r.Value("srvfs, 50 ms RTT") - r.Value("srvfs, no delay")) / far.RTT.Seconds()
		moved := r.Moved("srvfs, 50 ms RTT")
		return []Goal{
			r.AtMost("srvfs, 50 ms RTT", r.Value("native start")+8*far.RTT.Seconds(), "s", "native start + 8 round trips"),
			{fmt.Sprintf("%.1f round trips", trips), trips <= 8},
			{fmt.Sprintf("%.0f KB moved", moved/1e3), moved < 500e3},
		}
	},
})

var far = world.Wire{RTT: 50 * time.Millisecond, Rate: gigabit}

// twinAnswers measures the first answer on the host that has the source's
// packages. That it moves little does not depend on time.
func twinAnswers(name string, w world.Wire) Run {
	return Run{name, func(ctx context.Context, s *Site) (Sample, error) {
		if err := s.Daemon(ctx, s.Twin, w); err != nil {
			return Sample{}, err
		}
		sample, err := s.runs(ctx, s.Twin, w, "srvfs run "+s.Spec("web"))
		if err == nil && sample.Moved > 4e6 {
			err = fmt.Errorf("%d bytes were moved to a host that has the same packages", sample.Moved)
		}
		return sample, err
	}}
}
