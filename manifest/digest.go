package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// DigestSize is the length of a digest in bytes.
const DigestSize = sha256.Size

const digestPrefix = "sha256:"

// A Digest is the SHA-256 of some bytes, and their name. It is comparable and
// can be a map key. The zero Digest names nothing.
type Digest [DigestSize]byte

// Sum returns the digest of b.
func Sum(b []byte) Digest { return sha256.Sum256(b) }

// EmptyDigest is the digest of no bytes at all: every empty file's content.
var EmptyDigest = Sum(nil)

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// Hex returns the 64 lower-case hexadecimal digits of d, as sha256sum prints
// them and as the store names its files.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// String returns d in the form "sha256:<64 hexadecimal digits>".
func (d Digest) String() string { return digestPrefix + d.Hex() }

// MarshalText implements [encoding.TextMarshaler] with the form of String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Digest) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	if err == nil {
		*d = v
	}
	return err
}

// ParseDigest reads what String or Hex wrote. Upper-case digits are refused:
// a digest has one spelling. The error wraps [ErrInvalid].
func ParseDigest(s string) (Digest, error) {
	var d Digest
	h := strings.TrimPrefix(s, digestPrefix)
	if len(h) != 2*DigestSize || strings.ToLower(h) != h {
		return Digest{}, fmt.Errorf("digest %.80q: want 64 lower-case hexadecimal digits: %w", s, ErrInvalid)
	}
	if _, err := hex.Decode(d[:], []byte(h)); err != nil {
		return Digest{}, fmt.Errorf("digest %.80q: %w: %w", s, err, ErrInvalid)
	}
	return d, nil
}

// DigestFromBytes reads a digest from its 32 raw bytes, as a wire message
// carries it. The error wraps [ErrInvalid].
func DigestFromBytes(b []byte) (Digest, error) {
	if len(b) != DigestSize {
		return Digest{}, fmt.Errorf("digest of %d bytes: want %d: %w", len(b), DigestSize, ErrInvalid)
	}
	return Digest(b), nil
}
