package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"srvfs/manifest"
)

func TestIdentityIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	const n = 16
	got := make([]Fingerprint, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			id, err := LoadIdentity(dir)
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = id.Fingerprint()
		})
	}
	wg.Wait()
	if len(slices.Compact(got)) != 1 {
		t.Errorf("racing processes have several identities: %v", got)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("left over: %v, %v", names, err)
	}
	st, err := os.Stat(filepath.Join(dir, identityFile))
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	f := got[0]
	if back, err := ParseFingerprint(f.String()); err != nil || back != f || !strings.HasPrefix(f.String(), f.ID()) {
		t.Errorf("%v, %v", back, err)
	}
	for _, s := range []string{"", f.ID(), strings.ToUpper(f.String()), f.String() + "a", f.String()[:51] + "z"} {
		if _, err := ParseFingerprint(s); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("fingerprint %q: %v", s, err)
		}
	}
}

func TestIdentityRefusals(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, identityFile)
	if _, err := LoadIdentity(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err := LoadIdentity(dir)
	wantErr(t, err, manifest.ErrDenied, name, "chmod 600")
	for _, text := range []string{"", "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", strings.Repeat("x", maxIdentity+1)} {
		if err := errors.Join(os.WriteFile(name, []byte(text), 0o600), os.Chmod(name, 0o600)); err != nil {
			t.Fatal(err)
		}
		_, err := LoadIdentity(dir)
		wantErr(t, err, manifest.ErrInvalid, name)
	}
	_, err = LoadIdentity(filepath.Join(dir, "missing"))
	wantErr(t, err, os.ErrNotExist)
}

func sampleToken() Token {
	t := Token{Addresses: []string{"10.0.0.1:7077", "[2001:db8::1]:7077", "web.example.org:1"}, Expires: time.Unix(1700000000, 0)}
	for i := range t.Fingerprint {
		t.Fingerprint[i] = byte(i)
	}
	for i := range t.Secret {
		t.Secret[i] = byte(100 + i)
	}
	return t
}

// The golden token holds the format still: an old srvd and a new srvfs pair.
const goldenToken = "srvfs1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9kZWZnaGlqa2xtbm9wcXJzgMSf1QwDDTEwLjAuMC4xOjcwNzcSWzIwMDE6ZGI4OjoxXTo3MDc3EXdlYi5leGFtcGxlLm9yZzoxe00DiA"

func TestToken(t *testing.T) {
	want := sampleToken()
	if s := want.String(); s != goldenToken {
		t.Errorf("token reads %s", s)
	}
	got, err := ParseToken(" " + goldenToken + "\n")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if strings.ContainsFunc(goldenToken, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
	}) {
		t.Error("a shell would mind")
	}
	for i := range goldenToken { // no single mistake is overlooked, and none shows the secret
		for _, bad := range []string{goldenToken[:i] + "A" + goldenToken[i+1:], goldenToken[:i], goldenToken[:i] + goldenToken[i+1:], goldenToken[:i] + "\n" + goldenToken[i:]} {
			if strings.TrimSpace(bad) == goldenToken {
				continue
			}
			_, err := ParseToken(bad)
			if !errors.Is(err, manifest.ErrInvalid) || strings.Contains(err.Error(), goldenToken[40:60]) {
				t.Fatalf("%q: %v", bad, err)
			}
		}
	}
	for _, addresses := range [][]string{nil, {"host"}, {":7077"}, {"a:0"}, {"a:65536"}, {"a b:1"}, slices.Repeat([]string{"a:1"}, maxAddresses+1)} {
		bad := sampleToken()
		bad.Addresses = addresses
		if _, err := ParseToken(bad.String()); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("addresses %q: %v", addresses, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(goldenToken)
	f.Add("srvfs1-")
	f.Add("srvfs2-AAAA")
	empty := sampleToken()
	empty.Addresses = nil
	f.Add(empty.String())
	far := sampleToken()
	far.Expires = time.Unix(-1<<62, 0)
	f.Add(far.String())
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, manifest.ErrInvalid) {
				t.Fatalf("not ErrInvalid: %v", err)
			}
			return
		}
		if tok.String() != strings.TrimSpace(s) || len(tok.Addresses) == 0 || len(tok.Addresses) > maxAddresses {
			t.Fatalf("a second spelling of %+v: %q", tok, s)
		}
		// The checksum would keep the fuzzer out of what lies behind it.
		body, err := tokenEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(s), tokenPrefix))
		if err != nil {
			t.Fatal(err)
		}
		body = body[:len(body)-checksumSize]
		for i := range body {
			body[i] ^= 0x55
			if v, err := ParseToken(tokenPrefix + tokenEncoding.EncodeToString(append(slices.Clone(body), checksum(body)...))); err == nil && len(v.Addresses) > maxAddresses {
				t.Fatalf("%+v", v)
			}
			body[i] ^= 0x55
		}
	})
}

func TestGrants(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	w.pair(ClientOptions{})
	if err := w.peers.prune(time.Now().Add(MaxExpiry)); err != nil {
		t.Fatal(err)
	}
	for _, g := range []Grant{{Expires: -1}, {Expires: MaxExpiry + 1}, {Services: []string{"../web"}}, {Addresses: []string{"host"}}, {Addresses: slices.Repeat([]string{"a:1"}, maxAddresses+1)}} {
		if _, err := w.peers.NewToken(w.source.Fingerprint(), g); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%+v: %v", g, err)
		}
	}
	// Without addresses: where the server listens.
	s, err := w.peers.NewToken(w.source.Fingerprint(), Grant{})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := ParseToken(s)
	if err != nil || !slices.Equal(tok.Addresses, []string{w.addr}) {
		t.Errorf("%+v, %v", tok, err)
	}
	if err := w.peers.recordListen(&net.TCPAddr{Port: 1234}); err != nil {
		t.Fatal(err)
	}
	all, err := w.peers.advertised()
	if err != nil || len(all) == 0 || slices.ContainsFunc(all, func(a string) bool { return checkAddress(a) != nil || !strings.HasSuffix(a, ":1234") }) {
		t.Errorf("%q, %v", all, err)
	}
	// A token's file holds no secret, and goes some time after it expired.
	files, err := filepath.Glob(w.peers.dir + "/tokens/*.json")
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil || strings.Contains(string(b), base32Lower.EncodeToString(tok.Secret[:])) {
		t.Errorf("%s, %v", b, err)
	}
	if err := w.peers.prune(time.Now().Add(2 * DefaultExpiry)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(files[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after pruning: %v", err)
	}
	for id, want := range map[string]error{"abc": manifest.ErrInvalid, "zzzz": manifest.ErrNotFound} {
		if _, err := w.peers.Revoke(id); !errors.Is(err, want) {
			t.Errorf("revoke %q: %v", id, err)
		}
	}
}

func TestDamagedPeerIsNotLetIn(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{})
	name := w.peers.peerFile(w.standby.Fingerprint())
	if err := os.WriteFile(name, []byte(`{"fingerprint": "no`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(w.ctx()); err == nil {
		t.Error("let in")
	}
	_, err := w.peers.List()
	wantErr(t, err, manifest.ErrInvalid, name)
	// A record under another peer's name grants nothing.
	other := Peer{Fingerprint: Fingerprint{1}}
	if err := writeRecord(name, &other); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(w.ctx()); err == nil {
		t.Error("let in by another's record")
	}
}

func TestFindSource(t *testing.T) {
	s, err := OpenSources(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	old, now := time.Unix(1, 0), time.Unix(2, 0)
	for _, v := range []Source{
		{Name: "web1", Addresses: []string{"10.0.0.1:7077", "web1.example.org:7077"}, Fingerprint: Fingerprint{1}, Paired: old},
		{Name: "web1", Addresses: []string{"10.0.0.1:7077"}, Fingerprint: Fingerprint{2}, Paired: now},
		{Name: "mail", Addresses: []string{"10.0.0.2:900", "10.0.0.2:901"}, Fingerprint: Fingerprint{3}, Paired: old},
		{Name: "near", Addresses: []string{"127.0.0.1:7077"}, Fingerprint: Fingerprint{4}, Paired: old},
		{Name: "a", Addresses: []string{"10.0.0.9:1"}, Fingerprint: Fingerprint{5}, Paired: old},
		{Name: "b", Addresses: []string{"10.0.0.9:2"}, Fingerprint: Fingerprint{6}, Paired: old},
		{Name: "six", Addresses: []string{"[2001:db8::1]:7077"}, Fingerprint: Fingerprint{7}, Paired: old},
	} {
		if err := writeRecord(s.file(v.Fingerprint), &v); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		ask     string
		want    byte
		address string
		err     error
	}{
		{"10.0.0.1", 2, "10.0.0.1:7077", nil}, // set up anew
		{"WEB1.example.org", 1, "web1.example.org:7077", nil},
		{"10.0.0.1:7077", 2, "10.0.0.1:7077", nil},
		{"10.0.0.1:7078", 0, "", manifest.ErrDenied},
		{"mail", 3, "10.0.0.2:900", nil},
		{"mail:901", 3, "10.0.0.2:901", nil},
		{"localhost", 4, "127.0.0.1:7077", nil}, // by what it resolves to
		{"localhost:7077", 4, "127.0.0.1:7077", nil},
		{"10.0.0.9", 0, "", manifest.ErrInvalid}, // of two ports none is the default one
		{"10.0.0.9:2", 6, "10.0.0.9:2", nil},
		{"2001:db8::1", 7, "[2001:db8::1]:7077", nil},
		{"[2001:db8::1]", 7, "[2001:db8::1]:7077", nil},
		{"[2001:db8::1]:7077", 7, "[2001:db8::1]:7077", nil},
		{Fingerprint{5}.ID(), 5, "10.0.0.9:1", nil},
		{"nobody.invalid", 0, "", manifest.ErrDenied},
		{"", 0, "", manifest.ErrInvalid},
		{"a b", 0, "", manifest.ErrInvalid},
		{"web1:port", 0, "", manifest.ErrInvalid},
		{"web1:0", 0, "", manifest.ErrInvalid},
	} {
		got, err := s.Find(testContext(t), tt.ask)
		switch {
		case tt.err != nil:
			if !errors.Is(err, tt.err) {
				t.Errorf("%q: %+v, %v; want %v", tt.ask, got, err, tt.err)
			}
		case err != nil || got.Fingerprint != Fingerprint{tt.want} || got.Addresses[0] != tt.address:
			t.Errorf("%q: %+v, %v; want %d", tt.ask, got, err, tt.want)
		}
	}
	_, err = s.Find(testContext(t), "nobody.invalid")
	wantErr(t, err, manifest.ErrDenied, "not paired with nobody.invalid", "srvd pair", "srvfs pair TOKEN")
	if err := errors.Join(s.Remove(Fingerprint{2}), s.Remove(Fingerprint{99})); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Find(testContext(t), "10.0.0.1"); err != nil || got.Fingerprint != (Fingerprint{1}) {
		t.Errorf("after the new one was removed: %+v, %v", got, err)
	}
}

func TestErrorTable(t *testing.T) {
	for _, row := range table[:len(table)-1] { // the last goes one way
		wrapped := fmt.Errorf("/srv/\xff\n: opening: %w", fmt.Errorf("inner: %w", row.err))
		got := fromStatus(toStatus(wrapped))
		if !errors.Is(got, row.err) || !strings.Contains(got.Error(), "/srv/\ufffd\n: opening: inner: "+row.err.Error()) {
			t.Errorf("%v came back as %v", wrapped, got)
		}
		if got := errorOf(row.code, ""); !errors.Is(got, row.err) {
			t.Errorf("%v means %v, want %v", row.code, got, row.err)
		}
		for _, other := range table {
			if !errors.Is(other.err, row.err) && errors.Is(got, other.err) {
				t.Errorf("%v came back as %v too", row.err, other.err)
			}
		}
	}
	if got := fromStatus(toStatus(context.DeadlineExceeded)); !errors.Is(got, manifest.ErrUnavailable) {
		t.Errorf("a deadline of the source's: %v", got)
	}
	if err := toStatus(nil); err != nil {
		t.Errorf("no error became %v", err)
	}
	if got := fromStatus(toStatus(errors.New("odd"))); got.Error() != "odd" {
		t.Errorf("got %v", got)
	}
	long := fmt.Errorf("%s: %w", strings.Repeat("\u00e9", maxText), manifest.ErrStale)
	if got := fromStatus(toStatus(long)); !errors.Is(got, manifest.ErrStale) || len(got.Error()) > maxText+3 {
		t.Errorf("a text of %d bytes came back with %d", len(long.Error()), len(got.Error()))
	}
	// What only the transport says: a message beyond the limit is no full disk.
	if err := fromStatus(status.Error(codes.ResourceExhausted, "larger than max")); !errors.Is(err, manifest.ErrInvalid) || errors.Is(err, manifest.ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	if err := fromStatus(status.Error(codes.Internal, "broken")); !errors.Is(err, manifest.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
