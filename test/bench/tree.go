package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"srvfs/test/world"
)

// The same start with a tree of user data in the snapshot, which the start does
// not touch: what is not needed must cost nothing.
var _ = add(
	Row{
		Place: 30, Name: "the same with an 850 MB, 50,000-file tree in the snapshot, 10 ms RTT, 1 Gbit/s",
		Reach:   "time unchanged within noise; 100 times faster than rsync",
		Prepare: dataService,
		Runs: []Run{
			answers("srvfs", "data", near), answers("srvfs, without the tree", "web", near),
			rsync.answers("data", near), sshfs.answers("data", near),
		},
		Judge: unchanged,
	},
	Row{
		Place: 31, Name: "the same with an 850 MB, 50,000-file tree in the snapshot, 50 ms RTT, 100 Mbit/s",
		Reach:   "time unchanged within noise; 100 times faster than rsync",
		Prepare: dataService, Variant: true,
		Runs: []Run{
			answers("srvfs", "data", slow), answers("srvfs, without the tree", "web", slow),
			rsync.answers("data", slow),
		},
		Judge: unchanged,
	},
	Row{
		Place: 50, Name: "0 ms RTT, 50,000-file tree",
		Reach:   "at most 120 ms over native start",
		Prepare: dataService,
		Runs:    []Run{answers("srvfs", "data", world.Wire{}), nativeStart("native start", "web")},
		Judge: func(r Results) []Goal {
			return []Goal{r.AtMost("srvfs", r.Value("native start")+0.120, "s", "native start + 0.120 s")}
		},
	},
)

var (
	near = world.Wire{RTT: 10 * time.Millisecond, Rate: gigabit}
	slow = world.Wire{RTT: 50 * time.Millisecond, Rate: hundred}
)

// unchanged takes as noise what the rounds without the tree differ by, and a
// tenth at least.
func unchanged(r Results) []Goal {
	low, high := r.spread("srvfs, without the tree")
	noise := max(high-low, r.Value("srvfs, without the tree")/10)
	return []Goal{
		r.AtMost("srvfs", r.Value("srvfs, without the tree")+noise, "s", "without the tree, and the noise of that"),
		r.Faster("srvfs", "rsync -a", 100),
	}
}

// dataService captures the services web, and data with 850 MB in 50,000 files.
func dataService(ctx context.Context, s *Site) error {
	if err := s.Service(ctx, "web", nil, ""); err != nil {
		return err
	}
	tree := Tree{Folders: 500, Files: 100, Size: 17_000}
	if s.Short {
		tree = Tree{Folders: 50, Files: 20, Size: 2_000}
	}
	return s.Service(ctx, "data", func() error { return tree.Make(filepath.Join(s.Source.Root, "srv/data")) }, "--include /srv/data")
}

// A Tree is a tree of generated files.
type Tree struct {
	Folders, Files int // files are in each folder
	Size           int // mean size of a file in bytes; sizes are spread from a fifth to nine fifths
}

// Make makes the tree at dir, the same each time. Every second file is random,
// the others are text that compresses well.
func (t Tree) Make(dir string) error {
	random := rand.NewChaCha8([32]byte{1})
	number := rand.New(random)
	text := []byte(strings.Repeat("a mail, a page or a line of a log that looks much like the one before it\n", 2*t.Size/60+1))
	for i := range t.Folders {
		folder := filepath.Join(dir, fmt.Sprintf("part%03d", i))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		for j := range t.Files {
			content := text[number.IntN(len(text)/10):][:t.Size/5+number.IntN(t.Size*8/5+1)]
			if j%2 == 0 {
				content = make([]byte, len(content))
				_, _ = random.Read(content)
			}
			if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("file%04d", j)), content, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// randomFile makes a file of that many random bytes.
func randomFile(path string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{2}), size); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
