package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/capture/notify"
	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// A gardener changes a tree of files at random, in all ways there are.
type gardener struct {
	t    *testing.T
	rng  *rand.Rand
	root string
}

func (g *gardener) some() string {
	p := g.root
	for range 1 + g.rng.IntN(3) {
		p = filepath.Join(p, []string{"a", "a.b", "b", "c", "odd \n\xff", "d.txt", "e"}[g.rng.IntN(7)])
	}
	return p
}

// removeAll is os.RemoveAll, which opens what is above, and waits if that is a FIFO.
func removeAll(p string) {
	if info, err := os.Lstat(filepath.Dir(p)); err == nil && info.IsDir() {
		_ = os.RemoveAll(p)
	}
}

// put writes to a file, and does not wait for a reader of a FIFO.
func put(p string, flags int, text []byte) error {
	f, err := os.OpenFile(p, flags|os.O_WRONLY|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// step makes one change. Many can't be made, which is no matter.
func (g *gardener) step() {
	p := g.some()
	text := []byte(strings.Repeat(fmt.Sprint(g.rng.IntN(1000)), 1+g.rng.IntN(30)))
	if g.rng.IntN(40) == 0 {
		text = make([]byte, 600_000+g.rng.IntN(100_000))
		text[g.rng.IntN(len(text))] = byte(g.rng.IntN(256))
	}
	switch g.rng.IntN(14) {
	case 0, 1, 2:
		_ = os.MkdirAll(filepath.Dir(p), 0o755)
		_ = put(p, os.O_CREATE|os.O_TRUNC, text)
	case 3:
		_ = put(p, os.O_APPEND, text)
	case 4:
		_ = os.Truncate(p, int64(g.rng.IntN(20)))
	case 5:
		_ = os.Rename(p, g.some())
	case 6:
		if put(p+".new", os.O_CREATE|os.O_TRUNC, text) == nil {
			_ = os.Rename(p+".new", p)
			_ = os.Remove(p + ".new")
		}
	case 7:
		removeAll(p)
	case 8:
		_ = os.Link(p, g.some())
	case 9:
		_ = os.Symlink(fmt.Sprint("to", g.rng.IntN(9)), p)
	case 10:
		_ = os.Chmod(p, os.FileMode(g.rng.IntN(0o777)))
	case 11:
		_ = unix.Lsetxattr(p, "user.x", text[:min(len(text), 50)], 0)
	case 12:
		removeAll(p)
		switch g.rng.IntN(3) {
		case 0:
			_ = os.Mkdir(p, 0o700)
		case 1:
			_ = unix.Mkfifo(p, 0o600)
		default:
			_ = put(p, os.O_CREATE|os.O_TRUNC, text)
		}
	case 13:
		if os.Mkdir(p, 0o755) == nil {
			_ = os.WriteFile(p+"/in", text, 0o644)
			_ = os.Mkdir(p+"/deep", 0o755)
			_ = os.WriteFile(p+"/deep/x", text, 0o644)
		}
	}
}

// again returns a follower that knows what is on the disk, and nothing else.
func again(t *testing.T, f *follower) *follower {
	t.Helper()
	f.close()
	f = must(newFollower(f.lib, f.live, f.cache, f.log, f.at.Service))(t)
	t.Cleanup(f.close)
	return f
}

func followed(t *testing.T) (*gardener, *Library, *follower) {
	t.Helper()
	g := &gardener{t, rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)), t.TempDir()}
	for range 200 {
		g.step()
	}
	lib := must(OpenLibrary(t.TempDir()))(t)
	publishScoped(t, lib, "web", g.root, scope{Folders: []string{"/"}})
	live := lib.Live()
	t.Cleanup(func() { _ = live.Close() })
	cache := must(statcache.Open(filepath.Join(t.TempDir(), "digests")))(t)
	f := must(newFollower(lib, live, cache, slog.New(slog.DiscardHandler), "web"))(t)
	t.Cleanup(f.close)
	return g, lib, f
}

// same fails if the followed snapshot is not what a capture of everything would give.
func (g *gardener) same(f *follower, lib *Library) {
	g.t.Helper()
	want := gather(g.t, g.root, nil)
	if f.snap.Root.Digest == want.root.Digest && f.snap.Totals == want.totals {
		i := 0
		for e, err := range f.index.entries() {
			check(g.t, err)
			for i < len(want.nodes) && want.nodes[i].path == "/" {
				i++
			}
			n := want.nodes[i]
			if w := n.listed(); e.Path != w.Path || e.Type != w.Type || e.Digest != w.Digest || e.Size != w.Size {
				g.t.Fatalf("the index has %+v, want %+v", e, w)
			}
			i++
		}
		if i != len(want.nodes) && (i != 0 || len(want.nodes) != 1) {
			g.t.Fatalf("the index ends after %d of %d", i, len(want.nodes))
		}
		return
	}
	before := must(lib.Snapshot(f.ref()))(g.t)
	g.t.Errorf("totals %+v, want %+v", before.Totals, want.totals)
	have := map[string]bool{}
	for e, err := range f.index.entries() {
		check(g.t, err)
		have[e.Path] = true
		n, ok := want.find(e.Path)
		if !ok {
			g.t.Errorf("%q is in, and is not there", e.Path)
		} else if w := n.listed(); w.Digest != e.Digest || w.Type != e.Type {
			g.t.Errorf("%q is in as %v %v, and is %v %v", e.Path, e.Type, e.Digest, w.Type, w.Digest)
		}
	}
	for _, n := range want.nodes {
		if !have[n.path] && n.path != "/" {
			g.t.Errorf("%q is not in", n.path)
		}
	}
	g.t.FailNow()
}

// Whatever is done to the files, a look at everything finds it.
func TestFollowByRescan(t *testing.T) {
	g, lib, f := followed(t)
	published := 0
	for range 60 {
		if g.rng.IntN(3) == 0 {
			time.Sleep(2 * statcache.Window) // what was looked at after that is not racy
			check(t, failure(f.update(t.Context(), map[string]bool{"/": true}, nil)))
		}
		for range g.rng.IntN(30) {
			g.step()
		}
		if g.rng.IntN(5) == 0 {
			f = again(t, f)
		}
		yes, retry, err := f.update(t.Context(), map[string]bool{"/": true}, nil)
		check(t, err)
		if len(retry) > 0 {
			t.Fatal(retry)
		}
		if yes {
			published++
		}
		g.same(f, lib)
	}
	if yes, _, err := f.update(t.Context(), map[string]bool{"/": true}, nil); yes || err != nil {
		t.Errorf("nothing has changed, and it was published: %v, %v", yes, err)
	}
	if p := must(lib.find(f.ref()))(t); p.Sequence != uint64(1+published) {
		t.Errorf("%d were published, and the last is %d", published, p.Sequence)
	}
}

func failure(_ bool, _ []string, err error) error { return err }

// The same with what the kernel reports, without looking anywhere else.
func TestFollowByEvents(t *testing.T) {
	g, lib, f := followed(t)
	w := must(notify.Open([]notify.Mount{{Path: "/", Host: g.root}}))(t)
	defer w.Close()
	for round := range 100 {
		for range g.rng.IntN(30) {
			g.step()
		}
		// A last change, of which it is known that it will be reported.
		end := fmt.Sprintf("/end%d", round%2)
		check(t, os.WriteFile(g.root+end, []byte(fmt.Sprint(round)), 0o644))
		dirty, inodes := map[string]bool{}, map[notify.Inode]bool{}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for ended := false; !ended; {
			events, err := w.Next(ctx)
			if errors.Is(err, notify.ErrLost) {
				dirty["/"], ended = true, true
				continue
			}
			check(t, err)
			for _, e := range events {
				dirty[e.Path] = dirty[e.Path] || e.Below
				if dir := path.Dir(e.Path); !dirty[dir] {
					dirty[dir] = false
				}
				names, others := w.Others(e)
				for _, p := range names {
					if _, ok := dirty[p]; !ok {
						dirty[p] = false
					}
				}
				for _, i := range others {
					inodes[i] = true
				}
				ended = ended || e.Path == end
			}
		}
		cancel()
		_, retry, err := f.update(t.Context(), dirty, inodes)
		check(t, err)
		if len(retry) > 0 {
			t.Fatal(retry)
		}
		g.same(f, lib)
		if round%10 == 9 { // and a look at everything finds no more
			f = again(t, f)
			if yes, retry, err := f.update(t.Context(), map[string]bool{"/": true}, nil); err != nil || yes || len(retry) > 0 {
				t.Fatal(yes, retry, err)
			}
		}
	}
}

// A name that comes while its folder is looked at for another reason is not lost, if all
// is looked at after it was not reported.
func TestFollowAfterAnInterruption(t *testing.T) {
	g, lib, f := followed(t)
	check(t, os.MkdirAll(g.root+"/in", 0o755))
	check(t, failure(f.update(t.Context(), map[string]bool{"/": true}, nil)))
	for i := range 3 {
		write(t, fmt.Sprintf("%s/in/one%d", g.root, i), "one", 0o644)
		write(t, fmt.Sprintf("%s/in/two%d", g.root, i), "two", 0o644)
		time.Sleep(2 * statcache.Window)
		// The second was not reported yet, and its folder is looked at for its time.
		check(t, failure(f.update(t.Context(), map[string]bool{"/in": false, fmt.Sprintf("/in/one%d", i): false}, nil)))
		f = again(t, f)
		if yes, _, err := f.update(t.Context(), map[string]bool{"/": true}, nil); err != nil || !yes {
			t.Error(yes, err)
		}
		g.same(f, lib)
	}
}

// What nobody has touched since it was looked at is not looked at in full again, nor is
// what was racy when it was captured; what a full look found out is in the next snapshot.
func TestSweepLooksOnce(t *testing.T) {
	root := t.TempDir()
	for i := range 300 {
		write(t, fmt.Sprintf("%s/d%d/file%d", root, i%7, i), fmt.Sprint(i), 0o644)
	}
	lib := must(OpenLibrary(t.TempDir()))(t)
	publishScoped(t, lib, "web", root, scope{Folders: []string{"/"}})
	live := lib.Live()
	defer live.Close()
	cache := must(statcache.Open(filepath.Join(t.TempDir(), "digests")))(t)
	f := must(newFollower(lib, live, cache, slog.New(slog.DiscardHandler), "web"))(t)
	defer func() { f.close() }()
	looks := func() (n int) {
		t.Helper()
		if yes, _, err := f.look(t.Context(), map[string]bool{"/": true}, nil, func(u *updating) error {
			err := u.sweep()
			n = len(u.seen)
			return err
		}); err != nil || yes {
			t.Fatal(yes, err)
		}
		return n
	}
	time.Sleep(2 * statcache.Window)
	if n := looks(); n < 8 {
		t.Errorf("a first look at everything looked at %d in full", n)
	}
	if n := looks(); n != 1 { // the root itself
		t.Errorf("a second one looked at %d in full", n)
	}
	check(t, os.Chmod(root+"/d3/file3", 0o600))
	time.Sleep(2 * statcache.Window)
	check(t, failure(f.update(t.Context(), map[string]bool{"/d3/file3": false}, nil)))
	f = again(t, f)
	if n := looks(); n != 1 {
		t.Errorf("after a restart, it looked at %d in full", n)
	}
}

// What is reported from elsewhere is passed over, and nothing else.
func TestFollowFar(t *testing.T) {
	f := &follower{tops: map[string]bool{"/": true, "/etc": true, "/etc/web": true, "/var": true, "/var/lib": true, "/var/lib/web": true}, scope: &scope{Folders: []string{"/var/lib/web", "/srv/new"}}}
	for p, want := range map[string]bool{
		"/": false, "/etc": false, "/work": false, "/etc/passwd": false, "/etc/web/conf": false, "/etc/other/conf": true, "/work/x/y": true, "/work/x": true,
		"/var/lib/web/a/b/c": false, "/var/lib/other/x": true, "/srv/new/x/y": true, "/usr/lib/x/y/z": true,
	} {
		if got := f.far(p); got != want {
			t.Errorf("%s is far: %v", p, got)
		}
	}
}

// What must be of one moment is followed as a whole: all of it is as it was at one.
func TestFollowOfAMoment(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	for _, name := range []string{"table", "log", "still", "gone"} {
		write(t, root+"/db/"+name, name+" then", 0o600)
	}
	write(t, root+"/etc/conf", "conf", 0o644)
	c := freezing(t, root, state, Options{}, "/db/table", "/db/log", "/db/still", "/db/gone")
	check(t, c.freeze(t.Context()))
	tr := must(build(t.Context(), c.hasher, c.closure.items))(t)
	snap := &manifest.Snapshot{
		Service: "db", Sequence: 1, Created: 1, Source: "test", Root: tr.root, Totals: tr.totals,
		Units: []manifest.Unit{{Name: "db", Kind: manifest.Simple, Start: []manifest.Command{{Argv: []string{"/bin/true"}}}}},
	}
	s := must(json.Marshal(scope{Folders: []string{"/db", "/etc"}}))(t)
	must(c.library.publish(snap, edition{meta: tr.meta, index: must(tr.index(root))(t), scope: s, frozen: tr.frozenDigests(), copies: c.frozenFolder()}))(t)
	live := c.library.Live()
	defer live.Close()
	f := must(newFollower(c.library, live, c.cache, slog.New(slog.DiscardHandler), "db"))(t)
	defer f.close()
	if yes, err := f.refreeze(t.Context()); yes || err != nil {
		t.Errorf("nothing has changed: %v, %v", yes, err)
	}

	write(t, root+"/db/table", "table now, and longer", 0o600)
	write(t, root+"/db/new", "new", 0o600)
	check(t, os.Remove(root+"/db/gone"))
	write(t, root+"/etc/conf", "changed", 0o644)
	yes, _, err := f.update(t.Context(), map[string]bool{"/": true}, nil)
	if err != nil || !yes {
		t.Fatal(yes, err)
	}
	if e := must(manifest.Lookup(t.Context(), live, &f.snap.Root, "/db/table"))(t); e.Digest != manifest.Sum([]byte("table then")) {
		t.Error("data of one moment was followed file by file")
	}
	if yes, err := f.refreeze(t.Context()); err != nil || !yes {
		t.Fatal(yes, err)
	}
	want := gather(t, root, nil)
	if f.snap.Root.Digest != want.root.Digest || f.snap.Totals != want.totals {
		t.Errorf("totals %+v, want %+v", f.snap.Totals, want.totals)
	}
	// It is served although the files have gone on.
	for _, name := range []string{"table", "new", "log"} {
		b := must(os.ReadFile(root + "/db/" + name))(t)
		write(t, root+"/db/"+name, "later", 0o600)
		if got, err := fetch(live, t, manifest.Sum(b), 0, -1); err != nil || string(got) != string(b) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got := must(os.ReadDir(state + "/frozen"))(t); len(got) > 8 {
		t.Errorf("%d copies are kept: %v", len(got), got)
	}

	// What goes on changing is of no moment, and what a command must hold still waits.
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = os.WriteFile(root+"/db/table", []byte(fmt.Sprint(i)), 0o600)
			}
		}
	}()
	before := f.at
	yes, err = f.refreeze(t.Context())
	close(stop)
	<-ended
	if !errors.Is(err, errNoMoment) && err != nil || errors.Is(err, errNoMoment) && f.at != before {
		t.Errorf("%v, %v", yes, err)
	}
	f.scope.Hooks = true
	if _, err := f.refreeze(t.Context()); !errors.Is(err, errHeld) {
		t.Error(err)
	}
}

// What is missing since a file system is not mounted has not been deleted.
func TestFollowUnmounted(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/conf", "conf", 0o644)
	check(t, os.Mkdir(root+"/srv", 0o755))
	mount := func() {
		t.Helper()
		check(t, unix.Mount("tmpfs", root+"/srv", "tmpfs", 0, "size=1m"))
	}
	mount()
	t.Cleanup(func() { _ = unix.Unmount(root+"/srv", unix.MNT_DETACH) })
	write(t, root+"/srv/data", "data", 0o644)
	lib := must(OpenLibrary(t.TempDir()))(t)
	publishScoped(t, lib, "web", root, scope{Folders: []string{"/etc", "/srv"}, Mounts: []string{"/srv"}})
	live := lib.Live()
	defer live.Close()
	cache := must(statcache.Open(filepath.Join(t.TempDir(), "digests")))(t)
	f := must(newFollower(lib, live, cache, slog.New(slog.DiscardHandler), "web"))(t)
	defer f.close()
	look := func() (bool, error) {
		yes, _, err := f.update(t.Context(), map[string]bool{"/": true}, nil)
		return yes, err
	}
	if yes, err := look(); yes || err != nil {
		t.Fatal(yes, err)
	}
	check(t, unix.Unmount(root+"/srv", 0))
	yes, err := look()
	if yes || !errors.Is(err, errUnmounted) || !strings.Contains(err.Error(), root+"/srv") {
		t.Errorf("published %v, %v", yes, err)
	}
	if p := must(lib.find(f.ref()))(t); p.Sequence != 1 {
		t.Errorf("snapshot %d", p.Sequence)
	}
	mount() // another one, which is empty: that counts
	if yes, err := look(); !yes || err != nil {
		t.Error(yes, err)
	}
}

// A root folder that is away has not lost its files; another one that comes in its place
// is looked at as a whole.
func TestFollowRootGone(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	write(t, root+"/etc/conf", "conf", 0o644)
	lib := must(OpenLibrary(t.TempDir()))(t)
	publishScoped(t, lib, "web", root, scope{Folders: []string{"/etc"}})
	live := lib.Live()
	defer live.Close()
	cache := must(statcache.Open(filepath.Join(t.TempDir(), "digests")))(t)
	follow := func() *follower {
		return must(newFollower(lib, live, cache, slog.New(slog.DiscardHandler), "web"))(t)
	}
	look := func(f *follower) (bool, error) {
		yes, _, err := f.update(t.Context(), map[string]bool{"/": true}, nil)
		return yes, err
	}
	f := follow()
	defer f.close()
	check(t, os.Rename(root, root+".away"))
	if yes, err := look(f); yes || !errors.Is(err, errUnmounted) || !strings.Contains(err.Error(), root) {
		t.Errorf("published %v, %v", yes, err)
	}
	if _, err := newFollower(lib, live, cache, slog.New(slog.DiscardHandler), "web"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a root: %v", err)
	}
	write(t, root+"/etc/other", "other", 0o644)
	if yes, err := look(f); yes || err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("published %v, %v", yes, err)
	}
	g := follow()
	defer g.close()
	if yes, err := look(g); !yes || err != nil {
		t.Error(yes, err)
	}
	must(lib.Why(manifest.Ref{Service: "web"}, "/etc/other"))(t)
}

// A folder goes while it is looked at: what was seen in it goes too, and what was new in it
// does not come.
func TestFolderGoesMeanwhile(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		g, lib, f := followed(t)
		for _, name := range []string{"was", "twice", "still"} {
			write(t, g.root+"/folder/"+name, name, 0o644)
		}
		check(t, os.Link(g.root+"/folder/twice", g.root+"/other name"))
		check(t, failure(f.update(t.Context(), map[string]bool{"/": true}, nil)))
		write(t, g.root+"/folder/was", "changed", 0o644)
		write(t, g.root+"/folder/new", "new", 0o644)
		check(t, os.Mkdir(g.root+"/folder/new folder", 0o755))
		check(t, os.Chmod(g.root+"/folder/still", 0o600))
		looks := func(u *updating) error {
			for _, name := range []string{"was", "twice", "still", "new", "new folder"} {
				if err := u.visit("/folder/"+name, false); err != nil {
					return err
				}
			}
			if err := os.RemoveAll(g.root + "/folder"); err != nil {
				return err
			}
			if replaced {
				write(t, g.root+"/folder", "no folder", 0o644)
			}
			return errors.Join(u.visit("/folder", true), u.visit("/other name", false))
		}
		if yes, _, err := f.look(t.Context(), map[string]bool{"/": true}, nil, looks); !yes || err != nil {
			t.Fatalf("replaced %v: published %v, %v", replaced, yes, err)
		}
		check(t, failure(f.update(t.Context(), map[string]bool{"/": false}, nil)))
		g.same(f, lib)
	}
}

// Following takes a fifth of a processor, and a little more now and then.
func TestAllowance(t *testing.T) {
	const ms = time.Millisecond
	var a allowance
	now := time.Now()
	for range 50 { // a change of 15 ms, ten times a second
		now = now.Add(100 * ms)
		if rest := a.spend(now, 15*ms); rest != 0 {
			t.Fatalf("rests for %v after what it may", rest)
		}
	}
	var worked, all time.Duration
	for range 1000 { // changes without an end
		now, worked, all = now.Add(50*ms), worked+50*ms, all+50*ms
		rest := a.spend(now, 50*ms)
		now, all = now.Add(rest), all+rest
	}
	if share := float64(worked) / float64(all); share < 0.19 || share > 0.21 {
		t.Errorf("takes %.3f of a processor", share)
	}
	if rest := a.spend(now.Add(time.Hour), time.Second); rest != restFactor*(time.Second-restCredit) {
		t.Errorf("rests for %v after a second of work", rest)
	}
}
