package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"

	"srvfs/manifest"
)

// ageMagic begins every file that age encrypted.
const ageMagic = "age-encryption.org/"

// The shape of an age file: a header, a nonce, then pieces of sealedPiece bytes of
// plain text, each with a tag.
const (
	maxSealHeader = 64 << 10
	sealNonce     = 16
	sealedPiece   = 64 << 10
	sealTag       = 16
)

// A sealed is the plain text of an encrypted file. A range of it costs the pieces that
// it touches.
type sealed struct {
	file
	head     []byte // header and nonce
	tail     []byte // the last piece, which proves the length
	identity age.Identity
	n        int64
}

// unseal returns the plain text of f, which is f itself if it is not encrypted.
func unseal(ctx context.Context, f file, name, identity string) (file, error) {
	if f.size() < int64(len(ageMagic)) {
		return nil, fmt.Errorf("archive %s: %d bytes are no archive: %w", name, f.size(), manifest.ErrInvalid)
	}
	start, err := f.read(ctx, 0, min(f.size(), maxSealHeader))
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(start, []byte(ageMagic)) {
		if identity != "" {
			return nil, fmt.Errorf("archive %s is not encrypted, and --identity was given: somebody may have put another file in its place; leave --identity out if this is right: %w", name, manifest.ErrInvalid)
		}
		return f, nil
	}
	if identity == "" {
		return nil, fmt.Errorf("archive %s is encrypted: give the file with its key, --identity FILE: %w", name, manifest.ErrDenied)
	}
	keys, err := identities(identity)
	if err != nil {
		return nil, err
	}
	r := bytes.NewReader(start)
	header, err := age.ExtractHeader(r)
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w: %w", name, err, manifest.ErrCorrupt)
	}
	key, err := age.DecryptHeader(header, keys...)
	if errors.As(err, new(*age.NoIdentityMatchError)) {
		return nil, fmt.Errorf("archive %s is encrypted for somebody else: no identity in %s opens it: %w", name, identity, manifest.ErrDenied)
	} else if err != nil {
		return nil, fmt.Errorf("archive %s: %w: %w", name, err, manifest.ErrCorrupt)
	}
	s := &sealed{file: f, identity: age.NewInjectedFileKeyIdentity(key)}
	payload := int64(len(header)) + sealNonce
	if payload > int64(len(start)) {
		return nil, fmt.Errorf("archive %s: cut short: %w", name, manifest.ErrCorrupt)
	}
	s.head = start[:payload]
	last := payload + (f.size()-payload-1)/(sealedPiece+sealTag)*(sealedPiece+sealTag)
	if f.size() > payload {
		if s.tail, err = f.read(ctx, last, f.size()-last); err != nil {
			return nil, err
		}
	}
	if _, s.n, err = s.open(nil, 0); err != nil {
		return nil, fmt.Errorf("archive %s: cut short or damaged: %w: %w", name, err, manifest.ErrCorrupt)
	}
	return s, nil
}

func identities(path string) ([]age.Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	defer func() { _ = f.Close() }()
	keys, err := age.ParseIdentities(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w; it is a file as age-keygen writes it: %w", path, err, manifest.ErrInvalid)
	}
	return keys, nil
}

// open returns a reader of plain text that has of the file its head, its tail, and
// what is at off.
func (s *sealed) open(b []byte, off int64) (io.ReaderAt, int64, error) {
	return age.DecryptReaderAt(&pieces{s, b, off}, s.file.size(), s.identity)
}

// pieces are the parts of an encrypted file that were read.
type pieces struct {
	s   *sealed
	b   []byte
	off int64
}

func (p *pieces) ReadAt(to []byte, off int64) (int, error) {
	size := p.s.file.size()
	n := 0
	for _, at := range []struct {
		b   []byte
		off int64
	}{{p.s.head, 0}, {p.b, p.off}, {p.s.tail, size - int64(len(p.s.tail))}} {
		if i := off - at.off; i >= 0 && i < int64(len(at.b)) {
			n = copy(to, at.b[i:])
			break
		}
	}
	if n < len(to) {
		if off+int64(n) >= size {
			return n, io.EOF
		}
		if n > 0 { // on into the next part
			m, err := p.ReadAt(to[n:], off+int64(n))
			return n + m, err
		}
		return n, fmt.Errorf("%d bytes at %d were not read", len(to), off)
	}
	return n, nil
}

func (s *sealed) size() int64 { return s.n }

func (s *sealed) read(ctx context.Context, off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off+n > s.n {
		return nil, fmt.Errorf("it ends at %d bytes, before the %d that are needed: %w", s.n, off+n, manifest.ErrCorrupt)
	}
	if n == 0 {
		return nil, ctx.Err()
	}
	head := int64(len(s.head))
	from := head + off/sealedPiece*(sealedPiece+sealTag)
	to := min(head+((off+n-1)/sealedPiece+1)*(sealedPiece+sealTag), s.file.size())
	b, err := s.file.read(ctx, from, to-from)
	if err != nil {
		return nil, err
	}
	r, _, err := s.open(b, from)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w: %w", err, manifest.ErrCorrupt)
	}
	plain := make([]byte, n)
	if k, err := r.ReadAt(plain, off); int64(k) < n {
		return nil, fmt.Errorf("decrypt: %w: %w", err, manifest.ErrCorrupt)
	}
	return plain, nil
}
