package pkgdb

import (
	"slices"
	"strings"
)

// A Missing is a dependency that nothing installed satisfies.
type Missing struct {
	Package string // the ID of the package that has it; empty if it is one of the names that were asked for
	Wants   []Dependency
}

// String returns "exim4 | mail-transport-agent, needed by mailutils".
func (m Missing) String() string {
	var b strings.Builder
	for i, d := range m.Wants {
		if i > 0 {
			b.WriteString(" | ")
		}
		b.WriteString(d.String())
	}
	if m.Package != "" {
		b.WriteString(", needed by " + m.Package)
	}
	return b.String()
}

// A Member is one package of a closure.
type Member struct {
	ID string
	By string // the ID of the package that needs it; empty if it was asked for
}

// Closure returns the packages called names and all that they depend on,
// sorted by ID, and the dependencies that nothing satisfies. Of alternatives it
// takes the first that is installed, as the package manager did. A damaged
// system has missing dependencies and may work none the less: they are a
// warning. A name that is not itself installed, nor provided by an installed
// package, is missing too.
func Closure(db DB, names []string) (members []Member, missing []Missing) {
	seen := map[string]bool{}
	var queue []Member
	add := func(by string, group []Dependency) {
		for _, d := range group {
			ids := db.Providers(d)
			if len(ids) == 0 {
				continue
			}
			id := ids[0]
			if i := slices.IndexFunc(ids, func(id string) bool { return seen[id] }); i >= 0 {
				id = ids[i] // a virtual package that is there already
			}
			if !seen[id] {
				seen[id] = true
				queue = append(queue, Member{ID: id, By: by})
			}
			return
		}
		missing = append(missing, Missing{Package: by, Wants: group})
	}
	for _, n := range names {
		if p, ok := db.Package(n); ok {
			if !seen[p.ID] {
				seen[p.ID] = true
				queue = append(queue, Member{ID: p.ID})
			}
			continue
		}
		add("", []Dependency{{Name: n}})
	}
	for i := 0; i < len(queue); i++ {
		p, ok := db.Package(queue[i].ID)
		if !ok {
			continue
		}
		for _, g := range p.Depends {
			add(p.ID, g)
		}
	}
	slices.SortFunc(queue, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return queue, missing
}
