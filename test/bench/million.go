package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"srvfs/test/world"
)

// A mount must cost the same for a hundred entries and for a million.
var _ = add(Row{
	Place: 130, Name: "mount of a 1,000,000-entry snapshot",
	Reach:   "100 ms at 0 RTT; 8 round trips at 50 ms",
	Prepare: millionService,
	Runs: []Run{
		mounts("srvfs, no delay", "million", world.Wire{}), mounts("srvfs, 50 ms RTT", "million", far),
		mounts("srvfs, 1,300 entries, no delay", "web", world.Wire{}),
	},
	Judge: func(r Results) []Goal {
		trips := (r.Value("srvfs, 50 ms RTT") - r.Value("srvfs, no delay")) / far.RTT.Seconds()
		return []Goal{r.AtMost("srvfs, no delay", 0.100, "s", "at 0 RTT"), {fmt.Sprintf("%.1f round trips", trips), trips <= 8}}
	},
})

// millionTree is where the source has the million entries.
const millionTree = "srv/million"

// millionService captures the services web, and million with a million entries:
// a thousand folders of 999 empty files.
func millionService(ctx context.Context, s *Site) error {
	if err := s.Service(ctx, "web", nil, ""); err != nil {
		return err
	}
	folders, files := s.million()
	return s.Capture(ctx, "million", func() error { return emptyFiles(filepath.Join(s.Source.Root, millionTree), folders, files) }, nginx+"--include /"+millionTree)
}

// million returns how many folders the tree has, and how many files are in each.
func (s *Site) million() (folders, files int) {
	if s.Short {
		return 20, 99
	}
	return 1000, 999
}

func emptyFiles(dir string, folders, files int) error {
	for i := range folders {
		folder := filepath.Join(dir, fmt.Sprintf("part%04d", i))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		for j := range files {
			f, err := os.Create(filepath.Join(folder, fmt.Sprintf("entry-%04d", j)))
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
	}
	return nil
}

// mounts measures a mount, up to a listing of the view's root.
func mounts(name, service string, w world.Wire) Run {
	return Run{name, func(ctx context.Context, s *Site) (Sample, error) {
		if err := s.Daemon(ctx, s.Standby, w, "--host-root", ""); err != nil {
			return Sample{}, err
		}
		sample, err := s.Timed(s.Standby, func() error {
			_, err := s.Standby.Shell(ctx, "mkdir -p /srv/view; srvfs mount "+s.Spec(service)+" /srv/view; ls /srv/view > /dev/null")
			return err
		})
		if err != nil {
			return sample, err
		}
		if _, err := s.Standby.Shell(ctx, "srvfs umount /srv/view"); err != nil {
			return sample, err
		}
		return sample, s.EndDaemon(ctx, s.Standby)
	}}
}
