package store

import (
	"cmp"
	"context"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// nameFolders are where a host keeps libraries and programs. A folder that is
// a symlink (/lib on a merged /usr) is left out: it is reached under its own name.
var nameFolders = []string{"usr/lib", "usr/lib32", "usr/lib64", "usr/libx32", "usr/libexec", "usr/bin", "usr/sbin",
	"lib", "lib32", "lib64", "libx32", "bin", "sbin"}

// maxNames bounds how many files of one name are considered: thousands of
// Python packages have an __init__.py, and the same path is the one that counts.
const maxNames = 8

// A nameIndex finds the files of a name. It takes about 40 bytes per file.
type nameIndex struct {
	dirs  []string
	files []namedFile // sorted by name
}

type namedFile struct {
	name string
	dir  uint32
}

// indexNames walks the folders below root: 20,000 files take about 30 ms. It
// reads no file and asks for no file's size.
func indexNames(ctx context.Context, root string) *nameIndex {
	x := &nameIndex{}
	for _, d := range nameFolders {
		top := filepath.Join(root, d)
		var dev uint64
		var open []uint32 // the folders that the walk is in, innermost last
		// An error makes the index smaller, never wrong.
		_ = filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return fs.SkipAll
			}
			if err != nil {
				return fs.SkipDir
			}
			if e.IsDir() {
				var st unix.Stat_t
				if unix.Lstat(p, &st) != nil || p != top && st.Dev != dev {
					return fs.SkipDir // another file system, perhaps a remote one
				}
				dev = st.Dev
				open = append(open, uint32(len(x.dirs)))
				x.dirs = append(x.dirs, strings.TrimPrefix(p, strings.TrimSuffix(root, "/")))
				return nil
			}
			if !e.Type().IsRegular() {
				return nil
			}
			dir := strings.TrimPrefix(path.Dir(p), strings.TrimSuffix(root, "/"))
			for x.dirs[open[len(open)-1]] != dir {
				open = open[:len(open)-1]
			}
			x.files = append(x.files, namedFile{name: path.Base(p), dir: open[len(open)-1]})
			return nil
		})
	}
	slices.SortFunc(x.files, func(a, b namedFile) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.dir, b.dir))
	})
	return x
}

// paths returns up to maxNames paths of files with this name.
func (x *nameIndex) paths(name string) (paths []string) {
	if x == nil {
		return nil
	}
	i, _ := slices.BinarySearchFunc(x.files, name, func(f namedFile, name string) int { return cmp.Compare(f.name, name) })
	for ; i < len(x.files) && x.files[i].name == name && len(paths) < maxNames; i++ {
		paths = append(paths, path.Join(x.dirs[x.files[i].dir], name))
	}
	return paths
}
