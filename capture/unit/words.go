package unit

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

var (
	errQuote  = errors.New("a quote is not closed")
	errEscape = errors.New("unknown escape after a backslash")
)

const space = " \t\n\r"

// nextWord takes the first word off s: words are separated by white space,
// quotes (of both kinds, anywhere in a word) are removed, and C escapes replaced.
// No word left: ok is false.
func nextWord(s string) (word, rest string, ok bool, err error) {
	s = strings.TrimLeft(s, space)
	if s == "" {
		return "", "", false, nil
	}
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '\\':
			n, err := unescape(&b, s[i+1:])
			if err != nil {
				return "", "", false, err
			}
			i += 1 + n
			continue
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			b.WriteByte(c)
		case c == '"' || c == '\'':
			quote = c
		case strings.IndexByte(space, c) >= 0:
			return b.String(), strings.TrimLeft(s[i:], space), true, nil
		default:
			b.WriteByte(c)
		}
		i++
	}
	if quote != 0 {
		return "", "", false, errQuote
	}
	return b.String(), "", true, nil
}

// unescape writes what the escape at the start of s (after the backslash)
// stands for, and returns how many bytes of s it takes.
func unescape(b *strings.Builder, s string) (int, error) {
	if s == "" {
		return 0, errEscape
	}
	if i := strings.IndexByte(`abfnrtvs\"'`, s[0]); i >= 0 {
		b.WriteByte("\a\b\f\n\r\t\v \\\"'"[i])
		return 1, nil
	}
	digits, base := 0, 16
	switch s[0] {
	case 'x':
		digits = 2
	case 'u':
		digits = 4
	case 'U':
		digits = 8
	case '0', '1', '2', '3', '4', '5', '6', '7':
		digits, base = 3, 8
	default:
		return 0, errEscape
	}
	from := 1
	if base == 8 {
		from = 0
	}
	if len(s) < from+digits {
		return 0, errEscape
	}
	v, err := strconv.ParseUint(s[from:from+digits], base, 32)
	if err != nil || v == 0 { // NUL can't be in an argument
		return 0, errEscape
	}
	switch {
	case digits <= 3:
		if v > 255 {
			return 0, errEscape
		}
		b.WriteByte(byte(v))
	case v > utf8.MaxRune || !utf8.ValidRune(rune(v)):
		return 0, errEscape
	default:
		b.WriteRune(rune(v))
	}
	return from + digits, nil
}

// splitWords returns all words of s.
func splitWords(s string) ([]string, error) {
	var words []string
	for {
		w, rest, ok, err := nextWord(s)
		if err != nil || !ok {
			return words, err
		}
		words = append(words, w)
		s = rest
	}
}

// keepMainPID is the variable that is not known yet; see the package comment.
const keepMainPID = "MAINPID"

// expandArgument replaces variables in one argument as systemd does when it
// runs a command: an argument that is exactly $NAME becomes the words of the
// value, ${NAME} within one is replaced in place, $$ is a dollar. A variable that
// is not set is nothing. With keep, MAINPID is left as it stands.
func expandArgument(arg string, get func(string) (string, bool), keep bool) []string {
	if len(arg) > 1 && arg[0] == '$' && arg[1] != '{' && arg[1] != '$' && isName(arg[1:]) {
		if keep && arg[1:] == keepMainPID {
			return []string{arg}
		}
		v, _ := get(arg[1:])
		words, err := splitWords(v)
		if err != nil {
			return strings.Fields(v)
		}
		return words
	}
	var b strings.Builder
	for i := 0; i < len(arg); {
		if arg[i] != '$' || i+1 == len(arg) {
			b.WriteByte(arg[i])
			i++
			continue
		}
		if arg[i+1] == '$' {
			b.WriteByte('$')
			i += 2
			continue
		}
		if arg[i+1] == '{' {
			if end := strings.IndexByte(arg[i:], '}'); end > 0 && isName(arg[i+2:i+end]) {
				name := arg[i+2 : i+end]
				if keep && name == keepMainPID {
					b.WriteString(arg[i : i+end+1])
				} else {
					v, _ := get(name)
					b.WriteString(v)
				}
				i += end + 1
				continue
			}
		}
		b.WriteByte('$')
		i++
	}
	return []string{b.String()}
}

// isName reports whether s can name an environment variable.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9' || i == 0) {
			return false
		}
	}
	return s != ""
}
