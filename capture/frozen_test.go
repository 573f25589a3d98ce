package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// freezing returns a capture of the root that is about to freeze what the service
// writes to, which is written.
func freezing(t *testing.T, root, state string, o Options, written ...string) *capturing {
	t.Helper()
	o.Name, o.Root, o.StateDir, o.Log = "db", root, state, slog.New(slog.DiscardHandler)
	c := &capturing{Options: o, result: &Result{}}
	c.library = must(OpenLibrary(state))(t)
	c.cache = must(statcache.Open(filepath.Join(state, "digests")))(t)
	c.root = must(rootfs.New(root))(t)
	c.dir = openRoot(t, root)
	c.hasher = newHasher(c.dir, c.cache, nil)
	c.closure = newClosure(c.root, must(mountsBelow(root))(t), nil)
	t.Cleanup(func() {
		c.dropFrozen()
		_, _ = c.root.Close(), c.cache.Close()
	})
	check(t, c.closure.addTree(t.Context(), "/", Reason{ClassUser, "everything"}))
	for _, p := range written {
		c.closure.uses[p] = &use{read: true, write: true, within: true}
	}
	return c
}

// reflinks mounts a file system that has them, and returns a folder on it.
func reflinks(t *testing.T) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	for _, argv := range [][]string{{"truncate", "-s", "320M", image}, {"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// What goes in is of one moment, however busily it is written: a write to the log
// is never missing of what the table has.
func TestFrozenAtOneMoment(t *testing.T) {
	for name, dir := range map[string]string{"copied": t.TempDir(), "by reflink": reflinks(t)} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(dir, "root")
			write(t, root+"/db/log", "0", 0o600)
			write(t, root+"/db/table", "0", 0o600)
			ctx, stop := context.WithCancel(t.Context())
			var work sync.WaitGroup
			defer work.Wait()
			defer stop()
			work.Go(func() { // a write, and a moment of rest, as no database is busier
				for n := 1; ctx.Err() == nil; n++ {
					for _, f := range []string{"/db/log", "/db/table"} {
						if err := os.WriteFile(root+f+".new", []byte(strconv.Itoa(n)), 0o600); err != nil {
							t.Error(err)
						}
						if err := os.Rename(root+f+".new", root+f); err != nil {
							t.Error(err)
						}
					}
					if n%4 == 0 {
						<-tick(ctx)
					}
				}
			})
			for i := range 20 {
				c := freezing(t, root, filepath.Join(dir, fmt.Sprintf("state%d", i)), Options{}, "/db/log", "/db/table")
				check(t, c.freeze(t.Context()))
				log, table := frozenNumber(t, c, "/db/log"), frozenNumber(t, c, "/db/table")
				if len(c.result.Warnings) == 0 && (log < table || log > table+1) {
					t.Fatalf("the log is of write %d, the table of %d", log, table)
				}
				if cloned := c.hasher.frozen["/db/log"].cloned; cloned != (name == "by reflink") {
					t.Fatalf("cloned: %v", cloned)
				}
				if i == 0 {
					t.Log(c.result.Steps[0].Detail)
				}
				if len(c.result.Warnings) > 0 {
					t.Log(c.result.Warnings)
				}
			}
		})
	}
}

// tick is closed after some switches to other goroutines.
func tick(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2000 {
			if ctx.Err() != nil {
				return
			}
			_ = os.Getppid() // a system call
		}
	}()
	return done
}

func frozenNumber(t *testing.T, c *capturing, p string) int {
	t.Helper()
	f := c.hasher.frozen[p]
	if f == nil {
		t.Fatalf("%s is not frozen", p)
	}
	b := must(os.ReadFile(filepath.Join(c.frozenDir.Name(), f.name)))(t)
	if manifest.Sum(b) != f.digest || f.name != f.digest.Hex() {
		t.Fatalf("the copy of %s is not what its name says", p)
	}
	return must(strconv.Atoi(string(b)))(t)
}

// The commands run around the copying, and thaw whatever happens.
func TestFreezeAndThaw(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/db/table", "1", 0o600)
	said := filepath.Join(t.TempDir(), "said")
	say := func(word string) string { return "echo " + word + " $SRVD_SERVICE >> " + said }
	run := func(o Options) ([]string, *capturing, error) {
		_ = os.Remove(said)
		c := freezing(t, root, t.TempDir(), o, "/db/table")
		err := c.freeze(t.Context())
		b, _ := os.ReadFile(said)
		return strings.Fields(string(b)), c, err
	}
	words, c, err := run(Options{Freeze: say("freeze"), Thaw: say("thaw")})
	if err != nil || !slices.Equal(words, []string{"freeze", "db", "thaw", "db"}) || c.hasher.frozen["/db/table"] == nil {
		t.Errorf("%q, %v", words, err)
	}
	words, _, err = run(Options{Freeze: "echo no such table; false", Thaw: say("thaw")})
	if err == nil || !strings.Contains(err.Error(), "no such table") || !strings.Contains(err.Error(), "--freeze") || !slices.Equal(words, []string{"thaw", "db"}) {
		t.Errorf("a freeze that fails: %q, %v", words, err)
	}
	_, _, err = run(Options{Freeze: say("freeze"), Thaw: "exit 3"})
	if err == nil || !strings.Contains(err.Error(), "by hand: exit 3") {
		t.Errorf("a thaw that fails: %v", err)
	}
	// One that was interrupted meanwhile thaws too.
	fifo := filepath.Join(t.TempDir(), "fifo")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, _ = os.ReadFile(fifo) // the command has begun
		cancel()
	}()
	c = freezing(t, root, t.TempDir(), Options{Freeze: "echo > " + fifo + "; exec sleep 20", Thaw: say("thaw")}, "/db/table")
	_ = os.Remove(said)
	if err := c.freeze(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if b, _ := os.ReadFile(said); !strings.Contains(string(b), "thaw") {
		t.Errorf("interrupted, it said %q", b)
	}
	// What leaves a process behind that holds its output does not hang.
	if _, _, err := run(Options{Freeze: "sleep 20 & echo $! > " + said, Thaw: "kill $(cat " + said + ")"}); err != nil {
		t.Errorf("a command that leaves a process behind: %v", err)
	}
}

// A standby gets what was frozen, whatever has become of the file.
func TestFrozenIsServed(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	write(t, root+"/db/table", strings.Repeat("then", 200_000), 0o600)
	write(t, root+"/db/still", "still", 0o600)
	settle(t, root+"/db/still", root+"/db/table")
	c := freezing(t, root, state, Options{}, "/db/table", "/db/still")
	check(t, c.freeze(t.Context()))
	publishFrozen := func(c *capturing) *tree {
		tr := must(build(t.Context(), c.hasher, c.closure.items))(t)
		snap := &manifest.Snapshot{
			Service: "db", Sequence: 1, Created: 1, Source: "test", Root: tr.root, Totals: tr.totals,
			Units: []manifest.Unit{{Name: "db", Kind: manifest.Simple, Start: []manifest.Command{{Argv: []string{"/bin/true"}}}}},
		}
		must(c.library.publish(snap, edition{meta: tr.meta, index: must(tr.index(root))(t), frozen: tr.frozenDigests(), copies: c.frozenFolder()}))(t)
		return tr
	}
	tr := publishFrozen(c)
	table := digestOf(t, tr, "/db/table")
	write(t, root+"/db/table", "now", 0o600)
	live := c.library.Live()
	defer func() { _ = live.Close() }()
	read := func(d manifest.Digest) ([]byte, error) {
		r, err := live.Fetch(t.Context(), d, 0, -1)
		if err != nil {
			return nil, err
		}
		defer func() { _ = r.Close() }()
		return io.ReadAll(r)
	}
	if b, err := read(table); err != nil || !bytes.Equal(b, bytes.Repeat([]byte("then"), 200_000)) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	shown := 0
	for e, err := range c.library.Entries(manifest.Ref{Service: "db"}) {
		check(t, err)
		if e.Frozen {
			shown++
		}
	}
	if shown != 2 {
		t.Errorf("%d entries are marked as frozen", shown)
	}
	// A copy that is lost costs nothing as long as the file is unchanged.
	copies := filepath.Join(state, frozenFolder)
	still := digestOf(t, tr, "/db/still")
	check(t, os.Remove(filepath.Join(copies, still.Hex())))
	if b, err := read(still); err != nil || string(b) != "still" {
		t.Errorf("%q, %v", b, err)
	}
	check(t, os.Remove(filepath.Join(copies, table.Hex())))
	if _, err := read(table); !errors.Is(err, manifest.ErrStale) {
		t.Errorf("a copy that is lost, of a file that has changed: %v", err)
	}

	// The next capture copies what has changed; what is unchanged it takes as it is.
	// Copies go with the last snapshot that has them; what another capture is about
	// to publish stays, and what a crash left goes.
	settle(t, root+"/db/table")
	next := func() *capturing {
		c := freezing(t, root, state, Options{}, "/db/table", "/db/still")
		check(t, c.freeze(t.Context()))
		return c
	}
	publishFrozen(next())
	other := next()
	if f := other.hasher.frozen["/db/table"]; !f.linked {
		t.Errorf("what is unchanged was copied again: %+v", f)
	}
	check(t, os.MkdirAll(filepath.Join(copies, tempPrefix+"crash"), 0o700))
	names := func() (all []string) {
		for _, e := range must(os.ReadDir(copies))(t) {
			all = append(all, e.Name())
		}
		return all
	}
	for range KeptFrozen {
		publishFrozen(next())
	}
	want := []string{filepath.Base(other.frozenFolder()), manifest.Sum([]byte("now")).Hex(), still.Hex()}
	slices.Sort(want)
	if got := slices.DeleteFunc(names(), func(n string) bool {
		return strings.HasPrefix(n, tempPrefix) && n != want[0] && n != tempPrefix+"crash" // of captures that have not ended
	}); !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
	publishFrozen(other)
	check(t, c.library.Remove("db"))
	if got := slices.DeleteFunc(names(), func(n string) bool { return strings.HasPrefix(n, tempPrefix) }); len(got) > 0 {
		t.Errorf("left %q", got)
	}
}

// settle waits until a change of the files could not hide in the step of the kernel's
// clock in which they were made.
func settle(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		age(t, name)
		id := identify(must(os.Lstat(name))(t))
		for id.Racy(time.Now()) {
			time.Sleep(time.Millisecond) // the clock's own event
		}
	}
}

// Without reflinks a large database is copied only if a command makes it hold still.
func TestFreezeSaysWhatItCosts(t *testing.T) {
	freelyCopied = 100
	defer func() { freelyCopied = 256 << 20 }()
	root := t.TempDir()
	write(t, root+"/db/table", strings.Repeat("x", 200), 0o600)
	c := freezing(t, root, t.TempDir(), Options{}, "/db/table")
	check(t, c.freeze(t.Context()))
	if len(c.hasher.frozen) != 0 || len(c.result.Warnings) != 1 || !strings.Contains(c.result.Warnings[0], "--freeze") {
		t.Errorf("%v, warnings %q", c.hasher.frozen, c.result.Warnings)
	}
	check(t, c.freeze(t.Context())) // asked again after a round of verification
	if len(c.result.Steps) != 1 {
		t.Errorf("steps %v", c.result.Steps)
	}
	if c = freezing(t, root, t.TempDir(), Options{Freeze: "true"}, "/db/table"); c.freeze(t.Context()) != nil || len(c.hasher.frozen) != 1 {
		t.Errorf("with a command: %v", c.hasher.frozen)
	}
	if c = freezing(t, root, t.TempDir(), Options{NoFreeze: true}, "/db/table"); c.freeze(t.Context()) != nil || len(c.hasher.frozen) != 0 {
		t.Errorf("with --no-freeze: %v", c.hasher.frozen)
	}
}

// Files that were unchanged since an earlier capture, and change while this one looks,
// get copies of their own.
func TestFrozenChangesAfterAll(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/db/a", "a", 0o600)
	write(t, root+"/db/b", "b", 0o600)
	c := freezing(t, root, t.TempDir(), Options{}, "/db/a", "/db/b")
	check(t, c.holdFrozen())
	all := map[string]*frozen{}
	for _, p := range []string{"/db/a", "/db/b"} {
		all[p] = must(c.copyFrozen(p, &frozen{linked: true, name: "of the earlier capture"}, 2))(t)
	}
	check(t, c.digestFrozen(t.Context(), all))
	for p, text := range map[string]string{"/db/a": "a", "/db/b": "b"} {
		if all[p].digest != manifest.Sum([]byte(text)) {
			t.Errorf("the copy of %s is another file's", p)
		}
	}
}

// What lies with a file that is written, in a data folder, is of its moment too.
func TestWhatIsFrozen(t *testing.T) {
	root := t.TempDir()
	for _, p := range []string{"/var/lib/db/table", "/var/lib/db/log", "/var/lib/db/deep/index", "/var/lib/other/data", "/etc/app/state", "/etc/app/conf", "/var/log/app.log"} {
		write(t, root+p, p, 0o644)
	}
	write(t, root+"/var/lib/db/empty", "", 0o644)
	c := freezing(t, root, t.TempDir(), Options{}, "/var/lib/db/table", "/etc/app/state")
	for _, dir := range []string{"/var/lib/db", "/var/lib/other"} {
		check(t, c.closure.addTree(t.Context(), dir, Reason{ClassData, "data"}))
	}
	c.closure.trees = map[string]bool{}
	for _, dir := range []string{"/var/lib/db", "/var/lib/other"} {
		check(t, c.closure.addTree(t.Context(), dir, Reason{ClassData, "data"}))
	}
	want := []string{"/etc/app/state", "/var/lib/db/deep/index", "/var/lib/db/log", "/var/lib/db/table"}
	if got := c.closure.changing(); !slices.Equal(got, want) {
		t.Errorf("frozen: %q, want %q", got, want)
	}
}
