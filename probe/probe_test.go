package probe

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// check asks once, within the time that a test may take.
func check(t *testing.T, e Env, url string) error {
	t.Helper()
	p, err := Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return p.Check(ctx, e)
}

// expect compares an error's text; the empty text is no error.
func expect(t *testing.T, err error, says string) {
	t.Helper()
	if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
		t.Errorf("got %v, want %q", err, says)
	}
}

func TestParse(t *testing.T) {
	for _, url := range []string{
		"http://127.0.0.1/", "http://[::1]:8080/a?status=1&x#status=404&match=a%26b&timeout=300ms", "https://host/#verify=1",
		"dns://127.0.0.1/example.org", "dns://h:5353/?type=NS", "dns://h/x?type=mx&tcp=1&match=mail", "dns://h/x?type=A#timeout=1s",
		"smtp://h/?to=a@b", "smtp://h:2525?to=a@b&from=c@d", "imap://h", "imap://u:p@h:1143/", "imaps://u@h/#verify=0",
		"tcp://127.0.0.1:22", "tcp://h:1/?timeout=1m", "exec:true", "exec: a 'b c' # no", `exec:sh -c 'a | b #'`,
	} {
		p, err := Parse(url)
		if strings.Contains(url, "# no") {
			expect(t, err, "has no meaning")
			continue
		}
		if err != nil || p.String() != url {
			t.Errorf("%s: %v, %v", url, p, err)
		}
	}
	for url, says := range map[string]string{
		"":                                  "unknown scheme",
		"ftp://h/":                          "these are known",
		"127.0.0.1:80":                      "",
		"http:///x":                         "no host",
		"http:x":                            "no host",
		"http://h:0/":                       "no port",
		"http://h:99999/":                   "no port",
		"http://h/#status=abc":              "not a number",
		"http://h/#sttus=200":               `unknown option "sttus"`,
		"http://h/#status=1&%zz":            "invalid URL escape",
		"http://h/#verify=1":                "unknown option",
		"https://h/#verify=yes":             "write 1 or 0",
		"http://h/#timeout=5":               "not a duration",
		"http://h/#timeout=-5s":             "not a duration",
		"http://h/a b\x00":                  "control character",
		"dns://h/a?type=NOSUCH":             "not a record type",
		"dns://h/a..b":                      "not a domain name",
		"dns://h/a?tcp=2":                   "write 1 or 0",
		"dns://h/a?type=A&type=A":           "given twice",
		"dns://h/a?type=A#type=A":           "given twice",
		"smtp://h/":                         "no recipient",
		"smtp://h/x?to=a@b":                 "smtp has none",
		"smtp://h/?to=a%0d%0aRSET":          "not a mail address",
		"smtp://h/?to=a@b&from=<>":          "not a mail address",
		"imap://u%0a:p@h/":                  "printable ASCII",
		"imap://h/?verify=1":                "unknown option",
		"tcp://h":                           "no port",
		"exec:":                             "no command",
		"exec:''":                           "no command",
		"exec:a | b":                        "no shell runs",
		"exec:a 'b":                         "not closed",
		"exec:" + strings.Repeat("x", 9000): "longer than",
	} {
		p, err := Parse(url)
		if err == nil {
			t.Errorf("%s: parsed as %v", url, p)
		} else if !strings.Contains(err.Error(), says) {
			t.Errorf("%.80s: %v, want %q", url, err, says)
		}
	}
	_, err := Parse("imap://user:secret@h/?nosuch=1")
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("the password shows: %v", err)
	}
}

func TestHTTP(t *testing.T) {
	var seen atomic.Value
	elsewhere := "http://192.0.2.1/" // TEST-NET: nothing is there
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.RequestURI)
		_, _ = io.WriteString(w, "hello world")
	})
	mux.HandleFunc("/503", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere, http.StatusFound) })
	mux.HandleFunc("/near", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/503", http.StatusFound) })
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/short", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "short")
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := httptest.NewServer(mux)
	defer s.Close()
	for path, says := range map[string]string{
		"/":                            "",
		"/a?b=c&status=1#match=lo%20w": "",
		"/#match=absent":               `the first 11 bytes of the body don't hold "absent"`,
		"/503":                         "status 503 Service Unavailable, expected below 400",
		"/503#status=503":              "",
		"/#status=404":                 "status 200 OK, expected 404",
		"/away":                        "",
		"/near":                        "status 503",
		"/near#status=302":             "",
		"/loop":                        "more than 5 redirections",
		"/endless":                     "",
		"/short":                       "cut short after 5 bytes: unexpected EOF",
		"/hang#timeout=50ms":           "no answer within 50ms",
	} {
		err := check(t, Env{}, s.URL+path)
		expect(t, err, says)
		if strings.HasPrefix(path, "/a?") && seen.Load() != "/a?b=c&status=1" {
			t.Errorf("%s: the server saw %v", path, seen.Load())
		}
	}
	s.Close()
	err := check(t, Env{}, s.URL+"/")
	if want := s.URL + "/: connection refused"; err == nil || err.Error() != want || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestHTTPS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	expect(t, check(t, Env{}, s.URL), "")
	expect(t, check(t, Env{Roots: x509.NewCertPool()}, s.URL+"#verify=1"), "certificate signed by unknown authority")
	expect(t, check(t, Env{Roots: roots}, s.URL+"#verify=1"), "")
	expect(t, check(t, Env{}, strings.Replace(s.URL, "https", "http", 1)), "status 400")
}

func TestDNS(t *testing.T) {
	var udpAsked atomic.Int32
	mux := dns.NewServeMux()
	mux.HandleFunc(".", func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		overUDP := w.LocalAddr().Network() == "udp"
		if overUDP {
			udpAsked.Add(1)
		}
		switch name {
		case "good.example.", "big.example.":
			if name == "big.example." && overUDP {
				m.Truncated = true
				break
			}
			rr, err := dns.NewRR(name + " 60 IN A 192.0.2.7")
			if err != nil {
				t.Error(err)
			}
			m.Answer = append(m.Answer, rr)
		case "empty.example.":
		case "silent.example.":
			return
		case "odd.example.":
			m.Rcode = 13 // not assigned
		default:
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: mux}, {PacketConn: pc, Handler: mux}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go func() { _ = s.ActivateAndServe() }()
		<-up
		defer func() { _ = s.Shutdown() }()
	}
	base := "dns://" + l.Addr().String() + "/"
	for path, says := range map[string]string{
		"good.example":                   "",
		"good.example?type=A&match=.2.7": "",
		"good.example#match=absent":      `no A record in the answer holds "absent"`,
		"good.example?type=MX":           "the answer holds no MX record",
		"empty.example":                  "the answer holds no A record",
		"missing.example":                "answer NXDOMAIN, expected NOERROR",
		"odd.example":                    "answer code 13",
		"big.example":                    "",
		"silent.example?timeout=50ms":    "no answer within 50ms",
	} {
		expect(t, check(t, Env{}, base+path), says)
	}
	before := udpAsked.Load()
	expect(t, check(t, Env{}, base+"good.example?tcp=1"), "")
	if udpAsked.Load() != before {
		t.Error("tcp=1 asked by UDP")
	}
	for _, s := range []io.Closer{l, pc} {
		s.Close()
	}
	expect(t, check(t, Env{}, base+"good.example"), "connection refused")
	expect(t, check(t, Env{}, base+"good.example?tcp=1"), "connection refused")
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "tcp://" + l.Addr().String()
	expect(t, check(t, Env{}, url), "")
	l.Close()
	expect(t, check(t, Env{}, url), url+": connection refused")
	expect(t, check(t, Env{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no way there")
	}}, url), url+": no way there")
}

func TestExec(t *testing.T) {
	var got []string
	e := Env{Exec: func(_ context.Context, argv []string) ([]byte, int, error) {
		got = argv
		switch argv[0] {
		case "fails":
			return []byte("what is wrong\n" + strings.Repeat("x", 1000)), 3, nil
		case "silent":
			return nil, 1, nil
		case "missing":
			return nil, 0, fmt.Errorf("execute missing: %w", syscall.ENOENT)
		}
		return nil, 0, nil
	}}
	expect(t, check(t, e, `exec:ok "a b" c`), "")
	if fmt.Sprintf("%q", got) != `["ok" "a b" "c"]` {
		t.Errorf("%q", got)
	}
	err := check(t, e, "exec:fails")
	expect(t, err, `exec:fails: exit status 3, expected 0; it said "what is wrong`)
	if len(err.Error()) > 400 {
		t.Errorf("%d bytes of an error", len(err.Error()))
	}
	expect(t, check(t, e, "exec:silent"), "exit status 1, expected 0")
	expect(t, check(t, e, "exec:missing"), "no such file or directory")
	expect(t, check(t, Env{}, "exec:ok"), "can't be run here")
}

func TestSplit(t *testing.T) {
	for in, want := range map[string]string{
		"":                       `[]`,
		"  a\tb  ":               `["a" "b"]`,
		`'a b'"c d"e`:            `["a bc de"]`,
		`a '' ""`:                `["a" "" ""]`,
		`a\ b \\ \' \|`:          `["a b" "\\" "'" "|"]`,
		`"a\"b\\c\d\$"`:          `["a\"b\\c\\d$"]`,
		`'a\b$c'`:                `["a\\b$c"]`,
		`*.c ~ a=b [x]? {y} a#b`: `["*.c" "~" "a=b" "[x]?" "{y}" "a#b"]`,
	} {
		got, err := split(in)
		if err != nil || fmt.Sprintf("%q", got) != want {
			t.Errorf("%s: %q, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"a;b", "a>b", "$x", `"$x"`, "`x`", "(a)", `"a`, "'a", `a\`, "a #b", "a&"} {
		if got, err := split(in); err == nil {
			t.Errorf("%s: %q", in, got)
		}
	}
}

func TestAwait(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var asked atomic.Int32
	e := Env{Exec: func(context.Context, []string) ([]byte, int, error) {
		if asked.Add(1) < 5 {
			return []byte("starting"), 1, nil
		}
		return nil, 0, nil
	}}
	good, err := Parse("tcp://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	late, err := Parse("exec:ready")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := Await(ctx, e, []*Probe{good, late}, nil); err != nil || asked.Load() != 5 {
		t.Errorf("%v after %d questions", err, asked.Load())
	}
	if err := Await(ctx, e, nil, nil); err != nil {
		t.Error(err)
	}

	never := Env{Exec: func(context.Context, []string) ([]byte, int, error) { return []byte("starting"), 1, nil }}
	short, cancelShort := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancelShort()
	err = Await(short, never, []*Probe{good, late}, nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `it said "starting"`) || strings.Contains(err.Error(), "tcp:") {
		t.Error(err)
	}

	// A service that ends is not waited for, not even by a probe that hangs.
	ended := make(chan struct{})
	hangs := Env{Exec: func(ctx context.Context, _ []string) ([]byte, int, error) {
		close(ended)
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}}
	began := time.Now()
	if err = Await(ctx, hangs, []*Probe{late}, ended); !errors.Is(err, ErrEnded) || errors.Is(err, context.Canceled) {
		t.Errorf("%v; does it say that it was called off: %v", err, errors.Is(err, context.Canceled))
	}
	if time.Since(began) > 3*time.Second {
		t.Errorf("it took %v", time.Since(began))
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"http://h:80/p?q#status=404&match=x", "https://h/#verify=1", "dns://1.1.1.1/a.b?type=MX", "smtp://h/?to=a@b", "imap://u:p@h", "tcp://h:1", `exec:a "b\" c" 'd'`, "exec:a | b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err == nil && p.String() != s {
			t.Errorf("%q became %q", s, p)
		}
	})
}
