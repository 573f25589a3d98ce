package manifest

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
)

// MaxMeta is the largest encoded directory page or chunk list that anyone
// accepts, in bytes.
const MaxMeta = 64 << 20

const (
	maxPage = 4 << 20 // bytes of one page; one entry with many attributes may need much
	// A page is cut after about 256 names, and at the latest after these.
	cutMask    = 255
	cutEntries = 2048
	cutBytes   = 128 << 10
	maxDepth   = 8 // levels of index pages above the leaves
)

const (
	leafPage  = 0
	indexPage = 1
)

// A Page is one piece of a directory: either its entries (a leaf), or the
// pages below it in the order of their names (an index). An empty directory
// is one empty leaf.
type Page struct {
	Entries  []Entry
	Children []PageRef
}

// A PageRef points from an index page to a page below it.
type PageRef struct {
	First  string // the first name below
	Digest Digest
	Count  uint64 // names below
}

// EncodeDirectory cuts a directory into pages, passes each with its digest to
// put, children before their index, and returns the digest of the top page:
// the directory's digest. The entries must be sorted by name, each name once.
//
// A page ends after a name whose hash has its low bits zero. So the cuts
// depend on the names alone and stay where they are when others come and go
// (content-defined chunking, as in Noms' prolly trees).
func EncodeDirectory(entries []Entry, put func(Digest, []byte) error) (Digest, error) {
	for i := range entries {
		if err := entries[i].validate(false); err != nil {
			return Digest{}, err
		}
		if i > 0 && entries[i].Name <= entries[i-1].Name {
			return Digest{}, fmt.Errorf("entry %.300q after %.300q: %w", entries[i].Name, entries[i-1].Name, ErrInvalid)
		}
	}
	var refs []PageRef
	for start := 0; start < len(entries) || start == 0 && len(refs) == 0; {
		ref, n, _, err := putLeaf(entries[start:], put)
		if err != nil {
			return Digest{}, err
		}
		refs = append(refs, ref)
		start += n
	}
	return encodeIndex(refs, put)
}

// putLeaf encodes entries up to the next cut and returns how many. Cut is false if there
// were too few for one: with more to come, the leaf would be another.
func putLeaf(entries []Entry, put func(Digest, []byte) error) (ref PageRef, n int, cut bool, err error) {
	body, n, cut := encodeLeaf(entries)
	ref = PageRef{Digest: Sum(body), Count: uint64(n)}
	if n > 0 {
		ref.First = entries[0].Name
	}
	return ref, n, cut, put(ref.Digest, body)
}

// encodeIndex encodes the pages above the leaves and returns the digest of the top one.
func encodeIndex(refs []PageRef, put func(Digest, []byte) error) (Digest, error) {
	for level := 1; len(refs) > 1; level++ {
		if level > maxDepth {
			return Digest{}, fmt.Errorf("directory of %d pages is too large: %w", len(refs), ErrInvalid)
		}
		var up []PageRef
		for start := 0; start < len(refs); {
			n := indexCut(refs[start:], level)
			page := Page{Children: refs[start : start+n]}
			body := page.encode()
			ref := PageRef{First: refs[start].First, Digest: Sum(body)}
			for _, r := range page.Children {
				ref.Count += r.Count
			}
			if err := put(ref.Digest, body); err != nil {
				return Digest{}, err
			}
			up = append(up, ref)
			start += n
		}
		refs = up
	}
	return refs[0].Digest, nil
}

func nameHash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	v := h.Sum64()
	v ^= v >> 32 // FNV's low bits alone mix poorly for names that differ in one digit
	v *= 0xd6e8feb86659fd93
	return v ^ v>>32
}

// encodeLeaf encodes entries up to the next cut and returns how many, and whether there
// was one.
func encodeLeaf(entries []Entry) (b []byte, n int, cut bool) {
	var body encoder
	for n < len(entries) && !cut {
		entries[n].encode(&body)
		cut = nameHash(entries[n].Name)&cutMask == 0 || n+1 == cutEntries || len(body.b) >= cutBytes
		n++
	}
	w := encoder{b: make([]byte, 0, len(body.b)+8)}
	w.byte(leafPage)
	w.uint(uint64(n))
	return append(w.b, body.b...), n, cut
}

// indexCut returns how many of refs go into the next index page. It never cuts
// after one, so that each level is at most half of the one below.
func indexCut(refs []PageRef, level int) int {
	for n := 2; n < len(refs); n++ {
		if nameHash(refs[n].First)>>(8*level)&cutMask == 0 && n >= 16 || n == cutEntries {
			return n
		}
	}
	return len(refs)
}

func (p *Page) encode() []byte {
	var w encoder
	if p.Children == nil {
		w.byte(leafPage)
		w.uint(uint64(len(p.Entries)))
		for i := range p.Entries {
			p.Entries[i].encode(&w)
		}
		return w.b
	}
	w.byte(indexPage)
	w.uint(uint64(len(p.Children)))
	for _, c := range p.Children {
		w.string(c.First)
		w.digest(c.Digest)
		w.uint(c.Count)
	}
	return w.b
}

// DecodePage reads one page. It accepts only what EncodeDirectory writes:
// sorted, valid, distinct names, nothing left over. The error wraps ErrInvalid.
// All strings of a page are parts of one: of a name that is to outlive the others by
// far, keep a clone.
func DecodePage(b []byte) (Page, error) {
	r := decoder{what: "directory page", b: b}
	if len(b) > maxPage {
		r.fail("%d bytes exceed %d", len(b), maxPage)
	} else {
		r.text = string(b) // all names of a page are one string, not hundreds
	}
	var p Page
	switch kind := r.byte(); {
	case r.err != nil:
	case kind == leafPage:
		p.Entries = make([]Entry, r.count(cutEntries, minEntry, "entries"))
		for i := range p.Entries {
			p.Entries[i].decode(&r, false)
			if i > 0 && p.Entries[i].Name <= p.Entries[i-1].Name {
				r.fail("%.300q after %.300q", p.Entries[i].Name, p.Entries[i-1].Name)
			}
			if r.err != nil {
				break
			}
		}
	case kind == indexPage:
		n := r.count(cutEntries+1, 1+DigestSize+1, "pages")
		if n < 2 {
			r.fail("an index of %d pages", n)
		}
		p.Children = make([]PageRef, n)
		for i := range p.Children {
			c := PageRef{First: r.string(MaxName, "name"), Digest: r.digest(), Count: r.uint()}
			if r.err == nil && (!ValidName(c.First) || c.Count == 0 || i > 0 && c.First <= p.Children[i-1].First) {
				r.fail("page of %d names from %.300q", c.Count, c.First)
			}
			p.Children[i] = c
		}
	default:
		r.fail("kind %d", kind)
	}
	if err := r.finish(); err != nil {
		return Page{}, err
	}
	return p, nil
}

// A MetaSource returns directory pages and chunk lists by digest, in the order
// asked, each already verified against its digest; many in one round trip.
type MetaSource interface {
	Meta(ctx context.Context, digests []Digest) ([][]byte, error)
}

// ReadDirectory returns all entries of the directory d in the order of their
// names. It asks for the pages of one level together: a directory of up to
// some hundred names takes one request, any other about three. At most limit
// entries are accepted.
func ReadDirectory(ctx context.Context, src MetaSource, d Digest, limit uint64) ([]Entry, error) {
	refs := []PageRef{{Digest: d}}
	for level := 0; ; level++ {
		if level > maxDepth {
			return nil, fmt.Errorf("directory %v: more than %d levels: %w", d, maxDepth, ErrInvalid)
		}
		digests := make([]Digest, len(refs))
		for i, r := range refs {
			digests[i] = r.Digest
		}
		bodies, err := src.Meta(ctx, digests)
		if err != nil {
			return nil, fmt.Errorf("directory %v: %w", d, err)
		}
		pages := make([]Page, len(refs))
		var below []PageRef
		var total uint64
		for i, body := range bodies {
			p, err := DecodePage(body)
			if err == nil {
				err = p.check(refs[i], level > 0)
			}
			if err == nil && i > 0 && (p.Children == nil) != (pages[0].Children == nil) {
				err = fmt.Errorf("leaf and index on one level: %w", ErrInvalid)
			}
			if err != nil {
				return nil, fmt.Errorf("directory %v: page %v: %w", d, refs[i].Digest, err)
			}
			pages[i] = p
			below = append(below, p.Children...)
			total += p.count()
			if total > limit {
				return nil, fmt.Errorf("directory %v: more than %d entries: %w", d, limit, ErrInvalid)
			}
		}
		if below != nil {
			refs = below
			continue
		}
		if len(pages) == 1 {
			return pages[0].Entries, nil
		}
		all := make([]Entry, 0, total)
		for i, p := range pages {
			if i > 0 && p.Entries[0].Name <= all[len(all)-1].Name {
				return nil, fmt.Errorf("directory %v: page %v overlaps the one before: %w", d, refs[i].Digest, ErrInvalid)
			}
			all = append(all, p.Entries...)
		}
		return all, nil
	}
}

func (p *Page) count() uint64 {
	n := uint64(len(p.Entries))
	for _, c := range p.Children {
		s := n + c.Count
		if s < n {
			return 1<<64 - 1
		}
		n = s
	}
	return n
}

// check compares a page with what its index says of it. The top page has no
// index above it to be held against.
func (p *Page) check(ref PageRef, indexed bool) error {
	if !indexed {
		return nil
	}
	first := ""
	if p.Children != nil {
		first = p.Children[0].First
	} else if len(p.Entries) > 0 {
		first = p.Entries[0].Name
	}
	if p.count() != ref.Count || first != ref.First {
		return fmt.Errorf("holds %d names from %.300q, its index says %d from %.300q: %w", p.count(), first, ref.Count, ref.First, ErrInvalid)
	}
	return nil
}

// Lookup returns what the tree of the directory root has at a path, absolute and clean,
// or nil. It reads of each directory on the way the pages in which the name may stand.
func Lookup(ctx context.Context, src MetaSource, root *Entry, p string) (*Entry, error) {
	at := root
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" {
			continue
		}
		if at.Type != Dir {
			return nil, nil
		}
		var err error
		if at, err = LookupIn(ctx, src, at.Digest, name); err != nil || at == nil {
			return nil, err
		}
	}
	return at, nil
}

// LookupIn returns what the directory d has under a name, or nil. It reads the pages in
// which the name may stand.
func LookupIn(ctx context.Context, src MetaSource, d Digest, name string) (*Entry, error) {
	for range maxDepth + 1 {
		bodies, err := src.Meta(ctx, []Digest{d})
		if err != nil {
			return nil, err
		}
		p, err := DecodePage(bodies[0])
		if err != nil {
			return nil, fmt.Errorf("directory page %v: %w", d, err)
		}
		if p.Children == nil {
			i, ok := slices.BinarySearchFunc(p.Entries, name, func(e Entry, name string) int { return strings.Compare(e.Name, name) })
			if !ok {
				return nil, nil
			}
			return &p.Entries[i], nil
		}
		i, ok := slices.BinarySearchFunc(p.Children, name, func(r PageRef, name string) int { return strings.Compare(r.First, name) })
		if !ok {
			i = max(i-1, 0)
		}
		d = p.Children[i].Digest
	}
	return nil, fmt.Errorf("directory page %v: more than %d levels: %w", d, maxDepth, ErrInvalid)
}

// DirectoryPages returns the digests of the pages of a directory, the top one first. Of
// one that has more than most below the top it returns that alone.
func DirectoryPages(ctx context.Context, src MetaSource, d Digest, most int) ([]Digest, error) {
	bodies, err := src.Meta(ctx, []Digest{d})
	if err != nil {
		return nil, err
	}
	p, err := DecodePage(bodies[0])
	if err != nil {
		return nil, fmt.Errorf("directory page %v: %w", d, err)
	}
	all := []Digest{d}
	if len(p.Children) <= most {
		for _, c := range p.Children {
			all = append(all, c.Digest)
		}
	}
	return all, nil
}
