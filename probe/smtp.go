package probe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

func parseSMTP(u *url.URL, o options) (func(context.Context, Env) error, error) {
	to, from := o.take("to"), o.take("from")
	if to == "" {
		return nil, errors.New("no recipient; write smtp://HOST/?to=ADDRESS")
	}
	if from == "" {
		from = to
	}
	for _, a := range []string{to, from} {
		if len(a) > 254 || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '<' || r == '>' }) {
			return nil, fmt.Errorf("address %q: not a mail address", a)
		}
	}
	return func(ctx context.Context, e Env) error {
		c, done, err := e.connect(ctx, "tcp", address(u, "25"))
		if err != nil {
			return err
		}
		defer done()
		return deliver(dialogue{c, newLines(c)}, from, to)
	}, noPath(u)
}

// deliver hands a message over (RFC 5321).
func deliver(d dialogue, from, to string) error {
	if err := d.expect("the greeting", 220); err != nil {
		return err
	}
	for _, step := range []struct {
		line string
		code int
	}{
		{"EHLO localhost", 250},
		{"MAIL FROM:<" + from + ">", 250},
		{"RCPT TO:<" + to + ">", 250},
		{"DATA", 354},
		{message(from, to, time.Now()), 250},
	} {
		if err := d.say("%s", step.line); err != nil {
			return err
		}
		name, _, _ := strings.Cut(step.line, "\r\n")
		if name != step.line {
			name = "the message"
		}
		if err := d.expect(name, step.code); err != nil {
			return err
		}
	}
	_ = d.say("QUIT") // the message is accepted, whatever comes now
	return nil
}

// message returns the text of a probe's message with the dot that ends it.
func message(from, to string, now time.Time) string {
	return strings.Join([]string{
		"Date: " + now.Format(time.RFC1123Z),
		"From: <" + from + ">",
		"To: <" + to + ">",
		"Message-ID: <" + rand.Text() + "@probe.srvfs>",
		"Subject: srvfs probe",
		"Auto-Submitted: auto-generated",
		"",
		"This message shows that mail is delivered. It can be deleted.",
		".",
	}, "\r\n")
}

func (d dialogue) expect(to string, code int) error {
	got, text, err := readSMTP(d.in)
	if err != nil {
		return fmt.Errorf("answer to %s: %w", to, err)
	}
	if got != code {
		return fmt.Errorf("answer to %s is %d %s, expected %d", to, got, quote(text), code)
	}
	return nil
}

// readSMTP reads one reply: lines of a three-digit code, which all but the last
// join to the text by a hyphen.
func readSMTP(in lines) (code int, text string, err error) {
	var all []string
	for {
		line, err := in.next()
		if err != nil {
			return 0, "", err
		}
		if len(line) < 3 || line[0] < '2' || line[0] > '5' || line[1] < '0' || line[1] > '9' || line[2] < '0' || line[2] > '9' ||
			len(line) > 3 && line[3] != '-' && line[3] != ' ' {
			return 0, "", fmt.Errorf("%s is no SMTP reply", quote(line))
		}
		n := int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
		if len(all) > 0 && n != code {
			return 0, "", fmt.Errorf("one SMTP reply with the codes %d and %d", code, n)
		}
		code = n
		if len(line) > 4 {
			all = append(all, line[4:])
		} else {
			all = append(all, "")
		}
		if len(line) == 3 || line[3] == ' ' {
			return code, strings.Join(all, " "), nil
		}
	}
}
