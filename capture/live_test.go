package capture

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A shelf is a library with one published folder.
type shelf struct {
	root string
	lib  *Library
	live *Live
	tree *tree
	snap *manifest.Snapshot
}

func newShelf(t *testing.T, files map[string]string) *shelf {
	t.Helper()
	s := &shelf{root: t.TempDir()}
	for name, content := range files {
		write(t, filepath.Join(s.root, name), content, 0o644)
		age(t, filepath.Join(s.root, name))
	}
	s.lib = must(OpenLibrary(t.TempDir()))(t)
	s.snap, s.tree = publish(t, s.lib, "web", s.root)
	s.live = s.lib.Live()
	t.Cleanup(func() { _ = s.live.Close() })
	return s
}

func fetch(o manifest.Origin, t *testing.T, d manifest.Digest, off, n int64) ([]byte, error) {
	t.Helper()
	r, err := o.Fetch(t.Context(), d, off, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return io.ReadAll(r)
}

func one(o manifest.Batcher, t *testing.T, w manifest.Range) ([]byte, error) {
	t.Helper()
	var got []byte
	var failed error
	calls := 0
	check(t, o.FetchBatch(t.Context(), []manifest.Range{w}, func(i int, b []byte, err error) error {
		calls++
		got, failed = bytes.Clone(b), err
		return nil
	}))
	if calls != 1 {
		t.Fatalf("%d answers for one range", calls)
	}
	return got, failed
}

func TestLiveRanges(t *testing.T) {
	big := make([]byte, 2*manifest.ChunkSize+5)
	must(rand.Read(big))(t)
	s := newShelf(t, map[string]string{"a/big": string(big), "a/small": "small", "a/none": ""})
	d := manifest.Sum(big)
	for _, c := range []struct{ off, n int64 }{{0, int64(len(big))}, {0, -1}, {17, 1000}, {manifest.ChunkSize, manifest.ChunkSize}, {int64(len(big)), 0}, {int64(len(big)), -1}, {5, 0}} {
		end := c.off + c.n
		if c.n < 0 {
			end = int64(len(big))
		}
		got, err := fetch(s.live, t, d, c.off, c.n)
		if err != nil || !bytes.Equal(got, big[c.off:end]) {
			t.Errorf("fetch %d bytes from %d: %d bytes, %v", c.n, c.off, len(got), err)
		}
		got, err = one(s.live, t, manifest.Range{Digest: d, Off: c.off, Len: c.n})
		if err != nil || !bytes.Equal(got, big[c.off:end]) {
			t.Errorf("batch %d bytes from %d: %d bytes, %v", c.n, c.off, len(got), err)
		}
	}
	for _, c := range []struct{ off, n int64 }{{-1, 5}, {0, int64(len(big)) + 1}, {int64(len(big)) + 1, -1}, {1 << 62, 1 << 62}} {
		_, err := fetch(s.live, t, d, c.off, c.n)
		wantErr(t, err, manifest.ErrInvalid)
		_, err = one(s.live, t, manifest.Range{Digest: d, Off: c.off, Len: c.n})
		wantErr(t, err, manifest.ErrInvalid)
	}
	n, _ := s.tree.find("/a/big")
	for _, d := range []manifest.Digest{s.snap.Root.Digest, n.entry.Chunks} {
		got, err := fetch(s.live, t, d, 0, -1)
		if err != nil || manifest.Sum(got) != d {
			t.Errorf("metadata %v: %v", d, err)
		}
		got, err = one(s.live, t, manifest.Range{Digest: d, Len: -1})
		if err != nil || manifest.Sum(got) != d {
			t.Errorf("metadata %v in a batch: %v", d, err)
		}
		if part, err := fetch(s.live, t, d, 3, 7); err != nil || !bytes.Equal(part, got[3:10]) {
			t.Errorf("a part of metadata: %q, %v", part, err)
		}
	}
	if got, err := fetch(s.live, t, manifest.EmptyDigest, 0, -1); err != nil || len(got) != 0 {
		t.Errorf("nothing: %q, %v", got, err)
	}
}

func TestLiveKnowsOnlyItsSnapshots(t *testing.T) {
	s := newShelf(t, map[string]string{"public": "public"})
	write(t, filepath.Join(s.root, "later"), "later", 0o644)
	for _, d := range []manifest.Digest{{}, manifest.Sum([]byte("later")), manifest.Sum([]byte("else"))} {
		_, err := fetch(s.live, t, d, 0, -1)
		wantErr(t, err, manifest.ErrNotFound)
		_, err = one(s.live, t, manifest.Range{Digest: d, Len: 1})
		wantErr(t, err, manifest.ErrNotFound)
	}
	too := make([]manifest.Range, manifest.MaxBatch+1)
	wantErr(t, s.live.FetchBatch(t.Context(), too, func(int, []byte, error) error { return nil }), manifest.ErrInvalid)
	_, err := one(s.live, t, manifest.Range{Digest: manifest.Sum([]byte("public")), Len: manifest.MaxRange + 1})
	wantErr(t, err, manifest.ErrInvalid)
	stop := errors.New("stop")
	if err := s.live.FetchBatch(t.Context(), make([]manifest.Range, 3), func(int, []byte, error) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("yield's error came back as %v", err)
	}
}

func TestLiveRefusesWhatChanged(t *testing.T) {
	const was = "the snapshot's bytes"
	d := manifest.Sum([]byte(was))
	for name, change := range map[string]func(t *testing.T, root string){
		"written":  func(t *testing.T, root string) { write(t, root+"/dir/f", "the present's bytes!", 0o644) },
		"appended": func(t *testing.T, root string) { write(t, root+"/dir/f", was+"more", 0o644) },
		"touched":  func(t *testing.T, root string) { check(t, os.Chtimes(root+"/dir/f", time.Now(), time.Now())) },
		"replaced, with the old time": func(t *testing.T, root string) {
			check(t, os.Remove(root+"/dir/f"))
			write(t, root+"/dir/f", "the present's bytes!", 0o644)
			info := must(os.Stat(root + "/old"))(t)
			check(t, os.Chtimes(root+"/dir/f", info.ModTime(), info.ModTime()))
		},
		"removed": func(t *testing.T, root string) { check(t, os.Remove(root+"/dir/f")) },
		"now a folder": func(t *testing.T, root string) {
			check(t, os.Remove(root+"/dir/f"))
			check(t, os.Mkdir(root+"/dir/f", 0o755))
		},
		"now a FIFO": func(t *testing.T, root string) {
			check(t, os.Remove(root+"/dir/f"))
			check(t, unix.Mkfifo(root+"/dir/f", 0o644))
		},
		"now a symlink": func(t *testing.T, root string) {
			check(t, os.Rename(root+"/dir/f", root+"/dir/g"))
			check(t, os.Symlink("g", root+"/dir/f"))
		},
		"folder now a symlink": func(t *testing.T, root string) {
			check(t, os.Rename(root+"/dir", root+"/away"))
			check(t, os.Symlink("away", root+"/dir"))
		},
		"folder now a symlink out of the root": func(t *testing.T, root string) {
			out := t.TempDir()
			write(t, out+"/f", "a secret of the host", 0o644)
			check(t, os.RemoveAll(root+"/dir"))
			check(t, os.Symlink(out, root+"/dir"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t, map[string]string{"dir/f": was, "old": "old"})
			info := must(os.Stat(s.root + "/dir/f"))(t)
			check(t, os.Chtimes(s.root+"/old", info.ModTime(), info.ModTime()))
			if got, err := fetch(s.live, t, d, 0, -1); err != nil || string(got) != was {
				t.Fatalf("before: %q, %v", got, err)
			}
			change(t, s.root)
			_, err := fetch(s.live, t, d, 0, -1)
			wantErr(t, err, manifest.ErrStale, "/dir/f")
			if strings.Contains(err.Error(), s.root) && name != "removed" && !strings.Contains(name, "folder") && !strings.Contains(name, "symlink") && !strings.Contains(name, "FIFO") {
				t.Errorf("names a path of the host: %v", err)
			}
			_, err = one(s.live, t, manifest.Range{Digest: d, Len: 3})
			wantErr(t, err, manifest.ErrStale, "/dir/f")
		})
	}
}

func TestLiveServesWhatOnlyLooksChanged(t *testing.T) {
	const was = "the same bytes"
	d := manifest.Sum([]byte(was))
	for name, change := range map[string]func(t *testing.T, p string){
		"chmod":     func(t *testing.T, p string) { check(t, os.Chmod(p, 0o600)) },
		"hard link": func(t *testing.T, p string) { check(t, os.Link(p, p+".link")) },
		"restored": func(t *testing.T, p string) {
			info := must(os.Stat(p))(t)
			write(t, p+".new", was, 0o644)
			check(t, os.Chtimes(p+".new", info.ModTime(), info.ModTime()))
			check(t, os.Rename(p+".new", p))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t, map[string]string{"f": was})
			change(t, s.root+"/f")
			for range 2 {
				if got, err := fetch(s.live, t, d, 0, -1); err != nil || string(got) != was {
					t.Fatalf("%q, %v", got, err)
				}
			}
		})
	}
}

func TestLiveTriesOtherNames(t *testing.T) {
	s := newShelf(t, map[string]string{"a": "twice", "b": "twice"})
	d := manifest.Sum([]byte("twice"))
	write(t, s.root+"/a", "other", 0o644)
	if got, err := fetch(s.live, t, d, 0, -1); err != nil || string(got) != "twice" {
		t.Fatalf("%q, %v", got, err)
	}
	check(t, os.Remove(s.root+"/b"))
	_, err := fetch(s.live, t, d, 0, -1)
	wantErr(t, err, manifest.ErrStale, "/a")
}

func TestLiveNoticesAChangeWhileReading(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 4<<20)
	s := newShelf(t, map[string]string{"big": string(big)})
	r := must(s.live.Fetch(t.Context(), manifest.Sum(big), 0, -1))(t)
	defer func() { _ = r.Close() }()
	must(io.ReadFull(r, make([]byte, 1<<20)))(t)
	f := must(os.OpenFile(s.root+"/big", os.O_WRONLY, 0))(t)
	must(f.WriteAt([]byte("y"), 3<<20))(t)
	check(t, f.Close())
	_, err := io.Copy(io.Discard, r)
	wantErr(t, err, manifest.ErrStale, "/big")

	short := must(s.live.Fetch(t.Context(), s.snap.Root.Digest, 0, -1))(t)
	check(t, short.Close())
}

func TestLiveFollowsTheLibrary(t *testing.T) {
	s := newShelf(t, map[string]string{"f": "first"})
	first := manifest.Sum([]byte("first"))
	if _, err := fetch(s.live, t, first, 0, -1); err != nil {
		t.Fatal(err)
	}
	write(t, s.root+"/g", "second", 0o644)
	other := must(OpenLibrary(s.lib.Dir()))(t) // as another process would
	snap, _ := publish(t, other, "web", s.root)
	if snap.Sequence != 2 {
		t.Errorf("sequence %d", snap.Sequence)
	}
	for _, want := range []string{"first", "second"} {
		if got, err := fetch(s.live, t, manifest.Sum([]byte(want)), 0, -1); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
	// The pages of the snapshot before are still there.
	if _, err := fetch(s.live, t, s.snap.Root.Digest, 0, -1); err != nil {
		t.Error(err)
	}
	check(t, other.Remove("web"))
	_, err := fetch(s.live, t, first, 0, -1)
	wantErr(t, err, manifest.ErrNotFound)
}

// A file that went from one snapshot to the next unchanged, and one of which
// only the retired snapshot has the bytes that its path still shows.
func TestLiveFallsBackToRetiredSnapshots(t *testing.T) {
	s := newShelf(t, map[string]string{"keep": "keep", "only": "only"})
	hidden := t.TempDir()
	check(t, os.Rename(s.root+"/only", hidden+"/only"))
	publish(t, s.lib, "web", s.root)
	check(t, os.Rename(hidden+"/only", s.root+"/only"))
	for _, want := range []string{"keep", "only"} {
		if got, err := fetch(s.live, t, manifest.Sum([]byte(want)), 0, -1); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
}

func TestLiveRestricted(t *testing.T) {
	s := newShelf(t, map[string]string{"f": "of web", "both": "of both"})
	mailRoot := t.TempDir()
	write(t, mailRoot+"/f", "of mail", 0o644)
	write(t, mailRoot+"/both", "of both", 0o644)
	mailSnap, _ := publish(t, s.lib, "mail", mailRoot)
	allowed := map[string]bool{"mail": true}
	mail := s.live.Restrict(func(service string) bool { return allowed[service] })
	for _, want := range []string{"of mail", "of both"} {
		if got, err := fetch(mail, t, manifest.Sum([]byte(want)), 0, -1); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := fetch(mail, t, mailSnap.Root.Digest, 0, -1); err != nil {
		t.Error(err)
	}
	for _, d := range []manifest.Digest{manifest.Sum([]byte("of web")), s.snap.Root.Digest} {
		_, err := fetch(mail, t, d, 0, -1)
		wantErr(t, err, manifest.ErrNotFound)
		if s.live.Belongs(d, func(s string) bool { return s == "mail" }) || !s.live.Belongs(d, nil) {
			t.Errorf("%v: Belongs is wrong", d)
		}
	}
	delete(allowed, "mail")
	_, err := fetch(mail, t, manifest.Sum([]byte("of mail")), 0, -1)
	wantErr(t, err, manifest.ErrNotFound)
}

func TestLiveOfADamagedLibrary(t *testing.T) {
	for _, name := range []string{"index", "meta"} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t, map[string]string{"f": "f"})
			file := filepath.Join(s.lib.Dir(), "snapshots/web/1", name)
			b := must(os.ReadFile(file))(t)
			b[20] ^= 1
			check(t, os.WriteFile(file, b[:len(b)-3], 0o600))
			_, err := fetch(s.live, t, manifest.Sum([]byte("f")), 0, -1)
			wantErr(t, err, manifest.ErrUnavailable)
			wantErr(t, err, manifest.ErrCorrupt)
		})
	}
}

func BenchmarkLiveBatch(b *testing.B) {
	root := b.TempDir()
	var want []manifest.Range
	for i := range 1000 {
		content := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 4<<10)
		write(b, filepath.Join(root, "d", string(rune('a'+i%26)), string(rune('a'+i/26))), string(content), 0o644)
		want = append(want, manifest.Range{Digest: manifest.Sum(content), Len: int64(len(content))})
	}
	lib := must(OpenLibrary(b.TempDir()))(b)
	publish(b, lib, "web", root)
	live := lib.Live()
	defer func() { _ = live.Close() }()
	b.SetBytes(1000 * 8 << 10)
	for b.Loop() {
		check(b, live.FetchBatch(b.Context(), want, func(_ int, _ []byte, err error) error { return err }))
	}
}
