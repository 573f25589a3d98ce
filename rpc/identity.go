package rpc

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"srvfs/manifest"
)

// A Fingerprint is the SHA-256 of a host's SubjectPublicKeyInfo: its name, as
// far as machines are concerned. It is comparable and can be a map key.
type Fingerprint [sha256.Size]byte

// idLen is the length of an ID: 60 bits, enough to tell hosts apart. Nothing is
// ever granted by an ID.
const idLen = 12

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String returns the whole fingerprint in 52 lower-case base32 characters.
func (f Fingerprint) String() string { return base32Lower.EncodeToString(f[:]) }

// ID returns the first 12 characters of String, for people.
func (f Fingerprint) ID() string { return f.String()[:idLen] }

// MarshalText implements [encoding.TextMarshaler] with the form of String.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (f *Fingerprint) UnmarshalText(b []byte) error {
	v, err := ParseFingerprint(string(b))
	if err == nil {
		*f = v
	}
	return err
}

// ParseFingerprint reads what String wrote. The error wraps ErrInvalid.
func ParseFingerprint(s string) (Fingerprint, error) {
	b, err := base32Lower.DecodeString(s)
	if err != nil || len(b) != sha256.Size || Fingerprint(b).String() != s {
		return Fingerprint{}, fmt.Errorf("fingerprint %.80q: want 52 characters of lower-case base32: %w", s, manifest.ErrInvalid)
	}
	return Fingerprint(b), nil
}

func fingerprintOf(c *x509.Certificate) Fingerprint { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// An Identity is this host's key, and a certificate around it for TLS.
type Identity struct {
	cert        tls.Certificate
	fingerprint Fingerprint
}

const (
	identityFile = "identity.key"
	maxIdentity  = 4 << 10 // bytes
)

// LoadIdentity returns the identity that is kept in the folder dir, which must
// exist; the first call ever makes it. The file holds the private key and is
// readable by its owner alone: a file that others can read is refused with an
// error that wraps ErrDenied, a damaged one with ErrInvalid.
func LoadIdentity(dir string) (*Identity, error) {
	name := filepath.Join(dir, identityFile)
	key, err := readKey(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(dir, name); err == nil {
			key, err = readKey(name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("identity of this host: %w", err)
	}
	return newIdentity(key)
}

// newIdentity makes the certificate anew for each process: peers look at its
// key only, and so nothing can expire on the disk.
func newIdentity(key ed25519.PrivateKey) (*Identity, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("identity of this host: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "srvfs"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, 4.1.2.5: no expiry
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("identity of this host: certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("identity of this host: certificate: %w", err)
	}
	return &Identity{
		cert:        tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		fingerprint: fingerprintOf(leaf),
	}, nil
}

// Fingerprint returns the name by which other hosts know this one.
func (id *Identity) Fingerprint() Fingerprint { return id.fingerprint }

// makeKey writes a new key. When two processes race, the key of the first one
// stays: link, unlike rename, replaces nothing.
func makeKey(dir, name string) (err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+identityFile+"-") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

func readKey(name string) (ed25519.PrivateKey, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := st.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %v: others could read the key; run `chmod 600` on it, or remove it and pair again: %w", name, mode, manifest.ErrDenied)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxIdentity+1))
	if err != nil {
		return nil, err
	}
	damaged := fmt.Errorf("%s: no ed25519 key in it; remove it and pair again: %w", name, manifest.ErrInvalid)
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || len(b) > maxIdentity || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, damaged
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, damaged
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, damaged
	}
	return key, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// serverTLS accepts any client that proves to hold a key. Which key, and what it
// may do, is looked up on every call.
func (id *Identity) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{id.cert},
		ClientAuth:             tls.RequireAnyClientCert,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
	}
}

// clientTLS accepts the one server that holds the key want.
func (id *Identity) clientTLS(want Fingerprint) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.cert},
		NextProtos:   []string{"h2"},
		// The chain means nothing here; VerifyConnection pins the key instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return fmt.Errorf("it shows no certificate: %w", manifest.ErrDenied)
			}
			if got := fingerprintOf(cs.PeerCertificates[0]); got != want {
				return fmt.Errorf("it has the key %s instead of %s: another host answers at this address, or the source was set up anew (then pair again): %w",
					got.ID(), want.ID(), manifest.ErrDenied)
			}
			return nil
		},
	}
}
