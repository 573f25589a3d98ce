package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

func TestMakeOrder(t *testing.T) {
	files := []Mark{
		{"/etc/app/app.conf", RankUsed},
		{"/etc/app/more.conf", RankRule},
		{"/etc/app/other.conf", RankRule},
		{"/usr/lib/liba.so", RankLibrary},
		{"/usr/lib/libb.so", RankLibrary},
		{"/usr/lib/plugin.so", RankPackage},
		{"/usr/sbin/app", RankUsed},
		{"/usr/share/app/x", RankPackage},
		{"/usr/share/app/y", RankPackage},
		{"/var/lib/app/index", RankUsed},
		{"/var/lib/app/mail/1", RankData},
		{"/var/lib/app/mail/2", RankData},
		{"/var/lib/app/mail/deep/3", RankData},
	}
	o := MakeOrder(files)
	k := o.Ranking()
	for _, f := range files {
		if got := k.Of(f.Path); got != f.Rank {
			t.Errorf("%s has rank %v, want %v; marks %v", f.Path, got, f.Rank, o)
		}
	}
	if len(o) > 8 {
		t.Errorf("%d marks: %v", len(o), o)
	}
	if got, want := k.Present(), []Rank{RankUsed, RankPackage, RankLibrary, RankRule, RankData}; !slices.Equal(got, want) {
		t.Errorf("present %v", got)
	}
	for p, want := range map[string]bool{"/": true, "/var": true, "/var/lib/app": true, "/var/lib/app/mail/deep": true, "/usr": false, "/etc/app": false} {
		if k.Has(p, RankData) != want {
			t.Errorf("%s has data: %v", p, !want)
		}
	}
	if got := Order(nil).Ranking(); got.Of("/x") != RankUsed || !slices.Equal(got.Present(), []Rank{RankUsed}) {
		t.Errorf("no order: %v, %v", got.Of("/x"), got.Present())
	}
	if MakeOrder(nil) != nil || MakeOrder([]Mark{{"/a", RankUsed}}) != nil {
		t.Error("marks where nothing differs")
	}
}

// Whatever the tree, each file gets its rank, a tree of one kind takes few marks,
// and what Has denies is not there.
func TestMakeOrderOfRandomTrees(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		seen := map[string]bool{}
		var files []Mark
		for range rng.IntN(60) {
			p := ""
			for range 1 + rng.IntN(5) {
				p += fmt.Sprintf("/%d", rng.IntN(4))
			}
			if p += "f"; !seen[p] {
				seen[p] = true
				files = append(files, Mark{p, Rank(rng.IntN(Ranks))})
			}
		}
		o := MakeOrder(files)
		b, err := o.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeOrder(b)
		if err != nil || len(again) != len(o) || len(o) > 0 && !reflect.DeepEqual(again, o) {
			t.Fatalf("%v became %v, %v", o, again, err)
		}
		k := again.Ranking()
		for _, f := range files {
			if k.Of(f.Path) != f.Rank {
				t.Fatalf("%v is %v by %v", f, k.Of(f.Path), o)
			}
			for p := range above(f.Path) {
				if !k.Has(p, f.Rank) {
					t.Fatalf("%s is said to have no %v, but has %s", p, f.Rank, f.Path)
				}
			}
		}
	}
	many := make([]Mark, 100_000)
	for i := range many {
		many[i] = Mark{fmt.Sprintf("/var/mail/%d/%d", i%100, i), RankData}
	}
	if o := MakeOrder(many); len(o) != 1 {
		t.Errorf("%d marks for a tree of one kind", len(o))
	}
}

func TestOrderRefuses(t *testing.T) {
	for _, o := range []Order{{{"etc", 0}}, {{"/etc/", 0}}, {{"/b", 1}, {"/a", 1}}, {{"/a", 1}, {"/a", 2}}, {{"/a", Ranks}}, make(Order, maxMarks+1)} {
		if _, err := o.Encode(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.3v: %v", o, err)
		}
	}
	good, err := Order{{"/etc", RankRule}, {"/etc/app", RankData}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := DecodeOrder(good[:n]); !errors.Is(err, ErrInvalid) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func FuzzDecodeOrder(f *testing.F) {
	b, _ := Order{{"/", RankLibrary}, {"/etc", RankRule}, {"/etc/app", RankData}, {"/var", RankUsed}}.Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := DecodeOrder(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("not ErrInvalid: %v", err)
			}
			return
		}
		if again, err := o.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a second encoding of one order (%v): %x and %x", err, b, again)
		}
		o.Ranking().Present()
	})
}
