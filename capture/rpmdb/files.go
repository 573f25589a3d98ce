package rpmdb

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"srvfs/capture/pkgdb"
)

// Bits of a file's flags: RPM's lib/rpmfiles.h.
const fileConfig = 1 << 0

// contents are the files of a package, as its header has them.
type contents struct {
	dirs      []string // each with a slash at the end
	dirOf     []uint64 // which of dirs a file is in
	names     []string // within it
	flags     []uint64
	sizes     []uint64
	mtimes    []uint64
	digests   []string // empty for what is no file
	algorithm string
}

// algorithms are the digests that a header may name (RFC 4880, 9.4).
var algorithms = map[uint64]string{1: "md5", 2: "sha1", 8: "sha256", 9: "sha384", 10: "sha512", 11: "sha224"}

func readContents(h *header) (*contents, error) {
	c := &contents{algorithm: "md5"}
	if n, ok := h.number(tagFileDigestAlgos); ok {
		c.algorithm = algorithms[n]
	}
	sizes := uint32(tagFileSizes)
	if _, ok := h.entries[tagLongFileSizes]; ok {
		sizes = tagLongFileSizes
	}
	var errs [7]error
	c.names, errs[0] = h.strings(tagBaseNames)
	c.dirs, errs[1] = h.strings(tagDirNames)
	c.dirOf, errs[2] = h.numbers(tagDirIndexes)
	c.flags, errs[3] = h.numbers(tagFileFlags)
	c.sizes, errs[4] = h.numbers(sizes)
	c.mtimes, errs[5] = h.numbers(tagFileMtimes)
	c.digests, errs[6] = h.strings(tagFileDigests)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if c.names == nil {
		if err := c.old(h); err != nil {
			return nil, err
		}
	}
	n := len(c.names)
	if len(c.dirOf) != n {
		return nil, fmt.Errorf("%d files in %d folders", n, len(c.dirOf))
	}
	for i, k := range c.dirOf {
		if k >= uint64(len(c.dirs)) {
			return nil, fmt.Errorf("file %d is in folder %d of %d", i, k, len(c.dirs))
		}
	}
	for what, have := range map[string]int{"flags": len(c.flags), "sizes": len(c.sizes), "times": len(c.mtimes), "digests": len(c.digests)} {
		if have != n && have != 0 {
			return nil, fmt.Errorf("%d %s of %d files", have, what, n)
		}
	}
	return c, nil
}

// old reads whole paths, which RPM wrote before version 4.
func (c *contents) old(h *header) error {
	paths, err := h.strings(tagOldFileNames)
	if err != nil {
		return err
	}
	known := map[string]uint64{}
	for _, p := range paths {
		dir, name := path.Split(p)
		k, ok := known[dir]
		if !ok {
			k = uint64(len(c.dirs))
			known[dir] = k
			c.dirs = append(c.dirs, dir)
		}
		c.dirOf, c.names = append(c.dirOf, k), append(c.names, name)
	}
	return nil
}

// load gives a package's paths their canonical form, once.
func (db *database) load(p *pkg) {
	p.list.Do(func() {
		canonical := make([]string, len(p.dirs))
		for i, d := range p.dirs {
			if d == "" { // a source package, or a hostile one
				continue
			}
			c, _, _ := db.root.Resolve(path.Clean("/" + d)) // a missing folder has a canonical name too
			canonical[i] = strings.TrimSuffix(c, "/")
		}
		p.paths = make([]string, 0, len(p.names))
		p.number = make(map[string]int32, len(p.names))
		for i, name := range p.names {
			f := canonical[p.dirOf[i]] + "/" + name
			if name == "" && f != "/" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				continue // no package has such a file
			}
			if _, twice := p.number[f]; !twice { // by /lib and by /usr/lib
				p.number[f] = int32(i)
				p.paths = append(p.paths, f)
			}
		}
	})
}

// Owner implements pkgdb.DB.
func (db *database) Owner(path string) ([]string, error) {
	db.index.Do(func() {
		db.owners = pkgdb.NewOwners(len(db.pkgs), func(i int) []string {
			db.load(db.pkgs[i])
			return db.pkgs[i].paths
		})
	})
	c, _, _ := db.root.ResolveParent(path) // of a path that does not exist it is the best form there is
	var ids []string
	for _, n := range db.owners.Of(c) {
		ids = append(ids, db.pkgs[n].ID)
	}
	return ids, nil
}

// Files implements pkgdb.DB.
func (db *database) Files(id string) ([]string, error) {
	p := db.find(id)
	if p == nil {
		return nil, unknown(id)
	}
	db.load(p)
	return slices.Clone(p.paths), nil
}

// Conffiles implements pkgdb.DB.
func (db *database) Conffiles(id string) ([]string, error) {
	p := db.find(id)
	if p == nil {
		return nil, unknown(id)
	}
	db.load(p)
	var configs []string
	for _, f := range p.paths {
		if len(p.flags) > 0 && p.flags[p.number[f]]&fileConfig != 0 {
			configs = append(configs, f)
		}
	}
	return configs, nil
}

// Digest implements pkgdb.DB.
func (db *database) Digest(id, path string) (pkgdb.Digest, bool) {
	p := db.find(id)
	if p == nil {
		return pkgdb.Digest{}, false
	}
	db.load(p)
	c, _, _ := db.root.ResolveParent(path)
	i, ok := p.number[c]
	if !ok || len(p.digests) == 0 || p.digests[i] == "" || p.algorithm == "" {
		return pkgdb.Digest{}, false
	}
	d := pkgdb.Digest{Algorithm: p.algorithm, Hex: strings.ToLower(p.digests[i]), Size: -1}
	if len(p.sizes) > 0 {
		d.Size = int64(p.sizes[i])
	}
	if len(p.mtimes) > 0 {
		d.Mtime = int64(p.mtimes[i])
	}
	return d, true
}

// Installed implements pkgdb.DB.
func (db *database) Installed(id string) time.Time {
	if p := db.find(id); p != nil && p.installed != 0 {
		return time.Unix(p.installed, 0)
	}
	return time.Time{}
}

func unknown(id string) error { return fmt.Errorf("package %.80q: %w", id, pkgdb.ErrUnknown) }
