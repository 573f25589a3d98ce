package trace

import (
	"slices"
	"sync"
)

// A Read is a part of a file that was read, or mapped: the first use of it.
type Read struct {
	Path     string // canonical in the sandbox's root
	Off, Len int64  // in bytes; it may lead past the end of the file
	// After is how many accesses had been seen before.
	After int
}

// readUnit is the grain in which reads are kept, in bytes.
const readUnit = 64 << 10

// maxReadUnits bounds what one Tracer keeps of reads: 64 GiB of touched content.
const maxReadUnits = 1 << 20

// reads collects the reads of the files that wanted asks for.
type reads struct {
	wanted func(path string) bool

	mu   sync.Mutex
	seen map[string]map[int64]struct{} // units by path; nil: not wanted
	n    int
	list []Read
}

// want reports whether reads of the file count.
func (r *reads) want(path []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	units, known := r.seen[string(path)]
	if !known {
		p := string(path)
		if r.wanted(p) {
			units = map[int64]struct{}{}
		}
		r.seen[p] = units
	}
	return units != nil
}

// add keeps what is new of n bytes at off, rounded to units. Units that follow
// on the read before are joined to it.
func (r *reads) add(path []byte, off, n int64, after int) {
	if off < 0 || n <= 0 || off+n < 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	units := r.seen[string(path)]
	for u := off / readUnit; u <= (off+n-1)/readUnit && r.n < maxReadUnits; u++ {
		if _, ok := units[u]; ok {
			continue
		}
		units[u] = struct{}{}
		r.n++
		if k := len(r.list) - 1; k >= 0 && r.list[k].Path == string(path) && r.list[k].Off+r.list[k].Len == u*readUnit && r.list[k].After == after {
			r.list[k].Len += readUnit
			continue
		}
		r.list = append(r.list, Read{Path: string(path), Off: u * readUnit, Len: readUnit, After: after})
	}
}

func (r *reads) all() []Read {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}
