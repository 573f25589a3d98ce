package probe

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/miekg/dns"
)

func parseDNS(u *url.URL, o options) (func(context.Context, Env) error, error) {
	name := strings.TrimPrefix(u.Path, "/")
	if _, ok := dns.IsDomainName(name); !ok && name != "" {
		return nil, fmt.Errorf("name %q: not a domain name", name)
	}
	kind, kindName := dns.TypeA, "A"
	if v := o.take("type"); v != "" {
		k, ok := dns.StringToType[strings.ToUpper(v)]
		if !ok {
			return nil, fmt.Errorf("type %q: not a record type such as A or MX", v)
		}
		kind, kindName = k, strings.ToUpper(v)
	}
	overTCP, err := o.flag("tcp")
	if err != nil {
		return nil, err
	}
	network := "udp"
	if overTCP {
		network = "tcp"
	}
	match := o.take("match")
	addr := address(u, "53")
	return func(ctx context.Context, e Env) error {
		question := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
		answer, err := askDNS(ctx, e, network, addr, question)
		if err == nil && answer.Truncated && network == "udp" {
			answer, err = askDNS(ctx, e, "tcp", addr, question)
		}
		if err != nil {
			return err
		}
		return judgeDNS(answer, kind, kindName, match)
	}, nil
}

func askDNS(ctx context.Context, e Env, network, addr string, question *dns.Msg) (*dns.Msg, error) {
	c, done, err := e.connect(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	defer done()
	client := dns.Client{Net: network, Timeout: time.Hour} // ctx ends earlier, and not after the library's 2 s
	answer, _, err := client.ExchangeWithConnContext(ctx, question, &dns.Conn{Conn: c})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

func judgeDNS(answer *dns.Msg, kind uint16, kindName, match string) error {
	if answer.Rcode != dns.RcodeSuccess {
		name := dns.RcodeToString[answer.Rcode]
		if name == "" {
			name = fmt.Sprintf("code %d", answer.Rcode)
		}
		return fmt.Errorf("answer %s, expected NOERROR", name)
	}
	found := false
	for _, r := range answer.Answer {
		if r.Header().Rrtype != kind && kind != dns.TypeANY {
			continue
		}
		found = true
		if strings.Contains(r.String(), match) {
			return nil
		}
	}
	if found {
		return fmt.Errorf("no %s record in the answer holds %q", kindName, match)
	}
	return fmt.Errorf("the answer holds no %s record", kindName)
}
