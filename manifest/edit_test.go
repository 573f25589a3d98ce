package manifest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
)

// A forest is a tree as a map: what it is that edits change one by one, and what is
// encoded as a whole.
type forest map[string]Entry

// whole encodes all of it.
func (f forest) whole(t *testing.T, src *shelf) (Entry, Totals) {
	t.Helper()
	totals := Totals{Entries: uint64(len(f) - 1)}
	seen := map[uint64]bool{}
	var dir func(p string) Entry
	dir = func(p string) Entry {
		e := f[p]
		totals.Dirs++
		e.Links = 2
		var entries []Entry
		for q, c := range f {
			if q == "/" || path.Dir(q) != p {
				continue
			}
			c.Name = path.Base(q)
			if c.Type == Dir {
				c = dir(q)
				c.Name = path.Base(q)
				e.Links++
			} else if c.Link == 0 || !seen[c.Link] {
				seen[c.Link] = true
				totals.Files++
				totals.Bytes += uint64(c.Size)
			}
			entries = append(entries, c)
		}
		slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
		var err error
		if e.Digest, err = EncodeDirectory(entries, func(d Digest, b []byte) error { src.all[d] = b; return nil }); err != nil {
			t.Fatal(err)
		}
		return e
	}
	return dir("/"), totals
}

func fileOf(content string) Entry {
	return Entry{Type: File, Mode: 0o644, Links: 1, Size: int64(len(content)), Digest: Sum([]byte(content))}
}

// Whatever is edited, the result is what encoding everything anew gives.
func TestApply(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	now := forest{"/": {Type: Dir, Mode: 0o755}}
	for i := range 700 {
		now[fmt.Sprintf("/f%d", i)] = fileOf(fmt.Sprint(i))
	}
	src := &shelf{all: map[Digest][]byte{}}
	root, totals := now.whole(t, src)
	names := []string{"a", "a.b", "a-b", "b", "c0", "c1"}
	for round := range 600 {
		after := maps.Clone(now)
		edits := map[string]*Entry{}
		remove := func(p string) {
			for q := range after {
				if q == p || strings.HasPrefix(q, p+"/") {
					delete(after, q)
				}
			}
			edits[p] = nil
		}
		set := func(p string, e Entry) {
			if _, ok := after[path.Dir(p)]; !ok || after[path.Dir(p)].Type != Dir {
				return
			}
			if was, ok := after[p]; ok && was.Type == Dir && e.Type != Dir {
				remove(p)
			}
			after[p] = e
			edits[p] = &e
		}
		for range 1 + rng.IntN(8) {
			p := ""
			for range 1 + rng.IntN(3) {
				p += "/" + names[rng.IntN(len(names))]
			}
			switch rng.IntN(6) {
			case 0:
				if _, ok := after[p]; ok {
					remove(p)
				}
			case 1, 2:
				set(p, Entry{Type: Dir, Mode: uint32(rng.IntN(0o777)), Mtime: Time{Sec: int64(round)}})
			case 3:
				set("/", Entry{Type: Dir, Mode: 0o755, Mtime: Time{Sec: int64(round)}})
			default:
				set(p, fileOf(fmt.Sprint(rng.IntN(50))))
			}
		}
		// A path that goes and comes, with what was below it, is one edit each; what was
		// in a folder that was removed and made again is gone one by one.
		for p, e := range edits {
			if e == nil || e.Type != Dir {
				continue
			}
			for q := range now {
				if _, still := after[q]; strings.HasPrefix(q, p+"/") && !still {
					edits[q] = nil
				}
			}
		}
		list := listOf(edits, func(p string) bool { _, ok := after[p]; return ok })
		gotRoot, gotTotals, err := Apply(t.Context(), src, root, totals, list, func(d Digest, b []byte) error { src.all[d] = b; return nil })
		if err != nil {
			t.Fatalf("round %d: %v\n%v", round, err, slices.Sorted(maps.Keys(edits)))
		}
		wantRoot, wantTotals := after.whole(t, src)
		if gotTotals != wantTotals || gotRoot.Digest != wantRoot.Digest || gotRoot.Links != wantRoot.Links || gotRoot.Mtime != wantRoot.Mtime {
			t.Fatalf("round %d, %v:\ngot  %+v %+v\nwant %+v %+v", round, slices.Sorted(maps.Keys(edits)), gotRoot, gotTotals, wantRoot, wantTotals)
		}
		now, root, totals = after, gotRoot, gotTotals
	}
}

// listOf puts edits in order. What lies below a path that has gone altogether, or that
// is no directory any more, needs none.
func listOf(edits map[string]*Entry, there func(string) bool) (list []Edit) {
	for _, p := range slices.Sorted(maps.Keys(edits)) {
		e := edits[p]
		if !there(p) {
			e = nil
		}
		covered := false
		for d := path.Dir(p); e == nil && d != "/" && !covered; d = path.Dir(d) {
			above, ok := edits[d]
			covered = ok && (above == nil || !there(d) || above.Type != Dir)
		}
		if !covered {
			list = append(list, Edit{p, e})
		}
	}
	return list
}

func TestApplyLinks(t *testing.T) {
	src := &shelf{all: map[Digest][]byte{}}
	put := func(d Digest, b []byte) error { src.all[d] = b; return nil }
	linked := func(names uint32, link uint64) *Entry {
		e := fileOf("linked")
		e.Links, e.Link = names, link
		return &e
	}
	before := forest{"/": {Type: Dir}, "/d": {Type: Dir}, "/a": *linked(2, 7), "/d/b": *linked(2, 7)}
	root, totals := before.whole(t, src)
	plain := fileOf("linked")
	for name, x := range map[string]struct {
		edits []Edit
		after forest
	}{
		"one name goes":   {[]Edit{{"/a", &plain}, {"/d", nil}}, forest{"/": {Type: Dir}, "/a": plain}},
		"one comes":       {[]Edit{{"/a", linked(3, 7)}, {"/c", linked(3, 7)}, {"/d/b", linked(3, 7)}}, forest{"/": {Type: Dir}, "/d": {Type: Dir}, "/a": *linked(3, 7), "/c": *linked(3, 7), "/d/b": *linked(3, 7)}},
		"all go":          {[]Edit{{"/a", nil}, {"/d/b", nil}}, forest{"/": {Type: Dir}, "/d": {Type: Dir}}},
		"another one too": {[]Edit{{"/x", linked(2, 9)}, {"/y", linked(2, 9)}}, forest{"/": {Type: Dir}, "/d": {Type: Dir}, "/a": *linked(2, 7), "/d/b": *linked(2, 7), "/x": *linked(2, 9), "/y": *linked(2, 9)}},
	} {
		gotRoot, gotTotals, err := Apply(t.Context(), src, root, totals, x.edits, put)
		wantRoot, wantTotals := x.after.whole(t, src)
		if err != nil || gotRoot.Digest != wantRoot.Digest || gotTotals != wantTotals {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, gotTotals, wantTotals)
		}
	}
	dir := Entry{Type: Dir}
	for name, edits := range map[string][]Edit{
		"half a file":           {{"/a", nil}},
		"half a file in a dir":  {{"/d", nil}},
		"out of order":          {{"/b", &plain}, {"/a", nil}},
		"twice":                 {{"/b", &plain}, {"/b", &plain}},
		"relative":              {{"b", &plain}},
		"below nothing":         {{"/n/b", &plain}},
		"below a file":          {{"/a/b", &plain}},
		"below what has gone":   {{"/a", nil}, {"/a/b", &plain}, {"/d", nil}},
		"no root":               {{"/", nil}},
		"a file for a root":     {{"/", &plain}},
		"gone below a new file": {{"/d", &plain}, {"/d/b", nil}},
		"no type":               {{"/b", &Entry{}}},
	} {
		if _, _, err := Apply(t.Context(), src, root, totals, edits, put); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, got, err := Apply(t.Context(), src, root, totals, []Edit{{"/e", &dir}}, put); err != nil || got.Dirs != totals.Dirs+1 {
		t.Error(got, err)
	}
}

// One name more in a folder of 100,000 makes few new pages: what a standby fetches.
func TestApplyMovesLittle(t *testing.T) {
	src := &shelf{all: map[Digest][]byte{}}
	queue := make([]Entry, 0, 100_000)
	for i := range 100_000 {
		e := fileOf("x")
		e.Name = fmt.Sprintf("%08d.mail.example.org", i)
		queue = append(queue, e)
	}
	put := func(d Digest, b []byte) error { src.all[d] = b; return nil }
	d, err := EncodeDirectory(queue, put)
	if err != nil {
		t.Fatal(err)
	}
	top, err := EncodeDirectory([]Entry{{Name: "queue", Type: Dir, Links: 2, Digest: d}}, put)
	if err != nil {
		t.Fatal(err)
	}
	root, totals := Entry{Type: Dir, Links: 3, Digest: top}, Totals{Entries: 100_001, Files: 100_000, Bytes: 100_000, Dirs: 2}
	for name, path := range map[string]string{"one more": "/queue/00050000.new", "one changed": "/queue/00070000.mail.example.org"} {
		fresh := 0
		e := fileOf("new")
		if _, _, err := Apply(t.Context(), src, root, totals, []Edit{{path, &e}}, func(d Digest, b []byte) error {
			if src.all[d] == nil {
				fresh += len(b)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes of new pages", name, fresh)
		if fresh > 64<<10 {
			t.Errorf("%s: %d bytes", name, fresh)
		}
	}
}

// Of a large directory the leaves with what has changed are encoded anew, and no others.
func TestApplyInALargeDirectory(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	now := forest{"/": {Type: Dir, Mode: 0o755}, "/d": {Type: Dir, Mode: 0o755}}
	for i := range 6000 {
		now[fmt.Sprintf("/d/mail-%d", i)] = fileOf(fmt.Sprint(i))
	}
	src := &shelf{all: map[Digest][]byte{}}
	root, totals := now.whole(t, src)
	for round := range 60 {
		edits := map[string]*Entry{}
		for range 1 + rng.IntN(3) {
			p := fmt.Sprintf("/d/mail-%d", rng.IntN(7000)) // some are new
			switch e := fileOf(fmt.Sprint("round ", round)); {
			case rng.IntN(4) == 0 && now[p].Type != 0:
				delete(now, p)
				edits[p] = nil
			case rng.IntN(8) == 0:
				d := Entry{Type: Dir, Mode: 0o700}
				now[p], edits[p] = d, &d
			default:
				now[p], edits[p] = e, &e
			}
		}
		if round%20 == 19 { // a run of names, and with it every cut in it
			for i := range 700 {
				p := fmt.Sprintf("/d/mail-1%d", i)
				delete(now, p)
				edits[p] = nil
			}
		}
		list := listOf(edits, func(p string) bool { return true })
		pages := 0
		got, sum, err := Apply(t.Context(), src, root, totals, list, func(d Digest, b []byte) error {
			pages++
			src.all[d] = b
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want, counted := now.whole(t, src)
		if got.Digest != want.Digest || sum != counted {
			t.Fatalf("round %d: %v, %+v, want %v, %+v", round, got.Digest, sum, want.Digest, counted)
		}
		if len(list) <= 3 && pages > 12 {
			t.Errorf("round %d: %d edits made %d pages", round, len(list), pages)
		}
		root, totals = got, sum
	}
}
