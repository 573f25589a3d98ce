package rpmdb

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"srvfs/capture/pkgdb"
)

// Limits of a dependency: brackets in each other, and bytes.
const (
	richDepth  = 16
	richLength = 64 << 10
)

// A rich is a dependency that is made of others, as in
// "(langpacks-core-de if langpacks-core)"; see RPM's docs/manual/boolean_dependencies.md.
type rich struct {
	op          string // "and", "or", "if", "unless", "with", "without"; empty: a single one
	one         pkgdb.Dependency
	left, right *rich
	otherwise   *rich // of if and unless; may be nil
}

// parseRich parses a dependency that begins with a bracket.
func parseRich(s string) (*rich, error) {
	if len(s) > richLength {
		return nil, fmt.Errorf("a dependency of %d bytes", len(s))
	}
	r, rest, err := parseBracket(s, 0)
	if err == nil && rest != "" {
		err = fmt.Errorf("%.40q follows it", rest)
	}
	if err != nil {
		return nil, fmt.Errorf("dependency %.200q: %w", s, err)
	}
	return r, nil
}

func parseBracket(s string, depth int) (*rich, string, error) {
	if depth > richDepth {
		return nil, "", errors.New("too many brackets")
	}
	r, s, err := parseOperand(s[1:], depth)
	if err != nil {
		return nil, "", err
	}
	for {
		s = strings.TrimLeft(s, " \t")
		if strings.HasPrefix(s, ")") {
			return r, s[1:], nil
		}
		op, rest, ok := strings.Cut(s, " ")
		if !ok {
			return nil, "", errors.New("a bracket is not closed")
		}
		next, rest, err := parseOperand(rest, depth)
		if err != nil {
			return nil, "", err
		}
		switch s = rest; op {
		case "and", "or", "with", "without", "if", "unless":
			r = &rich{op: op, left: r, right: next}
		case "else":
			if r.op != "if" && r.op != "unless" || r.otherwise != nil {
				return nil, "", errors.New("else without if")
			}
			r.otherwise = next
		default:
			return nil, "", fmt.Errorf("unknown operator %.20q", op)
		}
	}
}

// parseOperand parses a bracket, or a name with the version that it must have.
func parseOperand(s string, depth int) (*rich, string, error) {
	s = strings.TrimLeft(s, " \t")
	if strings.HasPrefix(s, "(") {
		return parseBracket(s, depth+1)
	}
	var d pkgdb.Dependency
	d.Name, s = word(s)
	if d.Name == "" {
		return nil, "", errors.New("a name is missing")
	}
	text, rest := word(strings.TrimLeft(s, " \t"))
	if op, ok := operators[text]; ok {
		d.Op = op
		if d.Version, s = word(strings.TrimLeft(rest, " \t")); d.Version == "" {
			return nil, "", errors.New("a version is missing")
		}
	}
	return &rich{one: d}, s, nil
}

// operators are RPM's, and what pkgdb calls them.
var operators = map[string]string{"<": "<<", "<=": "<=", "=": "=", ">=": ">=", ">": ">>"}

// word cuts a word off the front of s. It may have brackets, as in
// "libc.so.6(GLIBC_2.34)(64bit)"; one that it has not opened ends it.
func word(s string) (w, rest string) {
	open := 0
	for i := range len(s) {
		switch s[i] {
		case ' ', '\t':
			return s[:i], s[i:]
		case '(':
			open++
		case ')':
			if open--; open < 0 {
				return s[:i], s[i:]
			}
		}
	}
	return s, ""
}

// groups returns what r asks for on a system where installed says what is there.
func (r *rich) groups(installed func(pkgdb.Dependency) bool) [][]pkgdb.Dependency {
	switch r.op {
	case "":
		return [][]pkgdb.Dependency{{r.one}}
	case "and", "with":
		return append(r.left.groups(installed), r.right.groups(installed)...)
	case "without":
		return r.left.groups(installed)
	case "or":
		left, right := r.left.groups(installed), r.right.groups(installed)
		switch {
		case len(left) == 0 || len(right) == 0:
			return nil // one side asks for nothing
		case len(left) == 1 && len(right) == 1:
			return [][]pkgdb.Dependency{slices.Concat(left[0], right[0])}
		case met(left, installed):
			return left
		}
		return right
	}
	if met(r.right.groups(installed), installed) == (r.op == "if") {
		return r.left.groups(installed)
	}
	if r.otherwise != nil {
		return r.otherwise.groups(installed)
	}
	return nil
}

// met reports whether one of each group is there.
func met(groups [][]pkgdb.Dependency, installed func(pkgdb.Dependency) bool) bool {
	return !slices.ContainsFunc(groups, func(g []pkgdb.Dependency) bool { return !slices.ContainsFunc(g, installed) })
}
