// Package pkgdbtest is the suite that every package database must pass.
package pkgdbtest

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"srvfs/capture/pkgdb"
)

// most is how many packages are looked at closely.
const most = 80

// Conforms checks that a database keeps what pkgdb.DB promises. open opens the
// same one each time; it must have at least one package with files.
func Conforms(t *testing.T, open func() (pkgdb.DB, error)) {
	db, err := open()
	if err != nil {
		t.Fatal(err)
	}
	ids := db.Packages()
	if len(ids) == 0 || !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Fatalf("%d packages; want some, sorted and each once: %.300q", len(ids), ids)
	}
	t.Run("packages", func(t *testing.T) { packages(t, db, ids) })
	t.Run("files", func(t *testing.T) { files(t, db, ids) })
	t.Run("dependencies", func(t *testing.T) { dependencies(t, db, ids) })
	t.Run("unknown", func(t *testing.T) { unknown(t, db) })
	t.Run("concurrent", func(t *testing.T) { concurrent(t, open) })
}

func packages(t *testing.T, db pkgdb.DB, ids []string) {
	for _, id := range ids {
		p, ok := db.Package(id)
		switch {
		case !ok:
			t.Errorf("%s is listed and not there", id)
			continue
		case p.ID != id, p.Name == "", p.Version == "", strings.Contains(p.Summary, "\n"), !strings.HasPrefix(id, p.Name):
			t.Errorf("%s: %+v", id, p)
		}
		if byName, ok := db.Package(p.Name); !ok || byName.Name != p.Name {
			t.Errorf("%s can't be had by its name %s", id, p.Name)
		}
		for _, d := range p.Provides {
			if (d.Op == "") != (d.Version == "") {
				t.Errorf("%s provides %+v", id, d)
			}
		}
	}
}

// files checks that Files and Owner are each other's inverse, on some of them.
func files(t *testing.T, db pkgdb.DB, ids []string) {
	total, known := 0, 0
	for i := 0; i < len(ids); i += 1 + len(ids)/most {
		id := ids[i]
		list, err := db.Files(id)
		if err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		have := map[string]bool{}
		for _, f := range list {
			if !strings.HasPrefix(f, "/") || have[f] {
				t.Errorf("%s lists %q, twice or not absolute", id, f)
			}
			have[f] = true
			if len(have) > 200 {
				continue
			}
			if owners, err := db.Owner(f); err != nil || !slices.Contains(owners, id) || !slices.IsSorted(owners) {
				t.Errorf("%s lists %s, whose owners are %q, %v", id, f, owners, err)
			}
			if d, ok := db.Digest(id, f); ok {
				known++
				if d.Algorithm == "" || d.Hex == "" || strings.Trim(d.Hex, "0123456789abcdef") != "" {
					t.Errorf("%s: %s has digest %+v", id, f, d)
				}
			}
		}
		total += len(list)
		configs, err := db.Conffiles(id)
		if err != nil {
			t.Errorf("%s: %v", id, err)
		}
		for _, f := range configs {
			if owners, err := db.Owner(f); err != nil || len(owners) == 0 {
				t.Errorf("%s has the configuration file %s, which has no owner: %v", id, f, err)
			}
		}
		if len(list) > 0 {
			list[0] = "changed" // what comes back is the caller's
			if again, err := db.Files(id); err != nil || again[0] == "changed" {
				t.Errorf("%s: the list of files is shared: %v", id, err)
			}
		}
	}
	if total == 0 || known == 0 {
		t.Errorf("%d files, %d digests", total, known)
	}
	if owners, err := db.Owner("/no/package/has/this"); err != nil || owners != nil {
		t.Errorf("owners of what nobody has: %q, %v", owners, err)
	}
}

func dependencies(t *testing.T, db pkgdb.DB, ids []string) {
	found, lost := 0, 0
	for _, id := range ids {
		p, _ := db.Package(id)
		if got := db.Providers(pkgdb.Dependency{Name: p.Name}); !slices.Contains(got, id) && p.Arch == "" {
			t.Errorf("%s does not provide its own name: %q", id, got)
		}
		for _, g := range p.Depends {
			if len(g) == 0 {
				t.Errorf("%s depends on one of nothing", id)
			}
			if slices.ContainsFunc(g, func(d pkgdb.Dependency) bool { return len(db.Providers(d)) > 0 }) {
				found++
			} else {
				lost++
			}
		}
	}
	// Systems that were put together by force lack a few, and one package needs
	// what only others have.
	if len(ids) > 10 && (found == 0 || lost > 1+found/50) {
		t.Errorf("%d dependencies are met, %d are not", found, lost)
	}
	members, _ := pkgdb.Closure(db, ids[:1])
	for _, m := range members {
		if _, ok := db.Package(m.ID); !ok {
			t.Errorf("the closure of %s has %+v, which is not installed", ids[0], m)
		}
	}
	if got := db.Providers(pkgdb.Dependency{Name: "nobody-provides-this"}); len(got) != 0 {
		t.Errorf("providers of nothing: %q", got)
	}
}

func unknown(t *testing.T, db pkgdb.DB) {
	const name = "no-such-package"
	if p, ok := db.Package(name); ok {
		t.Errorf("found %+v", p)
	}
	if _, err := db.Files(name); !errors.Is(err, pkgdb.ErrUnknown) {
		t.Errorf("files: %v", err)
	}
	if _, err := db.Conffiles(name); !errors.Is(err, pkgdb.ErrUnknown) {
		t.Errorf("conffiles: %v", err)
	}
	if d, ok := db.Digest(name, "/bin/sh"); ok {
		t.Errorf("digest %+v", d)
	}
}

// concurrent asks a fresh database from several goroutines, for the race detector.
func concurrent(t *testing.T, open func() (pkgdb.DB, error)) {
	db, err := open()
	if err != nil {
		t.Fatal(err)
	}
	ids := db.Packages()
	ids = ids[:min(len(ids), 8)]
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, id := range ids {
				list, err := db.Files(id)
				if err != nil {
					t.Errorf("%s: %v", id, err)
				}
				for _, f := range list[:min(len(list), 5)] {
					if _, err := db.Owner(f); err != nil {
						t.Errorf("%s: %v", f, err)
					}
					db.Digest(id, f)
				}
			}
		})
	}
	wg.Wait()
}
