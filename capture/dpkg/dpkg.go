package dpkg

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"srvfs/capture/pkgdb"
	"srvfs/capture/rootfs"
)

const (
	folder    = "/var/lib/dpkg/"
	maxStatus = 256 << 20 // bytes of a status file
	maxInfo   = 64 << 20  // bytes of a list of files, of checksums, of diversions
)

type database struct {
	root       *rootfs.Root
	distroless bool
	native     string // architecture
	pkgs       []*pkg // sorted by ID
	byName     map[string][]*pkg
	byID       map[string]*pkg // also "name:arch" of every package
	virtual    map[string][]provider
	diverted   map[string]diversion

	index  sync.Once
	owners *pkgdb.Owners
	err    error // of the index
}

// A pkg is one installed package and what was read of its files.
type pkg struct {
	*stanza

	list    sync.Once
	files   []string // canonical
	listErr error

	sums   sync.Once
	md5    map[string]string // canonical path -> checksum
	sumErr error
}

// A provider is a package that has a virtual name.
type provider struct {
	pkg     *pkg
	version string // empty: satisfies no dependency on a version
}

// Open reads the database of root. If there is none the error wraps
// pkgdb.ErrNone; if it can't be understood, pkgdb.ErrCorrupt with file and line.
func Open(root *rootfs.Root) (pkgdb.DB, error) {
	db := &database{root: root}
	stanzas, err := db.stanzas()
	if err != nil {
		return nil, err
	}
	text, _, err := db.read("diversions", maxInfo)
	if err != nil {
		return nil, err
	}
	if db.diverted, err = parseDiversions(root.Host(folder+"diversions"), text); err != nil {
		return nil, err
	}
	db.native = nativeArch(stanzas)
	db.add(stanzas)
	return db, nil
}

// stanzas returns what all status files say of packages that are there.
func (db *database) stanzas() ([]*stanza, error) {
	text, ok, err := db.read("status", maxStatus)
	if err != nil {
		return nil, err
	}
	if !ok || strings.TrimSpace(text) == "" {
		return db.distrolessStanzas(ok)
	}
	all, err := parseStatus(db.root.Host(folder+"status"), text)
	if err != nil {
		return nil, err
	}
	if all, err = db.updates(all); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s *stanza) bool {
		switch s.state {
		case "installed", "triggers-pending", "triggers-awaited", "half-configured", "unpacked":
			return false
		}
		return true
	}), nil
}

// updates applies what dpkg had not yet written into status when it was
// stopped: numbered files, each with the new paragraph of a package.
func (db *database) updates(all []*stanza) ([]*stanza, error) {
	dir, err := db.root.ReadDir(folder + "updates")
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	} else if err != nil {
		return nil, fmt.Errorf("package database: %w", err)
	}
	if len(dir) == 0 {
		return all, nil
	}
	at := make(map[[2]string]int, len(all))
	for i, s := range all {
		at[[2]string{s.Name, s.Arch}] = i
	}
	for _, e := range dir {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue // tmp.i is still being written
		}
		text, _, err := db.read("updates/"+e.Name(), maxStatus)
		if err != nil {
			return nil, err
		}
		newer, err := parseStatus(db.root.Host(folder+"updates/"+e.Name()), text)
		if err != nil {
			return nil, err
		}
		for _, s := range newer {
			if i, ok := at[[2]string{s.Name, s.Arch}]; ok {
				all[i] = s
				continue
			}
			at[[2]string{s.Name, s.Arch}] = len(all)
			if all = append(all, s); len(all) > maxPackages {
				return nil, fmt.Errorf("%s: more than %d packages: %w", db.root.Host(folder+"updates"), maxPackages, pkgdb.ErrCorrupt)
			}
		}
	}
	return all, nil
}

func (db *database) distrolessStanzas(empty bool) ([]*stanza, error) {
	dir, err := db.root.ReadDir(folder + "status.d")
	if errors.Is(err, fs.ErrNotExist) {
		if empty {
			return nil, nil // a database without packages
		}
		return nil, fmt.Errorf("%s: %w", db.root.Host(folder+"status"), pkgdb.ErrNone)
	} else if err != nil {
		return nil, fmt.Errorf("package database: %w", err)
	}
	db.distroless = true
	var all []*stanza
	for _, e := range dir {
		if strings.HasSuffix(e.Name(), ".md5sums") || !e.Type().IsRegular() {
			continue
		}
		text, _, err := db.read("status.d/"+e.Name(), maxStatus)
		if err != nil {
			return nil, err
		}
		some, err := parseStatus(db.root.Host(folder+"status.d/"+e.Name()), text)
		if err != nil {
			return nil, err
		}
		if all = append(all, some...); len(all) > maxPackages {
			return nil, fmt.Errorf("%s: more than %d packages: %w", db.root.Host(folder+"status.d"), maxPackages, pkgdb.ErrCorrupt)
		}
	}
	return all, nil
}

// nativeArch is dpkg's own architecture, else the most frequent.
func nativeArch(all []*stanza) string {
	count := map[string]int{}
	best := ""
	for _, s := range all {
		if s.Name == "dpkg" {
			return s.Arch
		}
		if s.Arch == "all" {
			continue
		}
		count[s.Arch]++
		if n := count[s.Arch] - count[best]; n > 0 || n == 0 && s.Arch < best {
			best = s.Arch
		}
	}
	return best
}

// add fills the maps. A package that is listed twice counts as it is listed
// last, as for dpkg.
func (db *database) add(all []*stanza) {
	db.byName = make(map[string][]*pkg, len(all))
	db.byID = make(map[string]*pkg, 2*len(all))
	db.virtual = map[string][]provider{}
	for _, s := range all {
		s.ID = s.Name
		foreign := s.Arch != db.native && s.Arch != "all" && s.Arch != ""
		if s.multiArch == "same" || foreign {
			s.ID += ":" + s.Arch
		}
		if foreign {
			for _, g := range s.Depends {
				for i := range g {
					if g[i].Arch == "" {
						g[i].Arch = s.Arch
					}
				}
			}
		}
		db.byID[s.ID] = &pkg{stanza: s}
	}
	for _, p := range db.byID {
		db.pkgs = append(db.pkgs, p)
	}
	slices.SortFunc(db.pkgs, func(a, b *pkg) int { return strings.Compare(a.ID, b.ID) })
	for _, p := range db.pkgs {
		db.byID[p.Name+":"+p.Arch] = p
		db.byName[p.Name] = append(db.byName[p.Name], p)
		for _, v := range p.Provides {
			db.virtual[v.Name] = append(db.virtual[v.Name], provider{p, v.Version})
		}
	}
	for _, ps := range db.byName { // native first
		slices.SortStableFunc(ps, func(a, b *pkg) int { return db.rank(a) - db.rank(b) })
	}
}

func (db *database) rank(p *pkg) int {
	switch p.Arch {
	case db.native:
		return 0
	case "all":
		return 1
	}
	return 2
}

// Kind implements pkgdb.DB.
func (db *database) Kind() string { return "dpkg" }

// Packages implements pkgdb.DB.
func (db *database) Packages() []string {
	ids := make([]string, len(db.pkgs))
	for i, p := range db.pkgs {
		ids[i] = p.ID
	}
	return ids
}

// Package implements pkgdb.DB.
func (db *database) Package(name string) (*pkgdb.Package, bool) {
	p := db.find(name)
	if p == nil {
		return nil, false
	}
	return &p.Package, true
}

func (db *database) find(name string) *pkg {
	if p := db.byID[name]; p != nil {
		return p
	}
	if ps := db.byName[name]; len(ps) > 0 {
		return ps[0]
	}
	return nil
}

// Providers implements pkgdb.DB.
func (db *database) Providers(d pkgdb.Dependency) []string {
	var ids []string
	for _, p := range db.byName[d.Name] {
		if db.archFits(p, d.Arch) && satisfies(p.Version, d.Op, d.Version) {
			ids = append(ids, p.ID)
		}
	}
	for _, v := range db.virtual[d.Name] {
		if v.pkg.Name != d.Name && db.archFits(v.pkg, d.Arch) && (d.Op == "" || v.version != "" && satisfies(v.version, d.Op, d.Version)) && !slices.Contains(ids, v.pkg.ID) {
			ids = append(ids, v.pkg.ID)
		}
	}
	return ids
}

// archFits reports whether p can satisfy a dependency with the qualifier want.
// A library of a foreign architecture is no help to a native program; a program
// of one may be, if it says so.
func (db *database) archFits(p *pkg, want string) bool {
	if want == "any" {
		return true
	}
	if want == "" || want == "native" {
		want = db.native
	}
	return p.Arch == want || p.Arch == "all" || p.Arch == "" || p.multiArch == "foreign"
}
