package dpkg

import (
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"srvfs/capture/pkgdb"
)

// Owner implements pkgdb.DB.
func (db *database) Owner(p string) ([]string, error) {
	db.index.Do(db.buildIndex)
	if db.err != nil {
		return nil, db.err
	}
	c, _, _ := db.root.ResolveParent(p) // of a path that does not exist it is the best form there is
	var ids []string
	for _, n := range db.owners.Of(c) {
		ids = append(ids, db.pkgs[n].ID)
	}
	return ids, nil
}

// buildIndex reads all lists, one goroutine for each processor, and turns them
// round. Packages are taken in the order of their IDs, so that owners come out
// sorted.
func (db *database) buildIndex() {
	var next atomic.Int32
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(db.pkgs); i = int(next.Add(1)) - 1 {
				db.load(db.pkgs[i])
			}
		})
	}
	wg.Wait()
	for _, p := range db.pkgs {
		if p.listErr != nil {
			db.err = p.listErr
			return
		}
	}
	db.owners = pkgdb.NewOwners(len(db.pkgs), func(i int) []string { return db.pkgs[i].files })
}

// load reads the list of one package's files, once.
func (db *database) load(p *pkg) {
	p.list.Do(func() {
		if db.distroless { // which has no lists; the checksums name every file
			p.sums.Do(func() { db.loadSums(p) })
			p.listErr = p.sumErr
			for f := range p.md5 {
				p.files = append(p.files, f)
			}
			slices.Sort(p.files)
			return
		}
		name, text, err := db.readInfo(p, ".list")
		if err == nil {
			p.files, err = parseList(db.root.Host(name), text)
		}
		if err != nil {
			p.listErr = err
			return
		}
		p.files = db.canonical(p, p.files)
	})
}

// canonical gives all paths of p their canonical form, in place. Two that were
// listed may become one: packages have both /lib/udev and /usr/lib/udev.
func (db *database) canonical(p *pkg, paths []string) []string {
	c := canonicalizer{db: db, p: p}
	moved := false
	for i, f := range paths {
		paths[i] = c.path(f)
		moved = moved || len(paths[i]) != len(f)
	}
	if !moved {
		return paths
	}
	seen := make(map[string]bool, len(paths))
	return slices.DeleteFunc(paths, func(f string) bool {
		again := seen[f]
		seen[f] = true
		return again
	})
}

func (db *database) loadSums(p *pkg) {
	name, text, err := db.readInfo(p, ".md5sums")
	if err != nil {
		p.sumErr = err
		return
	}
	p.md5 = make(map[string]string, strings.Count(text, "\n")+len(p.conffiles))
	c := canonicalizer{db: db, p: p}
	p.sumErr = parseMD5Sums(db.root.Host(name), text, func(md5, path string) { p.md5[c.path(path)] = md5 })
	for _, f := range p.conffiles {
		if f.md5 != "" {
			p.md5[c.path(f.path)] = f.md5
		}
	}
}

// A canonicalizer gives the paths of one package their canonical form. Lists
// are sorted, so that neighbours usually share their directory.
type canonicalizer struct {
	db             *database
	p              *pkg
	dir, canonical string // of the last path
}

func (c *canonicalizer) path(f string) string {
	if d, ok := c.db.diverted[f]; ok && d.by != c.p.Name {
		f = d.to
	}
	if path.Clean(f) != f {
		f, _, _ = c.db.root.ResolveParent(f)
		return f
	}
	i := strings.LastIndexByte(f, '/')
	if dir := f[:i]; i > 0 && (c.dir == "" || dir != c.dir) {
		// A missing directory has a canonical name too.
		canonical, _, _ := c.db.root.Resolve(dir)
		c.dir, c.canonical = dir, strings.TrimSuffix(canonical, "/")
	}
	if i == 0 || c.canonical == c.dir {
		return f
	}
	return c.canonical + f[i:]
}

// Files implements pkgdb.DB.
func (db *database) Files(id string) ([]string, error) {
	p := db.find(id)
	if p == nil {
		return nil, unknown(id)
	}
	db.load(p)
	return slices.Clone(p.files), p.listErr
}

// Conffiles implements pkgdb.DB.
func (db *database) Conffiles(id string) ([]string, error) {
	p := db.find(id)
	if p == nil {
		return nil, unknown(id)
	}
	c := canonicalizer{db: db, p: p}
	var paths []string
	for _, f := range p.conffiles {
		if !f.removed {
			paths = append(paths, c.path(f.path))
		}
	}
	return paths, nil
}

// Digest implements pkgdb.DB. Checksums that can't be read are not known.
func (db *database) Digest(id, path string) (pkgdb.Digest, bool) {
	p := db.find(id)
	if p == nil {
		return pkgdb.Digest{}, false
	}
	p.sums.Do(func() { db.loadSums(p) })
	c, _, _ := db.root.ResolveParent(path)
	sum, ok := p.md5[c]
	return pkgdb.Digest{Algorithm: "md5", Hex: sum, Size: -1}, ok
}

// Installed implements pkgdb.DB: dpkg writes the list of files anew each time.
func (db *database) Installed(id string) time.Time {
	p := db.find(id)
	if p == nil || db.distroless {
		return time.Time{}
	}
	for _, name := range []string{p.Name, p.Name + ":" + p.Arch} {
		if info, err := db.root.Lstat(folder + "info/" + name + ".list"); err == nil {
			return info.ModTime()
		}
	}
	return time.Time{}
}

func unknown(id string) error { return fmt.Errorf("package %.80q: %w", id, pkgdb.ErrUnknown) }
