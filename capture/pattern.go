package capture

import (
	"fmt"
	"path"
	"strings"

	"srvfs/manifest"
)

// A Pattern matches canonical paths. In a name, "*" stands for any bytes and
// "?" for one; "**" as a whole name stands for any number of names. A pattern
// without a slash is compared with each name of a path: "*.bak". What a pattern
// matches, it matches with everything below it.
type Pattern struct {
	text  string
	names []string // what a path is compared with, name by name
	plain bool     // no name has a wildcard
}

// ParsePattern reads a pattern: absolute, or without a slash. The error wraps
// [manifest.ErrInvalid].
func ParsePattern(s string) (Pattern, error) {
	switch {
	case s == "" || len(s) > manifest.MaxPath:
		return Pattern{}, fmt.Errorf("pattern %.80q: empty or too long: %w", s, manifest.ErrInvalid)
	case !strings.Contains(s, "/"):
		return Pattern{text: s, names: []string{"**", s}}, nil
	case s[0] != '/':
		return Pattern{}, fmt.Errorf("pattern %q: neither an absolute path nor a single name: %w", s, manifest.ErrInvalid)
	}
	p := Pattern{text: s}
	for name := range strings.SplitSeq(path.Clean(s)[1:], "/") {
		if name != "" && (name != "**" || len(p.names) == 0 || p.names[len(p.names)-1] != "**") {
			p.names = append(p.names, name)
		}
	}
	// What is below is matched anyway.
	if n := len(p.names); n > 1 && p.names[n-1] == "**" {
		p.names = p.names[:n-1]
	}
	return p, nil
}

// literal returns a pattern that matches the clean path p and what is below it.
func literal(p string) Pattern {
	return Pattern{text: p, names: strings.Split(strings.Trim(p, "/"), "/"), plain: true}
}

// String returns the pattern's text.
func (p Pattern) String() string { return p.text }

// Match reports whether the pattern matches the clean absolute path s, or a
// folder above it.
func (p Pattern) Match(s string) bool {
	return p.match(p.names, strings.TrimPrefix(s, "/"))
}

func (p Pattern) match(names []string, rest string) bool {
	for i, name := range names {
		if name == "**" && !p.plain {
			for names = names[i+1:]; ; {
				if p.match(names, rest) {
					return true
				}
				_, tail, more := strings.Cut(rest, "/")
				if !more {
					return false
				}
				rest = tail
			}
		}
		if rest == "" {
			return false
		}
		have, tail, _ := strings.Cut(rest, "/")
		if have != name && (p.plain || !wild(name, have)) {
			return false
		}
		rest = tail
	}
	return true
}

// wild matches one name. It goes back to the last "*" only, which is enough, and
// takes time in proportion to the product of the lengths.
func wild(pattern, s string) bool {
	i, j, star, mark := 0, 0, -1, 0
	for j < len(s) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, j
			i++
		case i < len(pattern) && (pattern[i] == '?' || pattern[i] == s[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[i:], "*") == ""
}

// mustPatterns parses patterns of the program's own.
func mustPatterns(ss ...string) []Pattern {
	out := make([]Pattern, len(ss))
	for i, s := range ss {
		p, err := ParsePattern(s)
		if err != nil {
			panic(err)
		}
		out[i] = p
	}
	return out
}

func matchAny(ps []Pattern, s string) bool {
	for i := range ps {
		if ps[i].Match(s) {
			return true
		}
	}
	return false
}

// firstMatch returns the shortest folder above s, or s, that one of ps matches.
func firstMatch(ps []Pattern, s string) (string, bool) {
	if !matchAny(ps, s) {
		return "", false
	}
	for i := 1; i < len(s); i++ {
		if s[i] == '/' && matchAny(ps, s[:i]) {
			return s[:i], true
		}
	}
	return s, true
}
