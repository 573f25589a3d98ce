package probe

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// maxRedirects is how many redirections within the host are followed.
const maxRedirects = 5

func parseHTTP(u *url.URL, o options) (func(context.Context, Env) error, error) {
	want := 0
	if v := o.take("status"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 100 || n > 999 {
			return nil, fmt.Errorf("status %q: not a number such as 404", v)
		}
		want = n
	}
	verify := false
	if u.Scheme == "https" {
		var err error
		if verify, err = o.flag("verify"); err != nil {
			return nil, err
		}
	}
	match := []byte(o.take("match"))
	target := *u
	target.Fragment, target.RawFragment = "", ""
	return func(ctx context.Context, e Env) error {
		return askHTTP(ctx, e, target.String(), want, match, tlsTransport(e, u.Hostname(), verify))
	}, nil
}

func tlsTransport(e Env, host string, verify bool) *http.Transport {
	return &http.Transport{
		DialContext: e.dial, DisableKeepAlives: true, TLSClientConfig: tlsConfig(e, host, verify),
		MaxResponseHeaderBytes: maxAnswer,
	}
}

func askHTTP(ctx context.Context, e Env, target string, want int, match []byte, transport *http.Transport) error {
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		// Another host says nothing about this service; and with a status
		// to be compared, the first answer is what is meant.
		if want != 0 || next.URL.Hostname() != via[0].URL.Hostname() {
			return http.ErrUseLastResponse
		}
		if len(via) > maxRedirects {
			return fmt.Errorf("more than %d redirections", maxRedirects)
		}
		return nil
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "srvfs-probe")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case want != 0 && resp.StatusCode != want:
		return fmt.Errorf("status %s, expected %d", resp.Status, want)
	case want == 0 && resp.StatusCode >= 400:
		return fmt.Errorf("status %s, expected below 400", resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("status %s, but the body is cut short after %d bytes: %w", resp.Status, len(body), err)
	}
	if !bytes.Contains(body, match) {
		return fmt.Errorf("status %s, but the first %d bytes of the body don't hold %q", resp.Status, len(body), match)
	}
	return nil
}
