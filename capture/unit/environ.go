package unit

import (
	"errors"
	"io/fs"
	"strings"
	"unicode/utf8"

	"srvfs/capture/rootfs"
)

// environment holds variables in the order in which they were first set.
type environment struct {
	names  []string
	values map[string]string
}

func (e *environment) set(name, value string) {
	if e.values == nil {
		e.values = map[string]string{}
	}
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) get(name string) (string, bool) {
	v, ok := e.values[name]
	return v, ok
}

// list returns the variables as KEY=value.
func (e *environment) list() []string {
	var all []string
	for _, n := range e.names {
		if v, ok := e.values[n]; ok {
			all = append(all, n+"="+v)
		}
	}
	return all
}

// baseEnvironment sets what every unit gets: PATH and the system's locale. It
// returns the files that it read.
func baseEnvironment(root *rootfs.Root, env *environment) []string {
	env.set("PATH", strings.Join(defaultPath, ":"))
	for _, file := range []string{"/etc/locale.conf", "/etc/default/locale"} {
		b, err := root.ReadFile(file, maxEnvFile)
		if err != nil {
			continue
		}
		for _, v := range parseEnvFile(string(b)) {
			if v.name == "LANG" || v.name == "LANGUAGE" || strings.HasPrefix(v.name, "LC_") {
				env.set(v.name, v.value)
			}
		}
		return []string{file}
	}
	return nil
}

// isAbsent tells a file that does not exist from one that can't be read.
func isAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

type variable struct{ name, value string }

// parseEnvFile reads a file of assignments as systemd reads EnvironmentFile=:
// like a shell's, with quotes of both kinds and backslashes, and without any
// expansion. What is no assignment to a valid name is passed over.
func parseEnvFile(text string) []variable {
	var all []variable
	p := envParser{s: text}
	for p.i < len(p.s) {
		switch c := p.s[p.i]; {
		case c == '#' || c == ';':
			p.comment()
		case strings.IndexByte(space, c) >= 0:
			p.i++
		default:
			end := strings.IndexAny(p.s[p.i:], "=\n\r")
			if end < 0 {
				return all
			}
			name := strings.TrimRight(p.s[p.i:p.i+end], " \t")
			p.i += end + 1
			if p.s[p.i-1] != '=' {
				continue // a line without "="
			}
			value := p.value()
			if isName(name) && utf8.ValidString(value) && strings.IndexByte(value, 0) < 0 {
				all = append(all, variable{name, value})
			}
		}
	}
	return all
}

type envParser struct {
	s string
	i int
}

// comment passes over a line; a backslash at its end continues it.
func (p *envParser) comment() {
	for p.i < len(p.s) && p.s[p.i] != '\n' && p.s[p.i] != '\r' {
		if p.s[p.i] == '\\' {
			p.i++
		}
		p.i++
	}
}

// value reads what stands after "=" up to the end of the line. Quotes count at
// its beginning, and after a quoted part.
func (p *envParser) value() string {
	var b strings.Builder
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch c {
		case '\n', '\r':
			return b.String()
		case ' ', '\t':
		case '\'':
			end := strings.IndexByte(p.s[p.i:], '\'')
			if end < 0 {
				end = len(p.s) - p.i
			}
			b.WriteString(p.s[p.i : p.i+end])
			p.i = min(p.i+end+1, len(p.s))
		case '"':
			p.doubleQuoted(&b)
		default:
			p.i--
			p.plain(&b)
			return b.String()
		}
	}
	return b.String()
}

func (p *envParser) doubleQuoted(b *strings.Builder) {
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			return
		case c != '\\' || p.i == len(p.s):
			b.WriteByte(c)
		default:
			c = p.s[p.i]
			p.i++
			if strings.IndexByte("\"\\`$", c) >= 0 {
				b.WriteByte(c)
			} else if c != '\n' {
				b.WriteByte('\\')
				b.WriteByte(c)
			}
		}
	}
}

// plain reads an unquoted value; white space at its end does not count, unless
// it was escaped.
func (p *envParser) plain(b *strings.Builder) {
	keep := b.Len()
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		if c == '\n' || c == '\r' {
			break
		}
		if c == '\\' {
			if p.i < len(p.s) {
				if c = p.s[p.i]; c != '\n' {
					b.WriteByte(c)
				}
				p.i++
			}
			keep = b.Len()
			continue
		}
		b.WriteByte(c)
		if c != ' ' && c != '\t' {
			keep = b.Len()
		}
	}
	s := b.String()[:keep]
	b.Reset()
	b.WriteString(s)
}
