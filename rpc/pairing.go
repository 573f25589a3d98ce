package rpc

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"srvfs/manifest"
)

// A Grant is what a token will let its bearer do.
type Grant struct {
	Expires   time.Duration // from now; 0: DefaultExpiry
	Services  []string      // that the peer may read; empty: all, also those of the future
	Addresses []string      // host:port where this source is reached; empty: see [Peers.NewToken]
}

// DefaultExpiry is how long a token can be used unless told otherwise, and
// MaxExpiry the longest time that can be asked for.
const (
	DefaultExpiry = 10 * time.Minute
	MaxExpiry     = 30 * 24 * time.Hour
)

// keepToken is how long after its expiry a token's file remains, so that a late
// user reads "expired" or "used" and not "unknown".
const keepToken = 24 * time.Hour

// A tokenRecord is what the source keeps of a token: enough to know it when it
// comes, not enough to make it.
type tokenRecord struct {
	Hash     Fingerprint `json:"hash"` // SHA-256 of the secret; also the file's name
	Services []string    `json:"services,omitempty"`
	Created  time.Time   `json:"created"`
	Expires  time.Time   `json:"expires"`
	Revoked  time.Time   `json:"revoked,omitzero"`
	Used     time.Time   `json:"used,omitzero"`
	UsedBy   string      `json:"usedBy,omitempty"` // for people
}

func (t *tokenRecord) pending(now time.Time) bool {
	return t.Revoked.IsZero() && t.Used.IsZero() && now.Before(t.Expires)
}

// A PendingToken is a token that was made and not yet used.
type PendingToken struct {
	ID       string // for [Peers.Revoke]; it says nothing about the secret
	Services []string
	Created  time.Time
	Expires  time.Time
}

// NewToken makes a token for the source whose identity has the given
// fingerprint, and returns its text. Without addresses in the grant, it names
// the host name and the addresses of this machine's interfaces, with the port
// on which a [Server] with these Peers listened last (or else [DefaultPort]);
// or, if that one listened on one address only, that address. The error wraps
// ErrInvalid if the grant makes no sense.
func (p *Peers) NewToken(source Fingerprint, g Grant) (string, error) {
	bad := func(format string, args ...any) (string, error) {
		return "", fmt.Errorf("token: %s: %w", fmt.Sprintf(format, args...), manifest.ErrInvalid)
	}
	if g.Expires == 0 {
		g.Expires = DefaultExpiry
	}
	if g.Expires < time.Second || g.Expires > MaxExpiry {
		return bad("cannot expire after %v: want 1s to %v", g.Expires, MaxExpiry)
	}
	for _, s := range g.Services {
		if !manifest.ValidService(s) {
			return bad("%.80q is not a service name", s)
		}
	}
	addresses := g.Addresses
	if len(addresses) == 0 {
		var err error
		if addresses, err = p.advertised(); err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
	}
	if len(addresses) > maxAddresses {
		return bad("%d addresses: at most %d", len(addresses), maxAddresses)
	}
	for _, a := range addresses {
		if err := checkAddress(a); err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
	}
	t := Token{Addresses: addresses, Fingerprint: source, Expires: time.Now().Add(g.Expires).Truncate(time.Second)}
	if _, err := rand.Read(t.Secret[:]); err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	services := slices.Compact(slices.Sorted(slices.Values(g.Services)))
	rec := &tokenRecord{Hash: sha256.Sum256(t.Secret[:]), Services: services, Created: time.Now(), Expires: t.Expires}
	unlock, err := p.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := p.prune(time.Now().Add(-keepToken)); err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	if err := p.writeToken(rec); err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	return t.String(), nil
}

// Pending returns the tokens that can still be used, by the time they were made.
func (p *Peers) Pending() ([]PendingToken, error) {
	all, err := readRecords[tokenRecord](filepath.Join(p.dir, "tokens"))
	slices.SortFunc(all, func(a, b tokenRecord) int { return a.Created.Compare(b.Created) })
	var out []PendingToken
	for _, t := range all {
		if t.pending(time.Now()) {
			out = append(out, PendingToken{ID: t.Hash.ID(), Services: t.Services, Created: t.Created, Expires: t.Expires})
		}
	}
	return out, err
}

func (p *Peers) tokenFile(hash Fingerprint) string {
	return filepath.Join(p.dir, "tokens", hash.String()+".json")
}

func (p *Peers) writeToken(t *tokenRecord) error { return writeRecord(p.tokenFile(t.Hash), t) }

// prune removes the files of tokens that expired before limit.
func (p *Peers) prune(limit time.Time) error {
	all, err := readRecords[tokenRecord](filepath.Join(p.dir, "tokens"))
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.Expires.Before(limit) {
			if err := os.Remove(p.tokenFile(t.Hash)); err != nil {
				return err
			}
		}
	}
	return nil
}

// redeem turns a token into a peer. Of any number of callers, in any process,
// one succeeds. Every refusal wraps ErrDenied and says why.
func (p *Peers) redeem(secret []byte, f Fingerprint, name, address string) (Peer, error) {
	deny := func(format string, args ...any) (Peer, error) {
		return Peer{}, fmt.Errorf("token %s; make a new one with `%s`: %w", fmt.Sprintf(format, args...), p.pair, manifest.ErrDenied)
	}
	if len(secret) != secretSize {
		return Peer{}, fmt.Errorf("secret of %d bytes: %w", len(secret), manifest.ErrInvalid)
	}
	unlock, err := p.lock()
	if err != nil {
		return Peer{}, err
	}
	defer unlock()
	now := time.Now()
	// To look a secret up by its hash leaks nothing through time: who could
	// choose hashes could make secrets.
	t, err := readRecord[tokenRecord](p.tokenFile(sha256.Sum256(secret)))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return deny("is unknown to this source")
	case err != nil:
		return Peer{}, fmt.Errorf("token: %w", err)
	case !t.Revoked.IsZero():
		return deny("was revoked on %s", t.Revoked.Format(time.DateTime))
	case !t.Used.IsZero():
		return deny("was used already, on %s by %s", t.Used.Format(time.DateTime), t.UsedBy)
	case !now.Before(t.Expires):
		return deny("expired on %s", t.Expires.Format(time.DateTime))
	}
	name = cleanName(name)
	t.Used, t.UsedBy = now, fmt.Sprintf("%s (%s)", name, f.ID())
	// First the token, then the peer: a crash between the two costs a token,
	// the other order would leave one that can be used twice.
	if err := p.writeToken(&t); err != nil {
		return Peer{}, fmt.Errorf("token: %w", err)
	}
	v := Peer{Fingerprint: f, Name: name, Address: address, Services: t.Services, Paired: now}
	// Who pairs again gains what the new token adds and loses nothing.
	if old, err := p.lookup(f); err == nil {
		if len(old.Services) == 0 || len(v.Services) == 0 {
			v.Services = nil
		} else {
			v.Services = slices.Compact(slices.Sorted(slices.Values(slices.Concat(old.Services, v.Services))))
		}
	}
	if err := p.writePeer(&v); err != nil {
		return Peer{}, fmt.Errorf("peer %s: %w", f.ID(), err)
	}
	return v, nil
}

// cleanName makes a host name that a peer sent fit for terminals and logs.
func cleanName(s string) string {
	if len(s) > 64 {
		s = s[:64]
	}
	s = strings.Map(func(r rune) rune {
		if r == '-' || r == '.' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '?'
	}, s)
	if s == "" {
		return "unnamed"
	}
	return s
}

// listenFile tells `srvd pair` where `srvd serve`, another process, listens.
const listenFile = "listen"

func (p *Peers) recordListen(a net.Addr) error {
	if a.Network() != "tcp" {
		return nil
	}
	return renameio.WriteFile(filepath.Join(p.dir, listenFile), []byte(a.String()+"\n"), 0o600, renameio.WithTempDir(p.dir))
}

// advertised returns the addresses where other hosts may reach this source.
func (p *Peers) advertised() ([]string, error) {
	host, port := "", strconv.Itoa(DefaultPort)
	if b, err := os.ReadFile(filepath.Join(p.dir, listenFile)); err == nil {
		if h, q, err := net.SplitHostPort(strings.TrimSpace(string(b))); err == nil {
			host, port = h, q
		}
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return []string{net.JoinHostPort(host, port)}, nil
	}
	ifaces, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out, loopback []string
	for _, a := range ifaces {
		n, ok := a.(*net.IPNet)
		switch {
		case !ok:
		case n.IP.IsGlobalUnicast():
			out = append(out, net.JoinHostPort(n.IP.String(), port))
		case n.IP.IsLoopback():
			loopback = append(loopback, net.JoinHostPort(n.IP.String(), port))
		}
	}
	// The name comes last: it serves people who write it, and a standby which
	// resolves it to something else is not led astray while an address works.
	out = out[:min(len(out), maxAddresses/2)]
	if name, err := os.Hostname(); err == nil && name != "localhost" && checkAddress(net.JoinHostPort(name, port)) == nil {
		out = append(out, net.JoinHostPort(name, port))
	}
	if len(out) == 0 {
		out = loopback
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("this host has no address: %w", manifest.ErrUnavailable)
	}
	return out, nil
}
