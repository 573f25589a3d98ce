package fs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/fs"
	"srvfs/fs/fstest"
	"srvfs/manifest"
	"srvfs/test/garden"
)

// A follower is a view that is moved to what its folder has become.
type follower struct {
	*world
	memory   *fstest.Memory
	sequence uint64
}

// follows mounts a view of a folder that will change.
func follows(t testing.TB, fill func(dir string)) *follower {
	f := &follower{world: newWorld(t, fill), memory: &fstest.Memory{}}
	f.mount(fs.Options{Snapshot: f.scan(), Content: f.memory})
	return f
}

// scan takes in what the folder is now.
func (f *follower) scan() *manifest.Snapshot {
	f.t.Helper()
	tree, err := fstest.Scan(f.origin)
	must(f.t, err)
	must(f.t, f.memory.Put(tree))
	s := tree.Snapshot("web")
	f.sequence++
	s.Sequence = f.sequence
	return s
}

func (f *follower) move() fs.Moved {
	f.t.Helper()
	return f.moveTo(f.scan())
}

func (f *follower) moveTo(s *manifest.Snapshot) fs.Moved {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	m, err := f.view.Move(ctx, s)
	must(f.t, err)
	return m
}

// warm asks for all that is there and for much that is not, so that the kernel knows it.
func warm(dir string) {
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		_ = unix.Lstat(p, &st)
		switch {
		case d.IsDir():
			for _, c := range garden.Letters {
				_ = unix.Lstat(p+"/"+string(c), &st)
				_ = unix.Lstat(p+"/"+string(c)+".new", &st)
			}
		case d.Type().IsRegular():
			_, _ = os.ReadFile(p)
		case d.Type()&os.ModeSymlink != 0:
			_, _ = os.Readlink(p)
		}
		return nil
	})
}

// list lists all folders.
func list(dir string) {
	_ = filepath.WalkDir(dir, func(string, os.DirEntry, error) error { return nil })
}

// lookedUp compares the view with its folder, and lists nothing in the view.
func (f *follower) lookedUp() {
	f.t.Helper()
	must(f.t, filepath.WalkDir(f.origin, func(p string, d os.DirEntry, err error) error {
		must(f.t, err)
		var a, b unix.Stat_t
		shown := f.mnt + strings.TrimPrefix(p, f.origin)
		must(f.t, unix.Lstat(p, &a))
		if err := unix.Lstat(shown, &b); err != nil || a.Mode != b.Mode || a.Uid != b.Uid || a.Nlink != b.Nlink || a.Mtim != b.Mtim || a.Rdev != b.Rdev || !d.IsDir() && a.Size != b.Size {
			f.t.Errorf("%s: %v, %+v; want %+v", shown, err, b, a)
		}
		switch {
		case d.Type().IsRegular():
			x, err := os.ReadFile(p)
			must(f.t, err)
			if y, err := os.ReadFile(shown); err != nil || !bytes.Equal(x, y) {
				f.t.Errorf("%s: %d bytes, %v; want %d, or they differ", shown, len(y), err, len(x))
			}
		case d.IsDir():
			for _, c := range garden.Letters {
				name := "/" + string(c)
				here, there := unix.Lstat(p+name, &a), unix.Lstat(shown+name, &b)
				if (here == nil) != (there == nil) {
					f.t.Errorf("%s%s: %v; in the source %v", shown, name, there, here)
				}
			}
		}
		return nil
	}))
}

// Whatever changes in the source, the view is the source after each move, although the
// kernel had everything of the snapshot before.
func TestMoveRandomEdits(t *testing.T) {
	const bursts = 30
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			e := &garden.Editor{Rand: rand.New(rand.NewPCG(seed, 1))}
			f := follows(t, func(dir string) {
				e.Dir = dir
				everything(t, dir)
				must(t, os.Remove(dir+"/big")) // the time is for what changes
				must(t, os.Remove(dir+"/sparse"))
				for range 60 {
					e.Edit()
				}
			})
			var open []opened
			edits := 0
			for burst := range bursts {
				switch e.Rand.IntN(4) {
				case 0, 1:
					warm(f.mnt)
				case 2:
					list(f.mnt)
				}
				open = f.reopen(open, e)
				for range 1 + e.Rand.IntN(40) {
					e.Edit()
					edits++
				}
				m := f.move()
				if e.Rand.IntN(2) == 0 {
					f.lookedUp() // a listing would tell the kernel what its names are
				}
				sameTree(t, f.origin, f.mnt, false)
				f.distinct()
				for _, o := range open {
					o.check(t)
				}
				if t.Failed() {
					t.Fatalf("after burst %d, %d edits: %+v", burst, edits, m)
				}
			}
			for _, o := range open {
				must(t, o.f.Close())
			}
			s := f.view.Stats()
			t.Logf("%d edits, %d moves: %d names in %d slots", edits, s.Moves, s.Nodes, s.Slots)
			if s.Failures > 0 {
				t.Errorf("%d operations failed", s.Failures)
			}
		})
	}
}

// distinct checks that no two files are one in the view that are not in the source.
func (f *follower) distinct() {
	f.t.Helper()
	seen := map[uint64]uint64{}
	must(f.t, filepath.WalkDir(f.origin, func(p string, _ os.DirEntry, err error) error {
		must(f.t, err)
		var a, b unix.Stat_t
		must(f.t, unix.Lstat(p, &a))
		must(f.t, unix.Lstat(f.mnt+strings.TrimPrefix(p, f.origin), &b))
		if other, ok := seen[b.Ino]; ok && other != a.Ino {
			f.t.Errorf("%s: its node %d is another file's", p, b.Ino)
		}
		seen[b.Ino] = a.Ino
		return nil
	}))
}

// An opened is a file that was opened before a move, and what it held.
type opened struct {
	f    *os.File
	want []byte
	name string
}

// reopen opens a file of the view and closes another.
func (f *follower) reopen(open []opened, e *garden.Editor) []opened {
	if len(open) > 8 {
		must(f.t, open[0].f.Close())
		open = open[1:]
	}
	for range 20 {
		p := e.Pick()
		st, err := os.Lstat(p)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		want, err := os.ReadFile(p)
		must(f.t, err)
		name := f.mnt + strings.TrimPrefix(p, f.origin)
		file, err := os.Open(name)
		must(f.t, err)
		return append(open, opened{file, want, name})
	}
	return open
}

// check reads an open file, and not from the kernel's memory.
func (o *opened) check(t *testing.T) {
	t.Helper()
	_ = unix.Fadvise(int(o.f.Fd()), 0, 0, unix.FADV_DONTNEED)
	got, err := io.ReadAll(io.NewSectionReader(o.f, 0, int64(len(o.want))+1))
	if err != nil || !bytes.Equal(got, o.want) {
		t.Errorf("%s, open since before: %d bytes, %v; want %d, or they differ", o.name, len(got), err, len(o.want))
	}
}

// Who reads a file while the view moves sees one version of it.
func TestMoveWhileReading(t *testing.T) {
	const files, blocks = 8, 40
	version := func(n int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%4096d", n), 1+blocks*(n%3)) }
	put := func(dir string, n int) {
		for i := range files {
			write(t, fmt.Sprintf("%s/d%d/f", dir, i), string(version(n)))
		}
	}
	f := follows(t, func(dir string) { put(dir, 0) })
	var stop atomic.Bool
	var newest, reads atomic.Int64
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			for i := r; !stop.Load(); i++ {
				name := fmt.Sprintf("%s/d%d/f", f.mnt, i%files)
				least := newest.Load()
				b, err := os.ReadFile(name)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				n := int64(-1)
				if len(b) >= 4096 {
					_, _ = fmt.Sscan(string(b[:4096]), &n)
				}
				if !bytes.Equal(b, version(int(n))) {
					t.Errorf("%s: %d bytes that are not version %d", name, len(b), n)
					return
				}
				if n < least {
					t.Errorf("%s: version %d, after %d was there", name, n, least)
					return
				}
				if _, err := os.ReadDir(filepath.Dir(name)); err != nil {
					t.Error(err)
				}
				reads.Add(1)
			}
		})
	}
	for n := 1; n <= 30 && !t.Failed(); n++ {
		put(f.origin, n)
		if n%2 == 0 { // in place, or a new file
			for i := range files {
				p := fmt.Sprintf("%s/d%d/f", f.origin, i)
				must(t, os.Rename(p, p+"x"))
				must(t, os.Rename(p+"x", p))
			}
		}
		f.move()
		newest.Store(int64(n))
	}
	stop.Store(true)
	readers.Wait()
	t.Logf("%d reads during 30 moves", reads.Load())
}

// A listing that is under way shows each name once that is there all the time.
func TestMoveWhileListing(t *testing.T) {
	const there = 3000
	all := map[string]string{} // content by name
	for i := range there {
		all[fmt.Sprintf("keep-%05d", i)] = ""
		if i%3 == 0 {
			all[fmt.Sprintf("keep-%05d-goes", i)] = ""
		}
	}
	f := made(t, all)
	for round := range 6 {
		d, err := os.Open(f.mnt)
		must(t, err)
		seen := map[string]int{}
		for step := 0; ; step++ {
			names, err := d.Readdirnames(1 + 200*(step%3))
			for _, n := range names {
				seen[n]++
			}
			if err == io.EOF {
				break
			}
			must(t, err)
			if step%2 == 1 {
				continue
			}
			for i := range there {
				name := fmt.Sprintf("keep-%05d", i)
				switch (i + step + round) % 7 {
				case 0:
					delete(all, name+"-goes")
				case 1:
					all[name+"-comes"] = ""
				case 2:
					if step == 0 {
						all[name] = fmt.Sprint(round) // another file
					}
				}
			}
			f.moveTo(f.of(all))
		}
		must(t, d.Close())
		for i := range there {
			if n := seen[fmt.Sprintf("keep-%05d", i)]; n != 1 {
				t.Fatalf("round %d: keep-%05d was listed %d times", round, i, n)
			}
		}
		for n, k := range seen {
			if k > 1 {
				t.Errorf("round %d: %s was listed %d times", round, n, k)
			}
		}
	}
}

// A name that comes shows in a folder that the kernel has listed, and of which nothing
// else tells that it has changed.
func TestMoveDropsListings(t *testing.T) {
	f := made(t, map[string]string{"a": "", "b": ""})
	for n, want := range []string{"a b", "a b c", "a b c d"} {
		if n > 0 {
			files := map[string]string{}
			for _, name := range strings.Fields(want) {
				files[name] = ""
			}
			f.moveTo(f.of(files))
		}
		for range 2 {
			d, err := os.Open(f.mnt)
			must(t, err)
			names, err := d.Readdirnames(-1)
			must(t, err)
			must(t, d.Close())
			if got := strings.Join(names, " "); got != want {
				t.Errorf("listed %q, want %q", got, want)
			}
		}
	}
}

// made mounts a view of one folder of files that are nowhere on the disk.
func made(t testing.TB, files map[string]string) *follower {
	f := &follower{world: newWorld(t, func(string) {}), memory: &fstest.Memory{}}
	f.mount(fs.Options{Snapshot: f.of(files), Content: f.memory})
	return f
}

// of returns a snapshot of a folder with these files.
func (f *follower) of(files map[string]string) *manifest.Snapshot {
	entries := make([]manifest.Entry, 0, len(files))
	for _, name := range sortedKeys(files) {
		b := []byte(files[name])
		entries = append(entries, manifest.Entry{Name: name, Type: manifest.File, Mode: 0o644, Links: 1, Size: int64(len(b)), Digest: f.memory.PutContent(b)})
	}
	return f.flat(entries)
}

// flat returns a snapshot of a folder with these entries.
func (f *follower) flat(entries []manifest.Entry) *manifest.Snapshot {
	f.t.Helper()
	tree := fstest.NewTree()
	d, err := tree.Directory(entries)
	must(f.t, err)
	must(f.t, f.memory.Put(tree))
	tree.Root = manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: d}
	s := tree.Snapshot("web")
	f.sequence++
	s.Sequence = f.sequence
	return s
}

// What is open goes on to be read, as far as it is anywhere; a folder that somebody is in
// stays where it is, or is empty when it has gone.
func TestMoveKeepsWhatIsOpen(t *testing.T) {
	f := follows(t, func(dir string) {
		write(t, dir+"/dir/file", "one")
		write(t, dir+"/dir/gone/deep", "deep")
		write(t, dir+"/lost", strings.Repeat("lost", 1000))
		write(t, dir+"/same", "same")
	})
	file, err := os.Open(f.mnt + "/dir/file")
	must(t, err)
	defer file.Close()
	lost, err := os.Open(f.mnt + "/lost")
	must(t, err)
	defer lost.Close()
	dir, err := os.Open(f.mnt + "/dir")
	must(t, err)
	defer dir.Close()
	gone, err := os.Open(f.mnt + "/dir/gone")
	must(t, err)
	defer gone.Close()
	inode := func(name string) uint64 {
		var st unix.Stat_t
		must(t, unix.Stat(name, &st))
		return st.Ino
	}
	dirInode, sameInode, fileInode := inode(f.mnt+"/dir"), inode(f.mnt+"/same"), inode(f.mnt+"/dir/file")
	write(t, f.origin+"/dir/file", "two")
	must(t, os.RemoveAll(f.origin+"/dir/gone"))
	write(t, f.origin+"/dir/new", "new")
	write(t, f.origin+"/lost", "short")
	must(t, os.Chmod(f.origin+"/same", 0o600))
	f.memory.Drop(manifest.Sum([]byte(strings.Repeat("lost", 1000))))
	m := f.move()
	if m.Directories != 2 && m.Directories != 3 {
		t.Errorf("%+v", m)
	}
	got, err := io.ReadAll(file)
	if string(got) != "one" || err != nil {
		t.Errorf("the open file: %q, %v", got, err)
	}
	if _, err := io.ReadAll(lost); !errors.Is(err, unix.ESTALE) {
		t.Errorf("what is nowhere any more: %v", err)
	}
	if log := f.log.String(); !strings.Contains(log, "path=/lost") || !strings.Contains(log, "replaced or removed since it was opened") {
		t.Errorf("the log: %s", log)
	}
	at := func(d *os.File, name string) error {
		var st unix.Stat_t
		return unix.Fstatat(int(d.Fd()), name, &st, 0)
	}
	if err := at(dir, "new"); err != nil || inode(f.mnt+"/dir") != dirInode {
		t.Errorf("the open folder: %v", err)
	}
	if err := at(gone, "deep"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the folder that has gone has something: %v", err)
	}
	if all, err := gone.Readdirnames(-1); len(all) > 0 || err != nil {
		t.Errorf("the folder that has gone lists %q, %v", all, err)
	}
	if inode(f.mnt+"/same") != sameInode || inode(f.mnt+"/dir/file") == fileInode {
		t.Error("a node of the same content changed, or one of another did not")
	}
	sameTree(t, f.origin, f.mnt, false)
}

// What a move can't do leaves the view as it is.
func TestMoveRefuses(t *testing.T) {
	f := follows(t, func(dir string) { write(t, dir+"/d/f", "x") })
	warm(f.mnt)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	write(t, f.origin+"/d/g", "y")
	write(t, f.origin+"/e", "z")
	s := f.scan()
	lying := *s
	lying.Totals.Entries = 1
	if _, err := f.view.Move(ctx, &lying); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("more names than counted: %v", err)
	}
	absent := *s
	absent.Root.Digest = manifest.Sum([]byte("absent"))
	if _, err := f.view.Move(ctx, &absent); !errors.Is(err, manifest.ErrNotFound) {
		t.Errorf("pages that nobody has: %v", err)
	}
	if _, err := f.view.Move(ctx, nil); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("no snapshot: %v", err)
	}
	if _, err := os.Stat(f.mnt + "/e"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a refusal: %v", err)
	}
	f.moveTo(s)
	sameTree(t, f.origin, f.mnt, false)
	must(t, f.view.Unmount(ctx))
	if _, err := f.view.Move(ctx, s); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	w := newWorld(t, func(dir string) { write(t, dir+"/f", "x") }).mount(fs.Options{Layout: fs.Layers})
	if _, err := w.view.Move(ctx, w.source.Tree.Snapshot("web")); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("under a root: %v", err)
	}
}

// A view that moves for ever does not grow for ever: neither with names that come and
// go, nor with files that are replaced, nor where folders are loaded anew.
func TestMoveIsBounded(t *testing.T) {
	const each, rounds = 2000, 40
	f := made(t, map[string]string{"a": ""})
	version := func(n int) {
		below := map[string]string{}
		for i := range each {
			if i%2 == 0 { // stays, and is another
				below[fmt.Sprintf("f%05d", i)] = fmt.Sprint(n)
			} else {
				below[fmt.Sprintf("f%05d-%d", i, n%5)] = ""
			}
		}
		dir := f.of(below).Root
		dir.Name = fmt.Sprint("moves-", n%2)
		// One folder changes in its place, the other is a new one each time.
		stays := dir
		stays.Name = "stays"
		s := f.flat([]manifest.Entry{dir, stays})
		s.Totals.Entries += 2 * each
		f.moveTo(s)
		for _, d := range []string{dir.Name, stays.Name} {
			all, err := os.ReadDir(f.mnt + "/" + d)
			if err != nil || len(all) != each {
				t.Fatalf("%s has %d names, %v", d, len(all), err)
			}
			for _, e := range all {
				var st unix.Stat_t
				must(t, unix.Lstat(f.mnt+"/"+d+"/"+e.Name(), &st))
			}
		}
	}
	var slots []uint64
	for n := range rounds {
		version(n)
		slots = append(slots, f.view.Stats().Slots)
	}
	t.Logf("slots for %d names: %d", 2*each, slots)
	if half, last := slots[rounds/2], slots[rounds-1]; last > half+each {
		t.Errorf("%d slots after %d moves, %d after %d", half, rounds/2, last, rounds)
	}
}

// What has changed is all that a move looks at.
func TestMoveLooksAtLittle(t *testing.T) {
	f := &follower{world: newWorld(t, func(string) {}), memory: &fstest.Memory{}}
	const many = 100_000
	entries := make([]manifest.Entry, many)
	empty := f.memory.PutContent(nil)
	for i := range entries {
		entries[i] = manifest.Entry{Name: fmt.Sprintf("message-%06d", i), Type: manifest.File, Mode: 0o644, Links: 1, Digest: empty}
	}
	counted := &counting{Memory: f.memory}
	f.mount(fs.Options{Snapshot: f.flat(entries), Content: counted})
	all, err := os.ReadDir(f.mnt)
	must(t, err)
	if len(all) != many {
		t.Fatal(len(all))
	}
	for i := range 20 {
		at := (i*7919 + 13) % many
		switch i % 3 {
		case 0:
			entries = slices.Insert(entries, at, manifest.Entry{Name: entries[at-1].Name + "-new", Type: manifest.File, Mode: 0o644, Links: 1, Digest: empty})
		case 1:
			entries = slices.Delete(entries, at, at+1)
		default:
			entries[at].Mode = 0o600
		}
		s := f.flat(entries)
		counted.bytes.Store(0)
		m := f.moveTo(s)
		t.Logf("%v published after %v, %d bytes of pages", m.Took, m.Published, counted.bytes.Load())
		if n := counted.bytes.Load(); n > 256<<10 {
			t.Errorf("%d bytes of pages were read", n)
		}
	}
	got, err := os.ReadDir(f.mnt)
	must(t, err)
	for i, e := range entries {
		if got[i].Name() != e.Name {
			t.Fatalf("name %d is %s, want %s", i, got[i].Name(), e.Name)
		}
	}
}

// counting counts the bytes of pages that are asked for.
type counting struct {
	*fstest.Memory
	bytes atomic.Int64
}

func (c *counting) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	bodies, err := c.Memory.Meta(ctx, digests)
	for _, b := range bodies {
		c.bytes.Add(int64(len(b)))
	}
	return bodies, err
}
