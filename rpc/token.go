package rpc

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"srvfs/manifest"
)

// DefaultPort is the TCP port on which a source listens unless told otherwise.
const DefaultPort = 7077

const (
	tokenPrefix  = "srvfs1-"
	secretSize   = 16 // bytes: 128 bits
	checksumSize = 4
	maxAddresses = 16
	maxAddress   = 253 + 1 + 5 // a DNS name, a colon, a port
	maxToken     = 8 << 10     // characters
)

// A Token is what the administrator carries from the source to the standby: it
// tells the standby whom to talk to, and lets it in once.
type Token struct {
	Addresses   []string // host:port, best first; at least one
	Fingerprint Fingerprint
	Secret      [secretSize]byte
	Expires     time.Time // in whole seconds
}

var tokenEncoding = base64.RawURLEncoding.Strict()

// String returns the token's text: one word of letters, digits, '-' and '_'.
func (t Token) String() string {
	b := append(t.Fingerprint[:len(t.Fingerprint):len(t.Fingerprint)], t.Secret[:]...)
	b = binary.AppendVarint(b, t.Expires.Unix())
	b = append(b, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		b = binary.AppendUvarint(b, uint64(len(a)))
		b = append(b, a...)
	}
	return tokenPrefix + tokenEncoding.EncodeToString(append(b, checksum(b)...))
}

// checksum finds tokens that lost a character in copying. It guards against
// nothing else.
func checksum(b []byte) []byte {
	sum := sha256.Sum256(append([]byte(tokenPrefix), b...))
	return sum[:checksumSize]
}

// ParseToken reads what String wrote, and nothing else; space around it is
// ignored. Whether it has expired is for the source to say, whose clock made it.
// The error wraps ErrInvalid and never holds the token.
func ParseToken(s string) (Token, error) {
	bad := func(why string) (Token, error) {
		return Token{}, fmt.Errorf("token: %s; copy the whole line that `srvd pair` printed: %w", why, manifest.ErrInvalid)
	}
	s = strings.TrimSpace(s)
	text, ok := strings.CutPrefix(s, tokenPrefix)
	switch {
	case len(s) > maxToken:
		return bad("too long")
	case !ok && strings.HasPrefix(s, "srvfs"):
		return bad("made by a version of srvd that this one does not know")
	case !ok:
		return bad("does not begin with " + tokenPrefix)
	}
	b, err := tokenEncoding.DecodeString(text)
	if err != nil || strings.ContainsAny(text, "\r\n") { // which the decoder would ignore
		return bad("has characters that no token has, or is cut short")
	}
	const fixed = sha256.Size + secretSize
	if len(b) < fixed+2+checksumSize {
		return bad("cut short")
	}
	body, sum := b[:len(b)-checksumSize], b[len(b)-checksumSize:]
	if string(checksum(body)) != string(sum) {
		return bad("mistyped or cut short")
	}
	t := Token{Fingerprint: Fingerprint(body[:sha256.Size]), Secret: [secretSize]byte(body[sha256.Size:fixed])}
	rest := body[fixed:]
	expires, n := binary.Varint(rest)
	if n <= 0 || len(rest) == n {
		return bad("malformed")
	}
	t.Expires = time.Unix(expires, 0)
	count := int(rest[n])
	rest = rest[n+1:]
	if count == 0 || count > maxAddresses {
		return bad("malformed")
	}
	for range count {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > maxAddress || uint64(len(rest)-n) < size {
			return bad("malformed")
		}
		a := string(rest[n : n+int(size)])
		rest = rest[n+int(size):]
		if checkAddress(a) != nil {
			return bad("malformed")
		}
		t.Addresses = append(t.Addresses, a)
	}
	if t.String() != s { // a second spelling, or bytes left over
		return bad("malformed")
	}
	return t, nil
}

// checkAddress reports whether a is host:port with a number for a port.
func checkAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err == nil {
		var p uint64
		if p, err = strconv.ParseUint(port, 10, 16); err == nil && (p == 0 || host == "" || len(a) > maxAddress || !printable(a)) {
			err = fmt.Errorf("want HOST:PORT")
		}
	}
	if err != nil {
		return fmt.Errorf("address %.300q: %w: %w", a, err, manifest.ErrInvalid)
	}
	return nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// splitHost reads HOST, HOST:PORT, [IPV6]:PORT or a bare IPv6 address. An empty
// port is one that was not given.
func splitHost(s string) (host, port string, err error) {
	if h, p, err := net.SplitHostPort(s); err == nil {
		if err := checkAddress(s); err != nil {
			return "", "", err
		}
		return h, p, nil
	}
	h := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if h == "" || len(h) > maxAddress || !printable(h) || strings.Contains(h, ":") && net.ParseIP(h) == nil {
		return "", "", fmt.Errorf("host %.300q: want HOST or HOST:PORT: %w", s, manifest.ErrInvalid)
	}
	return h, "", nil
}
