package rpmdb

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
	maxDatabase = 1 << 30 // bytes
	maxPackages = 1 << 17
)

// folders are where a database may stand: Fedora and SUSE have the first, and a
// link from the second.
var folders = []string{"/usr/lib/sysimage/rpm/", "/var/lib/rpm/"}

type database struct {
	root     *rootfs.Root
	native   string // architecture
	pkgs     []*pkg // sorted by ID
	byID     map[string]*pkg
	byName   map[string][]*pkg // native first, later versions first
	provided map[string][]provision

	index  sync.Once
	owners *pkgdb.Owners
}

// A pkg is one installed package.
type pkg struct {
	pkgdb.Package
	*contents
	requires  []requirement
	installed int64 // seconds since 1970; 0 if not known

	list   sync.Once
	paths  []string         // canonical, in the order of the header
	number map[string]int32 // canonical path -> which file of the header it is
}

// A provision is a package that has a name.
type provision struct {
	pkg *pkg
	pkgdb.Dependency
}

// A requirement is a dependency as the header has it.
type requirement struct {
	pkgdb.Dependency
	rich *rich // if it is one of several parts
}

// Open reads the database of root. If there is none the error wraps
// pkgdb.ErrNone; if it can't be understood, pkgdb.ErrCorrupt, with the place; if a
// transaction of rpm is under way, pkgdb.ErrBusy.
func Open(root *rootfs.Root) (pkgdb.DB, error) {
	for _, folder := range folders {
		f, err := read(root, folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("package database: %w", err)
		}
		db := &database{root: root}
		if err := f.each(db.add); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", f.name, err, pkgdb.ErrCorrupt)
		}
		db.arrange()
		return db, nil
	}
	return nil, fmt.Errorf("%s: %w", root.Host(folders[1]), pkgdb.ErrNone)
}

// add takes a package in.
func (db *database) add(b []byte) error {
	if len(db.pkgs) == maxPackages {
		return fmt.Errorf("more than %d packages", maxPackages)
	}
	h, err := parseHeader(b)
	if err != nil {
		return err
	}
	p := &pkg{Package: pkgdb.Package{Name: h.text(tagName), Version: h.text(tagVersion), Arch: h.text(tagArch), Summary: firstLine(h.text(tagSummary))}}
	if p.Name == "" || p.Version == "" {
		return fmt.Errorf("a package called %q in version %q", p.Name, p.Version)
	}
	if p.Name == "gpg-pubkey" {
		return nil // a key that rpm trusts, not a package
	}
	if r := h.text(tagRelease); r != "" {
		p.Version += "-" + r
	}
	if e, ok := h.number(tagEpoch); ok {
		p.Version = fmt.Sprintf("%d:%s", e, p.Version)
	}
	if t, ok := h.number(tagInstallTime); ok {
		p.installed = int64(t)
	}
	if err := p.read(h); err != nil {
		return fmt.Errorf("package %.200s: %w", p.Name, err)
	}
	db.pkgs = append(db.pkgs, p)
	return nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// read takes over what the header says.
func (p *pkg) read(h *header) (err error) {
	if p.contents, err = readContents(h); err != nil {
		return err
	}
	provides, err := dependencies(h, tagProvideName, tagProvideFlags, tagProvideVersion)
	if err != nil {
		return err
	}
	for _, d := range provides {
		p.Provides = append(p.Provides, d.Dependency)
	}
	p.requires, err = dependencies(h, tagRequireName, tagRequireFlags, tagRequireVersion)
	return err
}

// dependencies reads three tags that belong together.
func dependencies(h *header, nameTag, flagTag, versionTag uint32) ([]requirement, error) {
	names, err := h.strings(nameTag)
	if err != nil {
		return nil, err
	}
	senses, err := h.numbers(flagTag)
	if err != nil {
		return nil, err
	}
	versions, err := h.strings(versionTag)
	if err != nil {
		return nil, err
	}
	if senses != nil && len(senses) != len(names) || versions != nil && len(versions) != len(names) {
		return nil, fmt.Errorf("tag %d: %d names with %d flags and %d versions", nameTag, len(names), len(senses), len(versions))
	}
	all := make([]requirement, 0, len(names))
	for i, name := range names {
		d := requirement{Dependency: pkgdb.Dependency{Name: name}}
		if senses != nil && versions != nil && versions[i] != "" {
			if d.Op = operator(senses[i]); d.Op != "" {
				d.Version = versions[i]
			}
		}
		switch {
		case strings.HasPrefix(name, "rpmlib("), senses != nil && senses[i]&(senseRPMLib|senseMissingOK) != 0:
			continue // asks for a feature of rpm, or for nothing
		case strings.HasPrefix(name, "("):
			if d.rich, err = parseRich(name); err != nil {
				return nil, err
			}
		}
		all = append(all, d)
	}
	return all, nil
}

// arrange gives the packages their IDs and fills the maps.
func (db *database) arrange() {
	db.nativeArch()
	db.byName, db.byID = map[string][]*pkg{}, map[string]*pkg{}
	for _, p := range db.pkgs {
		db.byName[p.Name] = append(db.byName[p.Name], p)
	}
	for name, ps := range db.byName {
		slices.SortStableFunc(ps, func(a, b *pkg) int {
			if c := db.rank(a) - db.rank(b); c != 0 {
				return c
			}
			return Compare(b.Version, a.Version)
		})
		for i, p := range ps {
			same := func(o *pkg) bool { return o != p && o.Arch == p.Arch }
			switch {
			case slices.ContainsFunc(ps, same):
				p.ID = name + "-" + withoutEpoch(p.Version) + "." + p.Arch
			case len(ps) > 1 || db.rank(p) == 2:
				p.ID = name + "." + p.Arch
			default:
				p.ID = name
			}
			for _, id := range []string{p.ID, name + "." + p.Arch, name + "-" + withoutEpoch(p.Version), name + "-" + withoutEpoch(p.Version) + "." + p.Arch} {
				if db.byID[id] == nil || id == p.ID {
					db.byID[id] = ps[i]
				}
			}
		}
	}
	slices.SortFunc(db.pkgs, func(a, b *pkg) int { return strings.Compare(a.ID, b.ID) })
	// Twice the same one: a damaged database has that, and rpm shows both.
	db.pkgs = slices.CompactFunc(db.pkgs, func(a, b *pkg) bool { return a.ID == b.ID })
	db.provided = map[string][]provision{}
	for _, p := range db.pkgs {
		db.byID[p.ID] = p
		for _, d := range p.Provides {
			db.provided[d.Name] = append(db.provided[d.Name], provision{p, d})
		}
	}
	for _, p := range db.pkgs {
		for _, r := range p.requires {
			switch {
			case r.rich != nil:
				p.Depends = append(p.Depends, r.rich.groups(func(d pkgdb.Dependency) bool { return len(db.Providers(d)) > 0 })...)
			default:
				p.Depends = append(p.Depends, []pkgdb.Dependency{r.Dependency})
			}
		}
		p.requires = nil
	}
}

func withoutEpoch(version string) string {
	if _, v, ok := strings.Cut(version, ":"); ok {
		return v
	}
	return version
}

// nativeArch finds the most frequent architecture.
func (db *database) nativeArch() {
	count := map[string]int{}
	for _, p := range db.pkgs {
		if p.Arch != "noarch" && p.Arch != "" {
			count[p.Arch]++
		}
	}
	for arch, n := range count {
		if m := count[db.native]; n > m || n == m && arch < db.native {
			db.native = arch
		}
	}
}

func (db *database) rank(p *pkg) int {
	switch p.Arch {
	case db.native:
		return 0
	case "noarch", "":
		return 1
	}
	return 2
}

// Kind implements pkgdb.DB.
func (db *database) Kind() string { return "rpm" }

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

// Providers implements pkgdb.DB. A dependency on a path is met by the package
// that has the file.
func (db *database) Providers(d pkgdb.Dependency) []string {
	var ids []string
	add := func(p *pkg) {
		if !slices.Contains(ids, p.ID) {
			ids = append(ids, p.ID)
		}
	}
	for _, p := range db.byName[d.Name] { // before those that provide it
		for _, v := range p.Provides {
			if v.Name == d.Name && meets(v.Op, v.Version, d.Op, d.Version) {
				add(p)
				break
			}
		}
	}
	for _, v := range db.provided[d.Name] {
		if meets(v.Op, v.Version, d.Op, d.Version) {
			add(v.pkg)
		}
	}
	if len(ids) == 0 && strings.HasPrefix(d.Name, "/") {
		ids, _ = db.Owner(d.Name)
	}
	return ids
}
