package probe

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A script is a server that sends its first line, and for each line that it reads
// the next; it reports what it read. An empty line sends nothing. A message after
// DATA is one line to it.
func script(t *testing.T, wrap func(net.Conn) net.Conn, say ...string) (addr string, heard <-chan []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	out := make(chan []string, 1)
	go func() {
		var lines []string
		defer func() { out <- lines }()
		c, err := l.Accept()
		if err != nil {
			return
		}
		if wrap != nil {
			c = wrap(c)
		}
		defer c.Close()
		in := bufio.NewScanner(c)
		for i, s := range say {
			if i > 0 {
				if !in.Scan() {
					return
				}
				line := in.Text()
				for i > 1 && strings.HasPrefix(say[i-1], "354") && !strings.HasSuffix(line, "\n.") && in.Scan() {
					line += "\n" + in.Text()
				}
				lines = append(lines, line)
			}
			if s != "" {
				fmt.Fprint(c, strings.ReplaceAll(s, "\n", "\r\n")+"\r\n")
			}
		}
	}()
	return l.Addr().String(), out
}

func TestSMTP(t *testing.T) {
	addr, heard := script(t, nil, "220-welcome\n220 here", "250-me\n250 SIZE 1", "250 ok", "250 ok", "354 go on", "250 queued", "221 bye")
	expect(t, check(t, Env{}, "smtp://"+addr+"/?to=a@example.org&from=b@example.org"), "")
	got := <-heard
	if len(got) != 6 || got[0] != "EHLO localhost" || got[1] != "MAIL FROM:<b@example.org>" || got[2] != "RCPT TO:<a@example.org>" || got[3] != "DATA" || got[5] != "QUIT" {
		t.Errorf("%q", got)
	} else {
		for _, h := range []string{"Date: ", "\nMessage-ID: <", "\nSubject: ", "\nFrom: <b@example.org>\n", "\nTo: <a@example.org>\n", "\n\n", "\n."} {
			if !strings.Contains(got[4], h) {
				t.Errorf("no %q in %q", h, got[4])
			}
		}
	}
	for says, lines := range map[string][]string{
		"answer to the greeting is 554 \"go away\", expected 220":            {"554 go away"},
		"answer to RCPT TO:<a@b> is 550 \"no such user here\", expected 250": {"220 x", "250 x", "250 x", "550-no such\n550 user here"},
		"answer to the message is 451 \"disk full\", expected 250":           {"220 x", "250 x", "250 x", "250 x", "354 x", "451 disk full"},
		"answer to EHLO localhost: the connection was closed":                {"220 x"},
		`"SSH-2.0-x" is no SMTP reply`:                                       {"SSH-2.0-x"},
		"with the codes 220 and 250":                                         {"220-a\n250 b"},
		"a line of more than 8192 bytes":                                     {"220 " + strings.Repeat("x", 10000)},
		"more than 1048576 bytes":                                            {strings.Repeat("220-"+strings.Repeat("x", 1000)+"\n", 1100)},
	} {
		addr, _ := script(t, nil, lines...)
		expect(t, check(t, Env{}, "smtp://"+addr+"/?to=a@b"), says)
	}
	addr, _ = script(t, nil, "", "")
	expect(t, check(t, Env{}, "smtp://"+addr+"/?to=a@b&timeout=50ms"), "no answer within 50ms")
}

func TestIMAP(t *testing.T) {
	addr, heard := script(t, nil, "* OK ready", "* CAPABILITY IMAP4rev1 IDLE\na1 OK done", "* 1 EXISTS {4}\nab\n more\na2 OK in", "* BYE\na3 OK out")
	expect(t, check(t, Env{}, `imap://us%22er:p%5Cass@`+addr), "")
	if got := <-heard; fmt.Sprintf("%q", got) != `["a1 CAPABILITY" "a2 LOGIN \"us\\\"er\" \"p\\\\ass\"" "a3 LOGOUT"]` {
		t.Errorf("%q", got)
	}
	addr, _ = script(t, nil, "* PREAUTH ready", "* CAPABILITY IMAP4rev2\na1 OK", "a3 OK")
	expect(t, check(t, Env{}, "imap://"+addr), "")
	for says, lines := range map[string][]string{
		`greeting is "* BYE overloaded"`:                         {"* BYE overloaded"},
		"names no version of IMAP4":                              {"* OK", "a1 OK"},
		`answer to LOGIN is NO "wrong password", expected OK`:    {"* OK", "* CAPABILITY IMAP4rev1\na1 OK", "a2 NO wrong password"},
		`"a9 OK" is no IMAP response to a1`:                      {"* OK", "a9 OK"},
		`"a1 WHAT" is no IMAP response`:                          {"* OK", "a1 WHAT"},
		"a literal of 2000000000 bytes: more than 1048576 bytes": {"* OK", "* x {2000000000}\n" + strings.Repeat("x", 2<<20)},
		"answer to LOGOUT: the connection was closed":            {"* OK", "* CAPABILITY IMAP4rev1\na1 OK", "a2 OK"},
	} {
		addr, _ := script(t, nil, lines...)
		err := check(t, Env{}, "imap://user:secret@"+addr)
		expect(t, err, says)
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the password shows: %v", err)
		}
	}
}

func TestIMAPS(t *testing.T) {
	s := httptest.NewTLSServer(nil) // for its certificate
	defer s.Close()
	wrap := func(c net.Conn) net.Conn { return tls.Server(c, &tls.Config{Certificates: s.TLS.Certificates}) }
	lines := []string{"* OK", "* CAPABILITY IMAP4rev1\na1 OK", "a3 OK"}
	addr, _ := script(t, wrap, lines...)
	expect(t, check(t, Env{}, "imaps://"+addr), "")
	addr, _ = script(t, wrap, lines...)
	expect(t, check(t, Env{}, "imaps://"+addr+"/#verify=1"), "certificate")
}

func FuzzSMTPReply(f *testing.F) {
	for _, s := range []string{"220 x\r\n", "250-a\r\n250 b\r\n", "250\r\n", "25", "999 x\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		code, _, err := readSMTP(newLines(strings.NewReader(s)))
		if err == nil && (code < 200 || code > 599) {
			t.Errorf("%q: code %d", s, code)
		}
	})
}

func FuzzIMAPResponse(f *testing.F) {
	for _, s := range []string{"* OK\r\na1 OK done\r\n", "* x {3}\r\nabc\r\na1 NO\r\n", "* {99999999999}\r\n", "a1 {}\r\n", "{0}\r\n{0}\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		began := time.Now()
		status, _, err := readIMAP(newLines(strings.NewReader(s)), "a1", func(string) {})
		if err == nil && status != "OK" && status != "NO" && status != "BAD" {
			t.Errorf("%q: status %q", s, status)
		}
		if time.Since(began) > 5*time.Second {
			t.Errorf("%d bytes took %v", len(s), time.Since(began))
		}
	})
}
