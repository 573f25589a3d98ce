package main

import (
	"context"
	"path/filepath"
	"time"

	"srvfs/test/world"
)

// Small files, read one after the other as a program does that walks its data.
var _ = add(
	smallFiles(120, "4,500 small files, cold, read one after the other (tar of the tree), 0 ms RTT", world.Wire{}, "faster than sshfs by 5", 5),
	smallFiles(121, "the same, 10 ms RTT", world.Wire{RTT: 10 * time.Millisecond, Rate: gigabit}, "and 20 times", 20),
)

const smallTree = "srv/small"

func smallFiles(place int, name string, w world.Wire, reach string, times float64) Row {
	const tar = "tar -cf - . | cat > /dev/null" // to /dev/null itself tar reads nothing
	return Row{
		Place: place, Name: name,
		Reach: reach + "; within 1.5 of rsync: one open must not cost one round trip (siblings are read ahead, the background stream runs)",
		Prepare: func(ctx context.Context, s *Site) error {
			tree := Tree{Folders: 300, Files: 15, Size: 4_500}
			if s.Short {
				tree = Tree{Folders: 20, Files: 5, Size: 4_500}
			}
			return s.Service(ctx, "small", func() error { return tree.Make(filepath.Join(s.Source.Root, smallTree)) }, "--include /"+smallTree)
		},
		Runs: []Run{
			{"srvfs, plain view", func(ctx context.Context, s *Site) (Sample, error) {
				return s.viewed(ctx, "small", w, "cd /srv/view/"+smallTree+"; "+tar)
			}},
			{"srvfs, root of the service", func(ctx context.Context, s *Site) (Sample, error) {
				return s.rooted(ctx, "small", w, "cd ROOT/"+smallTree+"; "+tar)
			}},
			{"rsync -a", rsync.copies(smallTree, w)},
			{"sshfs", sshfs.reads("cd DIR/"+smallTree+"; "+tar, w)},
		},
		Judge: func(r Results) []Goal {
			return []Goal{r.Faster("srvfs, plain view", "sshfs", times), r.Within("srvfs, plain view", "rsync -a", 1.5),
				r.Faster("srvfs, root of the service", "sshfs", times), r.Within("srvfs, root of the service", "rsync -a", 1.5)}
		},
	}
}
