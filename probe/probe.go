package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// An Env is where a probe asks. The zero Env asks from here, and refuses exec:
// probes.
type Env struct {
	// Dial connects to the service; nil is the host's network.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Exec runs a command where the service runs and returns what it wrote. The
	// error is for commands that could not be run. Nil refuses.
	Exec func(ctx context.Context, argv []string) (output []byte, exit int, err error)
	// Roots are the authorities for verify=1; nil is those of the host.
	Roots *x509.CertPool
}

func (e Env) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := e.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	c, err := dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	return c, nil
}

// connect dials, and cuts the connection when ctx ends. The caller calls done.
func (e Env) connect(ctx context.Context, network, addr string) (c net.Conn, done func(), err error) {
	c, err = e.dial(ctx, network, addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return c, func() { stop(); _ = c.Close() }, nil
}

// Limits.
const (
	defaultTimeout = 5 * time.Second
	maxAnswer      = 1 << 20 // bytes of an answer that are looked at
	maxURL         = 8 << 10 // bytes of a probe's URL, as manifest has it
	maxShown       = 200     // bytes of an answer that an error quotes
)

// A Probe is one question. It is made by Parse and may be used by several
// goroutines.
type Probe struct {
	url     string
	shown   string // url without a password
	timeout time.Duration
	ask     func(ctx context.Context, e Env) error
}

// String returns the URL that the probe was parsed from, password included.
func (p *Probe) String() string { return p.url }

// Parse reads a probe's URL, in the form that the package comment describes.
func Parse(s string) (*Probe, error) {
	p, err := parse(s)
	if err != nil {
		return nil, fmt.Errorf("probe %q: %w", redact(s), err)
	}
	return p, nil
}

func redact(s string) string {
	if u, err := url.Parse(s); err == nil && u.User != nil {
		return u.Redacted()
	}
	return s
}

func parse(s string) (*Probe, error) {
	if len(s) > maxURL {
		return nil, fmt.Errorf("longer than %d bytes", maxURL)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		return nil, fmt.Errorf("control character %q", s[i])
	}
	p := &Probe{url: s, shown: s, timeout: defaultTimeout}
	if command, ok := strings.CutPrefix(s, "exec:"); ok {
		var err error
		p.ask, err = parseExec(command)
		return p, err
	}
	u, err := url.Parse(s)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, err
	}
	parseScheme, ok := schemes[u.Scheme]
	if !ok {
		return nil, errors.New("unknown scheme; these are known: http, https, dns, smtp, imap, imaps, tcp, exec")
	}
	if u.Hostname() == "" || u.Opaque != "" {
		return nil, fmt.Errorf("no host; write %s://HOST", u.Scheme)
	}
	if n, err := strconv.Atoi(u.Port()); u.Port() != "" && (err != nil || n < 1 || n > 65535) {
		return nil, fmt.Errorf("no port %q", u.Port())
	}
	p.shown = u.Redacted()
	o, err := readOptions(u)
	if err != nil {
		return nil, err
	}
	if v := o.take("timeout"); v != "" {
		p.timeout, err = time.ParseDuration(v)
		if err != nil || p.timeout <= 0 {
			return nil, fmt.Errorf("timeout %q: not a duration such as 2s or 500ms", v)
		}
	}
	if p.ask, err = parseScheme(u, o); err != nil {
		return nil, err
	}
	return p, o.finish()
}

// schemes hold what reads the rest of a URL and returns the question.
var schemes = map[string]func(*url.URL, options) (func(context.Context, Env) error, error){
	"http": parseHTTP, "https": parseHTTP, "dns": parseDNS, "smtp": parseSMTP, "imap": parseIMAP, "imaps": parseIMAP, "tcp": parseTCP,
}

// Check asks once. Nil means that the service does its job; otherwise the error
// says what it did instead, and wraps the cause. It returns within the probe's
// timeout, or when ctx ends if that is earlier.
func (p *Probe) Check(ctx context.Context, e Env) error {
	own, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	err := p.ask(own, e)
	if err == nil {
		return nil
	}
	late := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) // a connection's clock may be first
	if late || own.Err() != nil && (errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled)) {
		if outer, ok := ctx.Deadline(); ctx.Err() != nil || ok && !time.Now().Before(outer) {
			return fmt.Errorf("%s: %w", p.shown, &reason{"no answer yet", errors.Join(err, ctx.Err())})
		}
		return fmt.Errorf("%s: %w", p.shown, &reason{fmt.Sprintf("no answer within %v", p.timeout), context.DeadlineExceeded})
	}
	return fmt.Errorf("%s: %w", p.shown, plain(err))
}

// A reason is an error with the words that a person needs, in place of the
// layers that it came through.
type reason struct {
	text  string
	cause error
}

func (r *reason) Error() string { return r.text }
func (r *reason) Unwrap() error { return r.cause }

// plain shortens what the network packages say: the URL is said already.
func plain(err error) error {
	var r *reason
	if errors.As(err, &r) {
		return r
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return &reason{errno.Error(), err}
	}
	var name *net.DNSError
	if errors.As(err, &name) {
		return &reason{fmt.Sprintf("name %s: %s", name.Name, name.Err), err}
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// quote shows the beginning of an answer.
func quote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxShown {
		s = s[:maxShown] + "..."
	}
	return strconv.Quote(s)
}

// options are those of the probe itself; taking one removes it.
type options map[string]string

func readOptions(u *url.URL) (options, error) {
	fragment, err := url.ParseQuery(u.EscapedFragment())
	if err != nil {
		return nil, fmt.Errorf("options %q: %w", u.Fragment, err)
	}
	all := []url.Values{fragment}
	if u.Scheme != "http" && u.Scheme != "https" {
		query, err := url.ParseQuery(u.RawQuery)
		if err != nil {
			return nil, fmt.Errorf("options %q: %w", u.RawQuery, err)
		}
		all = append(all, query)
	}
	o := make(options)
	for _, values := range all {
		for k, v := range values {
			if _, twice := o[k]; twice || len(v) != 1 {
				return nil, fmt.Errorf("option %s is given twice", k)
			}
			o[k] = v[0]
		}
	}
	return o, nil
}

func (o options) take(name string) string {
	v := o[name]
	delete(o, name)
	return v
}

// flag reads an option that is 1 or 0.
func (o options) flag(name string) (bool, error) {
	switch v := o.take(name); v {
	case "1":
		return true, nil
	case "", "0":
		return false, nil
	default:
		return false, fmt.Errorf("option %s=%s: write 1 or 0", name, v)
	}
}

func (o options) finish() error {
	for k := range o {
		return fmt.Errorf("unknown option %q", k)
	}
	return nil
}

// address returns host and port of u for dialling.
func address(u *url.URL, port string) string {
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// noPath refuses a path where the scheme has no use for it.
func noPath(u *url.URL) error {
	if u.Path != "" && u.Path != "/" {
		return fmt.Errorf("path %q: %s has none", u.Path, u.Scheme)
	}
	return nil
}

func tlsConfig(e Env, host string, verify bool) *tls.Config {
	// Without verify it is asked whether TLS answers: a stand-in has the
	// certificate of the source, and is probed by address.
	return &tls.Config{ServerName: host, InsecureSkipVerify: !verify, RootCAs: e.Roots}
}

func parseTCP(u *url.URL, _ options) (func(context.Context, Env) error, error) {
	if u.Port() == "" {
		return nil, errors.New("no port; write tcp://HOST:PORT")
	}
	return func(ctx context.Context, e Env) error {
		c, err := e.dial(ctx, "tcp", u.Host)
		if err == nil {
			err = c.Close()
		}
		return err
	}, noPath(u)
}
