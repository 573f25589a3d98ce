package pkgdb

// Owners is an index from paths to the packages that have them, by number. Most
// paths have one owner, and there are hundreds of thousands of them: those cost a
// number each, and no list.
type Owners struct {
	byPath map[string]int32 // the number of the only owner, or -1-i where shared[i] are several
	shared [][]int32
}

// NewOwners makes the index of n packages; files returns the paths of number i.
// Owners come out in the order of their numbers.
func NewOwners(n int, files func(i int) []string) *Owners {
	total := 0
	for i := range n {
		total += len(files(i))
	}
	o := &Owners{byPath: make(map[string]int32, total/2)}
	for i := range int32(n) {
		for _, f := range files(int(i)) {
			o.add(f, i)
		}
	}
	return o
}

func (o *Owners) add(path string, number int32) {
	old, ok := o.byPath[path]
	switch {
	case !ok:
		o.byPath[path] = number
	case old >= 0:
		if old != number {
			o.byPath[path] = int32(-1 - len(o.shared))
			o.shared = append(o.shared, []int32{old, number})
		}
	default:
		if s := o.shared[-1-old]; s[len(s)-1] != number {
			o.shared[-1-old] = append(s, number)
		}
	}
}

// Of returns the numbers of the packages that have path; nil if none has.
func (o *Owners) Of(path string) []int32 {
	n, ok := o.byPath[path]
	switch {
	case !ok:
		return nil
	case n >= 0:
		return []int32{n}
	}
	return o.shared[-1-n]
}
