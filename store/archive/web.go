package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"srvfs/manifest"
)

// Deadlines of a request: until there is a connection, until the answer begins, and as
// long as nothing more of it comes.
const (
	dialTimeout   = 5 * time.Second
	answerTimeout = 10 * time.Second
	stallTimeout  = 10 * time.Second
)

func newTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	t.TLSHandshakeTimeout = dialTimeout
	t.ResponseHeaderTimeout = answerTimeout
	t.MaxIdleConnsPerHost = parallel
	return t
}

// A webFile is a file on a web server that answers range requests.
type webFile struct {
	client *http.Client
	url    string
	n      int64
	tag    string // the entity's tag, if the server has them
}

func openWeb(ctx context.Context, url string, o OpenOptions) (*webFile, error) {
	t := o.Transport
	if t == nil {
		t = newTransport()
	}
	w := &webFile{client: &http.Client{Transport: t}, url: url, n: -1}
	_, err := w.read(ctx, 0, 1)
	return w, err
}

func (w *webFile) size() int64 { return w.n }

func (w *webFile) close() error {
	w.client.CloseIdleConnections()
	return nil
}

func (w *webFile) read(ctx context.Context, off, n int64) ([]byte, error) {
	if n == 0 {
		return nil, ctx.Err()
	}
	if w.n >= 0 && off+n > w.n {
		return nil, fmt.Errorf("%s ends at %d bytes, before the %d that are needed: %w", w.url, w.n, off+n, manifest.ErrCorrupt)
	}
	return getRange(ctx, w.client, w.url, off, n, func(total int64, tag string) error {
		switch {
		case w.n < 0:
			w.n, w.tag = total, tag
		case w.n != total || w.tag != tag:
			return fmt.Errorf("%s was replaced while it is read: open it again: %w", w.url, manifest.ErrStale)
		}
		return nil
	})
}

// getRange reads a part of what is at a URL; check is told the length of the whole.
func getRange(ctx context.Context, c *http.Client, url string, off, n int64, check func(total int64, tag string) error) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("%.200q: %w: %w", url, err, manifest.ErrInvalid)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := c.Do(req)
	if err != nil {
		return nil, unreachable(ctx, url, err)
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusPartialContent:
		total, err := contentRange(resp.Header.Get("Content-Range"), off, n)
		if err == nil {
			err = check(total, resp.Header.Get("Etag"))
		}
		if err != nil {
			return nil, err
		}
	case http.StatusOK:
		if off != 0 || resp.ContentLength != n {
			return nil, fmt.Errorf("%s: the server does not answer range requests, so nothing can be mounted from it: fetch the file, and use that: %w", url, manifest.ErrInvalid)
		}
		if err := check(n, resp.Header.Get("Etag")); err != nil {
			return nil, err
		}
	default:
		return nil, refusal(url, resp)
	}
	b := make([]byte, n)
	// A server that goes silent is left.
	stall := time.AfterFunc(stallTimeout, func() {
		cancel(fmt.Errorf("nothing came for %v: %w", stallTimeout, manifest.ErrUnavailable))
	})
	defer stall.Stop()
	for got := 0; got < len(b); {
		k, err := resp.Body.Read(b[got:min(len(b), got+256<<10)])
		got += k
		stall.Reset(stallTimeout)
		if err != nil && got < len(b) {
			return nil, unreachable(ctx, url, err)
		}
	}
	return b, nil
}

// contentRange reads the header of that name of an answer to a request for n bytes
// from off.
func contentRange(s string, off, n int64) (total int64, err error) {
	span, size, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	if ok && span == fmt.Sprintf("%d-%d", off, off+n-1) {
		if total, err = strconv.ParseInt(size, 10, 64); err == nil && total >= off+n {
			return total, nil
		}
	}
	return 0, fmt.Errorf("the server answers with the range %.100q, not with %d bytes from %d: %w", s, n, off, manifest.ErrCorrupt)
}

// unreachable is the error of a request that got no answer, or not all of it.
func unreachable(ctx context.Context, url string, err error) error {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, manifest.ErrUnavailable):
		return fmt.Errorf("%s: %w", url, cause)
	case cause != nil:
		return cause
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: the server ended the answer too early: %w", url, manifest.ErrUnavailable)
	}
	return fmt.Errorf("%w: %w", err, manifest.ErrUnavailable)
}

// refusal is the error of an answer that is not what was asked for.
func refusal(url string, resp *http.Response) error {
	what := fmt.Sprintf("%s: %s", url, resp.Status)
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%s: the server wants a login: %w", what, manifest.ErrDenied)
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("%s: %w", what, manifest.ErrNotFound)
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s: shorter than it was, or than it should be: %w", what, manifest.ErrCorrupt)
	}
	return fmt.Errorf("%s: %w", what, manifest.ErrUnavailable)
}
