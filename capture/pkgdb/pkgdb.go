package pkgdb

import (
	"errors"
	"fmt"
	"time"

	"srvfs/capture/rootfs"
)

// The sentinel errors of package databases.
var (
	// ErrNone: this root has no package database of this kind.
	ErrNone = errors.New("no package database")
	// ErrCorrupt: there is one, and it can't be read. The error says which
	// file and line.
	ErrCorrupt = errors.New("package database is damaged")
	// ErrBusy: it is being changed just now. Trying again later helps.
	ErrBusy = errors.New("package database is being changed")
	// ErrUnknown: no such package is installed.
	ErrUnknown = errors.New("package is not installed")
)

// A DB is an opened database of the packages that are installed in one root.
// It shows the state when it was opened (files of it may be read later, when
// they are first needed) and is safe for concurrent use.
type DB interface {
	// Kind names the implementation: "dpkg", "rpm".
	Kind() string

	// Packages returns the IDs of all installed packages, sorted.
	Packages() []string

	// Package returns an installed package by its ID, or by its bare name: then
	// the one of the native architecture if there are several. What it returns
	// is shared and must not be changed.
	Package(name string) (*Package, bool)

	// Owner returns the IDs of the packages that path belongs to, sorted.
	// Usually it is one; a directory has many. Owned by none: nil. An error
	// means that a part of the database can't be read.
	Owner(path string) ([]string, error)

	// Files returns the paths of a package, directories too, in the order of
	// the database. Not all need exist: what the package's scripts removed,
	// what the administrator deleted, what is never unpacked (documentation in
	// slim containers). The error wraps ErrUnknown or ErrCorrupt.
	Files(id string) ([]string, error)

	// Conffiles returns those of the package's paths that are configuration,
	// which the administrator may have edited.
	Conffiles(id string) ([]string, error)

	// Digest returns what the database knows of the content that the package
	// shipped for path. Not known (dpkg has no digests of links, and for some
	// packages none at all): ok is false.
	Digest(id, path string) (d Digest, ok bool)

	// Installed returns when the package was installed, or brought up to date;
	// zero if that is not known.
	Installed(id string) time.Time

	// Providers returns the IDs of the installed packages that satisfy one
	// dependency, best first: a package of that name before those that provide
	// it.
	Providers(d Dependency) []string
}

// A Package is what the database says of one installed package.
type Package struct {
	ID      string // as the methods of DB take it
	Name    string // without architecture
	Version string
	Arch    string // the database's word: "amd64", "all", "x86_64", "noarch"
	Summary string // one line
	// Depends lists what must be installed for this package to work, those that
	// its installation needed already included. Each element is satisfied by any
	// one of its alternatives.
	Depends   [][]Dependency
	Provides  []Dependency // virtual names that it satisfies; Op is "" or "="
	Essential bool         // every other package may use it without saying so
}

// A Dependency is one name with a version that it must have.
type Dependency struct {
	Name    string
	Arch    string // dpkg's qualifier: "", "any", "native", or an architecture
	Op      string // "", "<<", "<=", "=", ">=", ">>"
	Version string // empty if and only if Op is
}

// String returns d as dpkg writes it: "libc6 (>= 2.34)".
func (d Dependency) String() string {
	s := d.Name
	if d.Arch != "" {
		s += ":" + d.Arch
	}
	if d.Op != "" {
		s += " (" + d.Op + " " + d.Version + ")"
	}
	return s
}

// A Digest is what a package database knows of a file's shipped content.
type Digest struct {
	Algorithm string // "md5", "sha256", ...
	Hex       string // lower case
	Size      int64  // bytes; -1 if not known
	Mtime     int64  // seconds since 1970; 0 if not known
}

// Open returns the database that the openers find in root; if there are several,
// as where a distribution has the other's tools as a package, the one with the
// most packages. If there is none the error wraps ErrNone; any other failure of an
// opener is returned at once, so that a damaged database is not mistaken for a
// missing one.
//
//	db, err := pkgdb.Open(root, dpkg.Open, rpmdb.Open)
func Open(root *rootfs.Root, openers ...func(*rootfs.Root) (DB, error)) (DB, error) {
	var best DB
	for _, open := range openers {
		db, err := open(root)
		switch {
		case errors.Is(err, ErrNone):
		case err != nil:
			return nil, err
		case best == nil || len(db.Packages()) > len(best.Packages()):
			best = db
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%s: %w: name files with --include", root, ErrNone)
	}
	return best, nil
}
