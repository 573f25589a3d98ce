package main

import (
	"context"
)

// Programs of a service that start others all day: a mail server's filters, a
// shell script.
var _ = add(Row{
	Place: 70, Name: "exec of a small dynamically linked program in the root", Unit: "ms",
	Reach:   "at most 1.03 of plain overlayfs",
	Prepare: tools,
	Runs:    []Run{{Name: execProfiled}, {Name: execUnprofiled}, {Name: plainOverlay}, {Name: native}},
	Together: func(ctx context.Context, s *Site) (results Results, err error) {
		count, each := 40, 100
		if s.Short {
			count, each = 5, 20
		}
		err = s.besides(ctx, func(root, overlay, disk string) (uint64, error) {
			results, err = s.inSlices(ctx, "exec", count, each,
				place{execProfiled, root, profiled}, place{execUnprofiled, root, unprofiled}, place{plainOverlay, overlay, profiled}, place{native, disk, profiled})
			// One request for each exec of the program that is not in the profile, in
			// the slices, in the first one and before it; none for the other.
			return uint64((count+1)*each + 10), err
		})
		for _, samples := range results {
			for i := range samples {
				samples[i].Value /= 1e6
			}
		}
		return results, err
	},
	Judge: func(r Results) []Goal {
		return []Goal{r.Stays(execProfiled, plainOverlay, 1.03), r.Stays(execUnprofiled, plainOverlay, 1.03)}
	},
})

// Runs of the rows that compare roots.
const (
	plainOverlay   = "plain overlayfs"
	native         = "native"
	execProfiled   = "srvfs, a program of the profile"
	execUnprofiled = "srvfs, another program"
)
