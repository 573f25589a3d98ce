package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// A Source is a host that this standby was paired with.
type Source struct {
	Name        string      `json:"name"`      // what the source called itself
	Addresses   []string    `json:"addresses"` // host:port, best first
	Fingerprint Fingerprint `json:"fingerprint"`
	Services    []string    `json:"services,omitempty"` // that it was paired for; empty: all
	Paired      time.Time   `json:"paired"`
	// Standby says that it is one, which offers what it has of other sources.
	Standby bool `json:"standby,omitempty"`
}

// String returns the source's name and its first address, for people.
func (s *Source) String() string {
	if len(s.Addresses) == 0 {
		return s.Name
	}
	return s.Name + " (" + s.Addresses[0] + ")"
}

// Sources holds the sources that a standby knows: one file for each, in a
// folder that several processes share.
type Sources struct{ dir string }

// OpenSources opens the sources that are kept in the standby's state folder
// dir, which must exist.
func OpenSources(dir string) (*Sources, error) {
	dir = filepath.Join(dir, "sources")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("sources: %w", err)
	}
	return &Sources{dir: dir}, nil
}

// Pair shows the token's text to the source that made it, at the first of its
// addresses that answers with the right key, and remembers that source. The
// error wraps ErrInvalid for text that is no token, ErrDenied for a token that
// the source refuses or an address where another host answers, ErrUnavailable.
func (s *Sources) Pair(ctx context.Context, id *Identity, token string, opts ClientOptions) (*Source, error) {
	t, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	src := &Source{Name: t.Addresses[0], Addresses: t.Addresses, Fingerprint: t.Fingerprint}
	c, err := Dial(src, id, opts)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	hostname, _ := os.Hostname() // only for people: may be empty
	var resp *srvfspb.PairResponse
	err = c.unary(ctx, "pair", func(ctx context.Context) (err error) {
		resp, err = c.rpc.Pair(ctx, &srvfspb.PairRequest{Secret: t.Secret[:], Name: hostname})
		return err
	})
	if err != nil {
		return nil, err
	}
	src = &Source{Name: cleanName(resp.GetName()), Addresses: preferred(t.Addresses, c.link.address()), Fingerprint: t.Fingerprint, Paired: time.Now(), Standby: resp.GetStandby()}
	for _, v := range resp.GetServices() {
		if !manifest.ValidService(v) || len(src.Services) >= maxServices {
			return nil, c.wrap("pair", fmt.Errorf("it names a service %.80q: %w", v, manifest.ErrInvalid))
		}
		src.Services = append(src.Services, v)
	}
	if err := writeRecord(s.file(src.Fingerprint), src); err != nil {
		return nil, fmt.Errorf("source %s: paired, but not recorded, so pair again: %w", src, err)
	}
	return src, nil
}

// preferred returns the addresses with first at their head.
func preferred(addresses []string, first string) []string {
	if first == "" {
		return addresses
	}
	out := []string{first}
	for _, a := range addresses {
		if a != first {
			out = append(out, a)
		}
	}
	return out
}

func (s *Sources) file(f Fingerprint) string { return filepath.Join(s.dir, f.String()+".json") }

// List returns the known sources by name. A file that can't be read is reported
// in the error, beside the others.
func (s *Sources) List() ([]Source, error) {
	all, err := readRecords[Source](s.dir)
	all = slices.DeleteFunc(all, func(v Source) bool { return len(v.Addresses) == 0 })
	slices.SortFunc(all, func(a, b Source) int { return strings.Compare(a.Name, b.Name) })
	return all, err
}

// Remove forgets a source. To forget one that is not known is no error.
func (s *Sources) Remove(f Fingerprint) error {
	if err := os.Remove(s.file(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("source %s: %w", f.ID(), err)
	}
	return nil
}

// Find returns the source that HOST or HOST:PORT means: one that was paired
// under this address, or calls itself so, or has the ID, or has one of the
// addresses to which the name resolves. Without a port, any port matches,
// [DefaultPort] before others. Of two with one address, the one paired last is
// meant: a host that was set up anew. The matching address is the first of the
// result's. The error wraps ErrDenied if there is none, ErrInvalid if hostport
// is malformed or means several.
func (s *Sources) Find(ctx context.Context, hostport string) (*Source, error) {
	host, port, err := splitHost(hostport)
	if err != nil {
		return nil, err
	}
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	found := match(all, port, func(src *Source, h string) bool {
		return strings.EqualFold(h, host) || strings.EqualFold(src.Name, host) || src.Fingerprint.ID() == host || src.Fingerprint.String() == host
	})
	if len(found) == 0 && len(all) > 0 {
		// A name that does not resolve is one that is not known.
		ips, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		found = match(all, port, func(_ *Source, h string) bool {
			ip, err := netip.ParseAddr(h)
			return err == nil && slices.ContainsFunc(ips, func(v netip.Addr) bool { return v.Unmap() == ip.Unmap() })
		})
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("not paired with %s: run `srvd pair` there and `srvfs pair TOKEN` here: %w", hostport, manifest.ErrDenied)
	}
	if byDefault := slices.DeleteFunc(slices.Clone(found), func(v matched) bool { return v.port != strconv.Itoa(DefaultPort) }); len(byDefault) > 0 {
		found = byDefault
	}
	best := found[0]
	for _, v := range found[1:] {
		if v.port != best.port {
			return nil, fmt.Errorf("source %s: paired with port %s and with port %s there, say which: %w", hostport, best.port, v.port, manifest.ErrInvalid)
		}
		if v.source.Paired.After(best.source.Paired) {
			best = v
		}
	}
	src := best.source
	src.Addresses = preferred(src.Addresses, best.address)
	return &src, nil
}

// A matched is a source with the address that made it one.
type matched struct {
	source        Source
	address, port string
}

// match returns the sources of which an address has the port, if that is not
// empty, and a host that is meant; each with the first such address, or the
// first with the default port.
func match(all []Source, port string, meant func(src *Source, host string) bool) []matched {
	var out []matched
	for _, src := range all {
		var best *matched
		for _, a := range src.Addresses {
			h, p, err := net.SplitHostPort(a)
			if err != nil || port != "" && p != port || !meant(&src, h) {
				continue
			}
			if best == nil || p == strconv.Itoa(DefaultPort) && best.port != p {
				best = &matched{src, a, p}
			}
		}
		if best != nil {
			out = append(out, *best)
		}
	}
	return out
}
