package manifest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// A shelf holds encoded pages and counts what is asked for.
type shelf struct {
	all          map[Digest][]byte
	calls, asked int
}

func (p *shelf) Meta(_ context.Context, digests []Digest) ([][]byte, error) {
	p.calls++
	out := make([][]byte, len(digests))
	for i, d := range digests {
		p.asked++
		if out[i] = p.all[d]; out[i] == nil {
			return nil, fmt.Errorf("page %v: %w", d, ErrNotFound)
		}
	}
	return out, nil
}

// snapshot encodes a tree of files, given by their paths and content: one that ends
// with "/" is a folder. The mode of a folder is the length of its content.
func (p *shelf) snapshot(t *testing.T, files map[string]string) *Snapshot {
	t.Helper()
	s := &Snapshot{Service: "web", Sequence: 1}
	var dir func(at string) Digest
	dir = func(at string) Digest {
		names := map[string]bool{}
		for f := range files {
			if rest, ok := strings.CutPrefix(f, at); ok && rest != "" {
				name, _, _ := strings.Cut(rest, "/")
				names[name] = true
			}
		}
		var entries []Entry
		for _, name := range slices.Sorted(maps.Keys(names)) {
			e := Entry{Name: name, Links: 1, Mode: 0o644}
			if content, ok := files[at+name]; ok {
				e.Type, e.Size, e.Digest = File, int64(len(content)), Sum([]byte(content))
				s.Totals.Files++
			} else {
				e.Type, e.Links, e.Mode, e.Digest = Dir, 2, uint32(len(files[at+name+"/"])), dir(at+name+"/")
				s.Totals.Dirs++
			}
			entries = append(entries, e)
		}
		s.Totals.Entries += uint64(len(entries))
		d, err := EncodeDirectory(entries, func(d Digest, b []byte) error { p.all[d] = b; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	s.Root = Entry{Type: Dir, Mode: 0o755, Links: 2, Digest: dir("/")}
	return s
}

// differ finds by looking at everything what Compare finds by looking at little.
func differ(a, b map[string]string) []string {
	see := func(files map[string]string) map[string]string {
		all := map[string]string{}
		for f, content := range files {
			all[strings.TrimSuffix(f, "/")] = content
			for d := path.Dir(f); d != "/" && !strings.HasSuffix(f, "/"); d = path.Dir(d) {
				if _, ok := all[d]; !ok {
					all[d] = "dir" + files[d+"/"]
				}
			}
		}
		for f, content := range files {
			if d, ok := strings.CutSuffix(f, "/"); ok {
				all[d] = "dir" + content
				for d = path.Dir(d); d != "/"; d = path.Dir(d) {
					all[d] = "dir" + files[d+"/"]
				}
			}
		}
		return all
	}
	before, after := see(a), see(b)
	var out []string
	for p, content := range before {
		if now, ok := after[p]; !ok {
			out = append(out, p+" -")
		} else if now != content {
			out = append(out, p+" ~")
		}
	}
	for p := range after {
		if _, ok := before[p]; !ok {
			out = append(out, p+" +")
		}
	}
	slices.Sort(out)
	return out
}

func TestCompare(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range 200 {
		before := map[string]string{}
		for range rng.IntN(300) {
			before[fmt.Sprintf("/d%d/e%d/f%d", rng.IntN(4), rng.IntN(3), rng.IntN(100))] = fmt.Sprint(rng.IntN(5))
		}
		if round%10 == 0 {
			for i := range 3000 {
				before[fmt.Sprintf("/many/%d", i)] = "x"
			}
		}
		after := maps.Clone(before)
		for range rng.IntN(10) {
			p := fmt.Sprintf("/d%d/e%d/f%d", rng.IntN(5), rng.IntN(3), rng.IntN(100))
			switch rng.IntN(5) {
			case 0:
				delete(after, p)
			case 1:
				d := path.Dir(p) + "/"
				maps.DeleteFunc(after, func(f, _ string) bool { return strings.HasPrefix(f, d) })
				if rng.IntN(2) == 0 {
					after[path.Dir(p)] = "a file in place of a folder"
				}
			case 2:
				if _, file := after[path.Dir(p)]; !file {
					after[path.Dir(p)+"/"] = strings.Repeat("x", rng.IntN(3)) // its mode
				}
			default:
				if _, file := after[path.Dir(p)]; !file {
					after[p] = fmt.Sprint(rng.IntN(9))
				}
			}
			after[fmt.Sprintf("/many/%d", rng.IntN(4000))] = "y"
		}
		src := &shelf{all: map[Digest][]byte{}}
		a, b := src.snapshot(t, before), src.snapshot(t, after)
		changes, err := Compare(t.Context(), src, a, b)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range changes {
			kind := " ~"
			if c.Before == nil {
				kind = " +"
			} else if c.After == nil {
				kind = " -"
			}
			got = append(got, c.Path+kind)
		}
		if !slices.IsSortedFunc(changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) }) {
			t.Error("not in order")
		}
		slices.Sort(got)
		if want := differ(before, after); !slices.Equal(got, want) {
			t.Fatalf("round %d:\ngot  %q\nwant %q", round, got, want)
		}
	}
}

// One name more in a folder of 100,000 costs a few pages.
// What CompareDirectories finds is what a look at all entries finds.
func TestCompareDirectories(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	src := &shelf{all: map[Digest][]byte{}}
	directory := func(entries map[string]Entry) Digest {
		var all []Entry
		for _, n := range slices.Sorted(maps.Keys(entries)) {
			all = append(all, entries[n])
		}
		d, err := EncodeDirectory(all, func(d Digest, b []byte) error { src.all[d] = b; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var pairs []Pair
	var want [][]Change
	for range 40 {
		before := map[string]Entry{}
		for range rng.IntN(3000) {
			e := fileOf(fmt.Sprint(rng.IntN(5)))
			e.Name = fmt.Sprint("f", rng.IntN(5000))
			before[e.Name] = e
		}
		after := maps.Clone(before)
		for range rng.IntN(8) {
			name := fmt.Sprint("f", rng.IntN(5000))
			e, there := after[name]
			switch {
			case there && rng.IntN(3) == 0:
				delete(after, name)
			case there: // of which Compare says nothing
				e.Links, e.Link = 2, uint64(1+rng.IntN(3))
				after[name] = e
			default:
				e = fileOf("new")
				e.Name = name
				after[name] = e
			}
		}
		pair := Pair{directory(before), directory(after)}
		if rng.IntN(10) == 0 {
			pair.Before, before = Digest{}, nil
		}
		var changes []Change
		names := maps.Clone(after)
		maps.Copy(names, before)
		for _, n := range slices.Sorted(maps.Keys(names)) {
			b, was := before[n]
			a, is := after[n]
			c := Change{Path: n}
			if was {
				c.Before = &b
			}
			if is {
				c.After = &a
			}
			if !was || !is || !a.Equal(&b) {
				changes = append(changes, c)
			}
		}
		pairs, want = append(pairs, pair), append(want, changes)
	}
	got, err := CompareDirectories(t.Context(), src, pairs, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("pair %d: %d changes, want %d", i, len(got[i]), len(want[i]))
		}
	}
	if _, err := CompareDirectories(t.Context(), src, pairs, 100); !errors.Is(err, ErrInvalid) {
		t.Errorf("more names than allowed: %v", err)
	}
}

func TestCompareVisitsLittle(t *testing.T) {
	src := &shelf{all: map[Digest][]byte{}}
	files := map[string]string{}
	for i := range 20_000 {
		files[fmt.Sprintf("/queue/%d", i)] = "x"
	}
	for i := range 200 {
		files[fmt.Sprintf("/other/%d/x", i)] = "x"
	}
	a := src.snapshot(t, files)
	files["/queue/new"] = "y"
	b := src.snapshot(t, files)
	changes, err := Compare(t.Context(), src, a, b)
	if err != nil || len(changes) != 1 || changes[0].Path != "/queue/new" {
		t.Fatalf("%+v, %v", changes, err)
	}
	t.Logf("%d pages in %d requests", src.asked, src.calls)
	if src.asked > 8 || src.calls > 4 {
		t.Errorf("%d pages in %d requests", src.asked, src.calls)
	}
	if same, err := Compare(t.Context(), src, b, b); err != nil || len(same) != 0 {
		t.Errorf("%+v, %v", same, err)
	}
	b.Totals, a.Totals = Totals{}, Totals{}
	liar := src.snapshot(t, map[string]string{"/x": "x"})
	liar.Totals = Totals{}
	if _, err := Compare(t.Context(), src, a, liar); !errors.Is(err, ErrInvalid) {
		t.Errorf("a tree of more than it says: %v", err)
	}
	delete(src.all, b.Root.Digest)
	if _, err := Compare(t.Context(), src, a, b); !errors.Is(err, ErrNotFound) {
		t.Errorf("a page that is not there: %v", err)
	}
}
