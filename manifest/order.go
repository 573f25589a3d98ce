package manifest

import (
	"fmt"
	"slices"
	"strings"
)

// A Rank says how soon a file is wanted on a standby, beside those that the
// profile names: the lowest first.
type Rank uint8

// The ranks.
const (
	RankUsed    Rank   = iota // the service used it, or the administrator named it
	RankPackage               // it belongs to a package that the service needs
	RankLibrary               // a program or library that is in needs it
	RankRule                  // a rule asks for it
	RankData                  // the service's data
	Ranks       = iota        // how many there are
)

var rankNames = [Ranks]string{"used", "package", "library", "rule", "data"}

// String returns the rank's name: "used", "package", "library", "rule" or "data".
func (r Rank) String() string {
	if r < Ranks {
		return rankNames[r]
	}
	return fmt.Sprintf("rank(%d)", uint8(r))
}

// A Mark gives a path, and all that is below it, a rank, as far as no mark
// further below says otherwise.
type Mark struct {
	Path string
	Rank Rank
}

// An Order says in which order a tree's files are wanted: marks in the byte
// order of their paths, no path twice. What no mark covers has RankUsed. It is a
// hint and changes nothing of what a tree holds.
type Order []Mark

// maxMarks bounds an Order. A tree in which files of all ranks lie side by side
// everywhere is better off with none.
const maxMarks = 256 << 10

// orderMagic begins every encoded Order.
const orderMagic = "srvfs order 1\n"

// Encode returns the order's canonical form: the magic, the number of marks, and
// of each the length of the prefix that it shares with the path before, the rest,
// and the rank. The error wraps ErrInvalid.
func (o Order) Encode() ([]byte, error) {
	w := encoder{b: []byte(orderMagic)}
	w.uint(uint64(len(o)))
	last := ""
	for i, m := range o {
		if err := m.validate(i == 0, last); err != nil {
			return nil, err
		}
		n := shared(last, m.Path)
		w.uint(uint64(n))
		w.string(m.Path[n:])
		w.byte(byte(m.Rank))
		last = m.Path
	}
	if len(o) > maxMarks || len(w.b) > MaxMeta {
		return nil, fmt.Errorf("order of %d marks in %d bytes: too long: %w", len(o), len(w.b), ErrInvalid)
	}
	return w.b, nil
}

// DecodeOrder reads what Encode wrote. The error wraps ErrInvalid.
func DecodeOrder(b []byte) (Order, error) {
	r := decoder{what: "order", b: b}
	if len(b) > MaxMeta {
		r.fail("%d bytes exceed %d", len(b), MaxMeta)
	}
	if string(r.take(len(orderMagic))) != orderMagic {
		r.fail("not an order, or of a format that this version does not know")
	}
	o := make(Order, r.count(maxMarks, 3, "marks"))
	last := ""
	for i := range o {
		n := int(r.upTo(uint64(len(last)), "shared prefix"))
		p := last[:n] + r.string(MaxPath, "path")
		o[i] = Mark{Path: p, Rank: Rank(r.byte())}
		if r.err != nil {
			return nil, r.err
		}
		if err := o[i].validate(i == 0, last); err != nil {
			return nil, err
		}
		if n != shared(last, p) {
			r.fail("%.300q shares more than %d bytes with the path before", p, n)
		}
		last = p
	}
	return o, r.finish()
}

func (m Mark) validate(first bool, last string) error {
	if !ValidPath(m.Path) || !first && m.Path <= last || m.Rank >= Ranks {
		return fmt.Errorf("order: %v of %.300q after %.300q: %w", m.Rank, m.Path, last, ErrInvalid)
	}
	return nil
}

// shared returns the length of the longest common prefix.
func shared(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// A Ranking answers questions about an Order in constant time.
type Ranking struct {
	ranks map[string]Rank
	below map[string]uint8 // what ranks marks below a path have, a bit for each
}

// Ranking returns the order's answers. That of an empty Order is: RankUsed.
func (o Order) Ranking() *Ranking {
	k := &Ranking{ranks: make(map[string]Rank, len(o)), below: map[string]uint8{}}
	for _, m := range o {
		k.ranks[m.Path] = m.Rank
		for p := range above(m.Path) {
			k.below[p] |= 1 << m.Rank
		}
	}
	return k
}

// Of returns the rank of the path.
func (k *Ranking) Of(p string) Rank {
	if len(k.ranks) == 0 {
		return RankUsed
	}
	if r, ok := k.ranks[p]; ok {
		return r
	}
	for dir := range above(p) {
		if r, ok := k.ranks[dir]; ok {
			return r
		}
	}
	return RankUsed
}

// Has reports whether something of that rank can be at the path p or below.
func (k *Ranking) Has(p string, r Rank) bool {
	return k.below[p]&(1<<r) != 0 || k.Of(p) == r
}

// Present returns the ranks that the order gives to anything, in order.
func (k *Ranking) Present() []Rank {
	var out []Rank
	for r := range Rank(Ranks) {
		if k.Has("/", r) {
			out = append(out, r)
		}
	}
	return out
}

// above yields the folders above the path p, the nearest first.
func above(p string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for len(p) > 1 {
			i := len(p) - 1
			for p[i] != '/' {
				i--
			}
			if p = p[:max(i, 1)]; !yield(p) {
				return
			}
		}
	}
}

// MakeOrder returns a short Order that gives each of the files its rank, or nil
// if it would be too long to be of use.
//
// A folder has the rank that most of what is directly in it has; marks stand
// where something differs from its folder.
func MakeOrder(files []Mark) Order {
	type tally [Ranks]int
	folders := map[string]*tally{}
	children := map[string][]Mark{} // folders, their rank unknown yet, with their own
	var order []string
	var enter func(dir string) *tally
	enter = func(dir string) *tally {
		t := folders[dir]
		if t == nil {
			t = &tally{}
			folders[dir] = t
			order = append(order, dir)
			for up := range above(dir) {
				enter(up)
				break
			}
		}
		return t
	}
	for _, f := range files {
		for dir := range above(f.Path) {
			enter(dir)[f.Rank]++
			children[dir] = append(children[dir], f)
			break
		}
	}
	// The deepest first: what is below counts as one, by the rank that it got.
	slices.SortFunc(order, func(a, b string) int { return len(b) - len(a) })
	ranks := map[string]Rank{}
	for _, dir := range order {
		t := folders[dir]
		best := Rank(0)
		for r := range Rank(Ranks) {
			if t[r] > t[best] {
				best = r
			}
		}
		ranks[dir] = best
		for up := range above(dir) {
			folders[up][best]++
			children[up] = append(children[up], Mark{dir, best})
			break
		}
	}
	var o Order
	if r, ok := ranks["/"]; ok && r != RankUsed {
		o = append(o, Mark{"/", r})
	}
	for dir, in := range children {
		for _, c := range in {
			if c.Rank != ranks[dir] {
				o = append(o, c)
			}
		}
		if len(o) > maxMarks {
			return nil
		}
	}
	slices.SortFunc(o, func(a, b Mark) int { return strings.Compare(a.Path, b.Path) })
	return o
}
