package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

func parseExec(command string) (func(context.Context, Env) error, error) {
	argv, err := split(command)
	if err != nil {
		return nil, err
	}
	if len(argv) == 0 || argv[0] == "" {
		return nil, errors.New("no command; write exec:COMMAND")
	}
	return func(ctx context.Context, e Env) error {
		if e.Exec == nil {
			return errors.New("commands can't be run here")
		}
		out, exit, err := e.Exec(ctx, argv)
		switch {
		case err != nil:
			return err
		case exit == 0:
			return nil
		case len(out) == 0:
			return fmt.Errorf("exit status %d, expected 0", exit)
		}
		return fmt.Errorf("exit status %d, expected 0; it said %s", exit, quote(string(out)))
	}, nil
}

// beyond are the characters by which a shell does more than split.
const beyond = "|&;<>()$`#"

// split splits a command line into words; see the package comment.
func split(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	in := false // a word, perhaps an empty one in quotes
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ' ' || c == '\t':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
			continue
		case c == '\\':
			if i++; i == len(s) {
				return nil, errors.New("nothing follows the last backslash")
			}
			word.WriteByte(s[i])
		case c == '\'':
			n := strings.IndexByte(s[i+1:], '\'')
			if n < 0 {
				return nil, errors.New("a single quote is not closed")
			}
			word.WriteString(s[i+1 : i+1+n])
			i += n + 1
		case c == '"':
			n, err := splitDouble(s[i+1:], &word)
			if err != nil {
				return nil, err
			}
			i += n
		case strings.IndexByte(beyond, c) >= 0 && (c != '#' || !in):
			return nil, fmt.Errorf("%q has no meaning, for no shell runs; quote it, or write exec:sh -c '...'", c)
		default:
			word.WriteByte(c)
		}
		in = true
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

// splitDouble reads up to the closing double quote, and returns how many bytes
// that took with it.
func splitDouble(s string, word *strings.Builder) (int, error) {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '"':
			return i + 1, nil
		case '$', '`':
			return 0, fmt.Errorf("%q has no meaning, for no shell runs; use single quotes", c)
		case '\\':
			if i+1 < len(s) && strings.IndexByte("\"\\$`", s[i+1]) >= 0 {
				i++
			}
			word.WriteByte(s[i])
		default:
			word.WriteByte(c)
		}
	}
	return 0, errors.New("a double quote is not closed")
}
