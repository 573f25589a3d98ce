package main

import (
	"context"
	"maps"
)

// Warm reads of a file of 64 MB: what a service spends its life with.
var _ = add(Row{
	Place: 80, Name: "sequential and random 4 KiB reads, mmap, warm", Unit: "million/s",
	Reach:   "0.97 of native",
	Prepare: tools,
	Runs:    warmRuns(),
	Together: func(ctx context.Context, s *Site) (Results, error) {
		count, each := 40, int(s.warmSize()/4096)
		if s.Short {
			count = 5
		}
		results := Results{}
		return results, s.besides(ctx, func(root, overlay, disk string) (uint64, error) {
			const file, view = toolsDir + "/file", "/srv/view"
			if _, err := s.Standby.Shell(ctx, "mkdir -p "+view+"; srvfs mount "+s.Spec("tools")+" "+view+"; cat "+view+file+" > /dev/null"); err != nil {
				return 0, err
			}
			for _, w := range warmWorks {
				r, err := s.inSlices(ctx, w, count, each,
					place{w + ", srvfs", root, file}, place{w + ", " + mounted, view, file}, place{w + ", " + plainOverlay, overlay, file}, place{w + ", " + native, disk, file})
				if err != nil {
					return 0, err
				}
				maps.Copy(results, r)
			}
			for _, samples := range results {
				for i := range samples {
					samples[i].Value = 1e3 / samples[i].Value
				}
			}
			_, err := s.Standby.Shell(ctx, "srvfs umount "+view)
			return 0, err
		})
	},
	Judge: func(r Results) (goals []Goal) {
		for _, w := range warmWorks {
			goals = append(goals, r.Keeps(w+", srvfs", w+", "+native, 0.97), r.Keeps(w+", "+mounted, w+", "+native, 0.97))
		}
		return goals
	},
})

// mounted is the plain view.
const mounted = "srvfs mount"

// warmWorks are works of slices.
var warmWorks = []string{"sequential", "random", "mmap"}

func warmRuns() (runs []Run) {
	for _, w := range warmWorks {
		for _, who := range []string{"srvfs", mounted, plainOverlay, native} {
			runs = append(runs, Run{Name: w + ", " + who})
		}
	}
	return runs
}

func (s *Site) warmSize() int64 {
	if s.Short {
		return 8 << 20
	}
	return 64 << 20
}
