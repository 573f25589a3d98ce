package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

func parseIMAP(u *url.URL, o options) (func(context.Context, Env) error, error) {
	secure := u.Scheme == "imaps"
	port, verify := "143", false
	if secure {
		port = "993"
		var err error
		if verify, err = o.flag("verify"); err != nil {
			return nil, err
		}
	}
	user := u.User.Username()
	password, _ := u.User.Password()
	for _, s := range []string{user, password} {
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
			return nil, errors.New("user and password can hold printable ASCII characters only")
		}
	}
	return func(ctx context.Context, e Env) error {
		c, done, err := e.connect(ctx, "tcp", address(u, port))
		if err != nil {
			return err
		}
		defer done()
		if secure {
			t := tls.Client(c, tlsConfig(e, u.Hostname(), verify))
			if err := t.HandshakeContext(ctx); err != nil {
				return err
			}
			c = t
		}
		return visit(dialogue{c, newLines(c)}, user, password)
	}, noPath(u)
}

// visit logs in and out (RFC 9051, and RFC 3501 before it).
func visit(d dialogue, user, password string) error {
	greeting, err := d.in.next()
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if !foldPrefix(greeting, "* OK") && !foldPrefix(greeting, "* PREAUTH") {
		return fmt.Errorf("greeting is %s, expected \"* OK\"", quote(greeting))
	}
	speaks := false
	if err := d.command("a1", "CAPABILITY", "CAPABILITY", func(line string) {
		words := strings.Fields(strings.ToUpper(line))
		if len(words) > 1 && words[1] == "CAPABILITY" {
			for _, w := range words {
				speaks = speaks || strings.HasPrefix(w, "IMAP4")
			}
		}
	}); err != nil {
		return err
	}
	if !speaks {
		return errors.New("its CAPABILITY names no version of IMAP4")
	}
	if user != "" {
		if err := d.command("a2", "LOGIN", "LOGIN "+quoteIMAP(user)+" "+quoteIMAP(password), nil); err != nil {
			return err
		}
	}
	return d.command("a3", "LOGOUT", "LOGOUT", nil)
}

func foldPrefix(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// quoteIMAP returns a quoted string of printable ASCII.
func quoteIMAP(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// command sends a command and reads up to its tagged answer. Name is what
// errors say, for the command may hold a password.
func (d dialogue) command(tag, name, command string, untagged func(line string)) error {
	if err := d.say("%s %s", tag, command); err != nil {
		return err
	}
	status, text, err := readIMAP(d.in, tag, untagged)
	if err != nil {
		return fmt.Errorf("answer to %s: %w", name, err)
	}
	if status != "OK" {
		return fmt.Errorf("answer to %s is %s %s, expected OK", name, status, quote(text))
	}
	return nil
}

// readIMAP reads a response up to the line with tag. Untagged lines go to
// untagged, without the literals in them.
func readIMAP(in lines, tag string, untagged func(line string)) (status, text string, err error) {
	for {
		line, err := in.next()
		if err != nil {
			return "", "", err
		}
		for {
			n, ok := literal(line)
			if !ok {
				break
			}
			if err := in.skip(n); err != nil {
				return "", "", fmt.Errorf("a literal of %d bytes: %w", n, err)
			}
			rest, err := in.next()
			if err != nil {
				return "", "", err
			}
			line = line[:strings.LastIndexByte(line, '{')] + rest
			if len(line) > maxLine {
				return "", "", fmt.Errorf("a line of more than %d bytes", maxLine)
			}
		}
		first, rest, _ := strings.Cut(line, " ")
		switch first {
		case "*":
			if untagged != nil {
				untagged(line)
			}
		case tag:
			status, text, _ = strings.Cut(rest, " ")
			status = strings.ToUpper(status)
			if status != "OK" && status != "NO" && status != "BAD" {
				return "", "", fmt.Errorf("%s is no IMAP response", quote(line))
			}
			return status, text, nil
		default:
			return "", "", fmt.Errorf("%s is no IMAP response to %s", quote(line), tag)
		}
	}
}

// literal reports whether a line announces a literal, and its length in bytes.
func literal(line string) (int, bool) {
	if !strings.HasSuffix(line, "}") {
		return 0, false
	}
	digits := line[strings.LastIndexByte(line, '{')+1 : len(line)-1]
	n, err := strconv.ParseUint(digits, 10, 31)
	return int(n), err == nil && strings.LastIndexByte(line, '{') >= 0
}
