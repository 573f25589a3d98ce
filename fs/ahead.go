package fs

import (
	"slices"
	"sync"

	"srvfs/manifest"
)

// The window of a run: how many files it is ahead of the program that reads. As
// the kernel's read-ahead of a file does, it begins small and grows as the guess
// turns out right.
const (
	aheadFirst = 4
	aheadGrow  = 4       // times, until
	aheadFiles = 512     // files, or
	aheadBytes = 4 << 20 // bytes of them
	// aheadLargest is the size of the largest file that is asked for ahead, in
	// bytes. A larger one has its own read-ahead, of its parts.
	aheadLargest = 1 << 20
	// aheadGap is how many files, which may be here already or empty, may lie
	// between two that are opened one after the other.
	aheadGap = 4
	// aheadSteps bounds the names that one search for the next file looks at.
	aheadSteps = 4096
	// aheadKept is how many programs can be followed at a time.
	aheadKept = 8
)

// An ahead asks the content for what will be wanted next. It follows programs
// that open files in the order of a walk ([run]) and programs that list
// directories in that order ([walk]); the order is that of the table, depth
// first, which is also that of every listing.
type ahead struct {
	to Anticipator // nil: nobody to ask

	mu                 sync.Mutex
	runs               []*run  // the one that advanced last first
	walks              []*walk // likewise
	files, directories uint64  // asked for
}

// A run is a program that opens one file after the other.
type run struct {
	last   slot // opened last
	length int  // opens in order, so far
	window int
	asked  []slot // asked for and not opened yet, in order
	next   slot   // the last name that was considered
	block  slot   // the directory after it that is being loaded, or 0
}

// reset forgets the programs that are followed: the order of what they read is another.
func (a *ahead) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.runs, a.walks = nil, nil
}

// opened takes note that the file in s was opened for the first time, or read
// for the first time in a while, and asks for those that will be next. Nothing
// here waits.
func (v *View) opened(s slot) {
	a := &v.ahead
	if a.to == nil {
		return
	}
	v.tree.RLock()
	defer v.tree.RUnlock()
	a.mu.Lock()
	r := v.follow(s)
	var block slot
	var want []manifest.Content
	if r.window > 0 && 2*len(r.asked) <= r.window {
		want, block = v.extend(r)
		if block == r.block {
			block = 0 // it is under way
		} else {
			r.block = block
		}
	}
	a.files += uint64(len(want))
	if block != 0 {
		v.scout(nil, []slot{block})
	}
	a.mu.Unlock()
	if len(want) > 0 {
		a.to.ReadAhead(want)
	}
}

// follow returns the run that the open of s belongs to, and brings it up to date.
func (v *View) follow(s slot) *run {
	a := &v.ahead
	for i, r := range a.runs {
		k := slices.Index(r.asked, s)
		if k < 0 {
			continue
		}
		front(a.runs, i)
		// What was passed over was asked for in vain, or somebody else had it
		// already: the one is a reason to ask for less, the other none to stop.
		if 2*k > r.window {
			r.window = max(aheadFirst, r.window/aheadGrow)
		}
		r.last, r.length, r.asked = s, r.length+1, r.asked[k+1:]
		if 2*len(r.asked) <= r.window {
			r.window = min(aheadGrow*r.window, aheadFiles)
		}
		return r
	}
	for i, r := range a.runs {
		if !v.shortlyAfter(r.last, s) {
			continue
		}
		front(a.runs, i)
		r.last, r.length, r.asked, r.next = s, r.length+1, nil, s
		// Two files that are neighbours are opened by any program; three, or two
		// in a directory that was just listed, are a run.
		if r.length > 2 || v.wasListed(v.table.at(s).parent) {
			r.window = max(r.window, aheadFirst)
		}
		return r
	}
	r := &run{last: s, length: 1, next: s}
	a.runs = slices.Insert(a.runs, 0, r)
	a.runs = a.runs[:min(len(a.runs), aheadKept)]
	return r
}

// front moves the i-th of a list to its front.
func front[T any](all []T, i int) {
	x := all[i]
	copy(all[1:i+1], all[:i])
	all[0] = x
}

// shortlyAfter reports whether the file in s is one of the next few after last.
func (v *View) shortlyAfter(last, s slot) bool {
	n, files := last, 0
	for range aheadSteps {
		var ok bool
		if n, ok = v.after(n, v.root); !ok {
			return false
		}
		if n == s {
			return true
		}
		if v.table.class(v.table.at(n)).is(manifest.File) {
			if files++; files > aheadGap {
				return false
			}
		}
	}
	return false
}

// extend returns the files that fill r's window, and the directory that stands
// in the way, if there is one that has to be loaded first.
func (v *View) extend(r *run) (want []manifest.Content, block slot) {
	var bytes int64
	for _, s := range r.asked {
		bytes += int64(v.table.at(s).value)
	}
	for range aheadSteps {
		if len(r.asked) >= r.window || bytes >= aheadBytes {
			break
		}
		s, ok := v.after(r.next, v.root)
		if !ok {
			break
		}
		n := v.table.at(s)
		c := v.table.class(n)
		if c.is(manifest.Dir) {
			if !n.loaded() {
				return want, s
			}
		}
		r.next = s
		if c.is(manifest.File) && c.parts&partAlias == 0 && n.value > 0 && n.value <= aheadLargest {
			r.asked = append(r.asked, s)
			bytes += int64(n.value)
			want = append(want, v.contentOf(s))
		}
	}
	return want, 0
}

// after returns the name that a walk depth first reaches after s, and stays
// below top. What is not loaded has nothing in it.
func (v *View) after(s, top slot) (slot, bool) {
	if n := v.table.at(s); v.table.class(n).is(manifest.Dir) {
		if l := v.table.children(n); l.count > 0 {
			return l.at(0), true
		}
	}
	return v.beside(s, top)
}

// beside is after, without what is in s.
func (v *View) beside(s, top slot) (slot, bool) {
	for s != top && s != 0 {
		parent := v.table.at(s).parent
		l := v.table.children(v.table.at(parent))
		if i := v.table.place(l, s); i >= 0 && i+1 < l.count {
			return l.at(i + 1), true
		}
		s = parent
	}
	return 0, false
}
