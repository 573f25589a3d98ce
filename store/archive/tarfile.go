package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"srvfs/manifest"
)

// tarBlock is the unit of a tar file, in bytes.
const tarBlock = 512

// maxMembers bounds the members of an archive's tar file.
const maxMembers = 1 << 16

// A tarFile is an OCI image layout in a tar file, as skopeo's oci-archive has it.
type tarFile struct {
	file
	name    string
	members map[string]member
}

type member struct{ off, size int64 }

// openTar finds the members of a tar file. Large ones are skipped, so of a file on a
// web server it asks for one range behind each layer.
func openTar(ctx context.Context, f file, name string) (*tarFile, error) {
	t := &tarFile{file: f, name: name, members: map[string]member{}}
	w := &walker{ctx: ctx, f: f}
	r := tar.NewReader(w)
	for range maxMembers {
		h, err := r.Next()
		switch {
		case w.err != nil:
			return nil, w.err
		case errors.Is(err, io.EOF):
			if _, ok := t.members["index.json"]; !ok {
				return nil, fmt.Errorf("%s: a tar file, but no OCI image is in it (no index.json): %w", name, manifest.ErrInvalid)
			}
			return t, nil
		case err != nil && len(t.members) == 0:
			return nil, fmt.Errorf("%s: not a tar file: %w: %w", name, err, manifest.ErrInvalid)
		case err != nil:
			return nil, fmt.Errorf("%s: cut short or damaged: %w: %w", name, err, manifest.ErrCorrupt)
		case h.Typeflag == tar.TypeReg:
			if h.Size < 0 || w.at+h.Size > f.size() {
				return nil, fmt.Errorf("%s: cut short, %s is not all there: %w", name, h.Name, manifest.ErrCorrupt)
			}
			t.members[strings.TrimPrefix(h.Name, "./")] = member{w.at, h.Size}
		}
	}
	return nil, fmt.Errorf("%s: more than %d files in it: %w", name, maxMembers, manifest.ErrInvalid)
}

// A walker reads a file from its beginning, a good piece at a time, and seeks over
// what is not needed.
type walker struct {
	ctx   context.Context
	f     file
	at    int64
	start int64 // of piece
	piece []byte
	err   error // of the file, and not of what is in it
}

// walkPiece is read at a time. All the small members of an archive stand together.
const walkPiece = 256 << 10

func (w *walker) Read(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	left := w.f.size() - w.at
	if left <= 0 {
		return 0, io.EOF
	}
	if w.at < w.start || w.at >= w.start+int64(len(w.piece)) {
		w.piece, w.err = w.f.read(w.ctx, w.at, min(walkPiece, left))
		w.start = w.at
		if w.err != nil {
			return 0, w.err
		}
	}
	n := copy(p, w.piece[w.at-w.start:])
	w.at += int64(n)
	return n, nil
}

func (w *walker) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += w.at
	case io.SeekEnd:
		off += w.f.size()
	}
	if off < 0 {
		return 0, errors.New("seek before the beginning")
	}
	w.at = off
	return off, nil
}

func (t *tarFile) member(ctx context.Context, name string, most int64) ([]byte, error) {
	m, ok := t.members[name]
	if !ok {
		return nil, fmt.Errorf("%s: %s is missing: %w", t.name, name, manifest.ErrCorrupt)
	}
	if m.size > most {
		return nil, fmt.Errorf("%s: %s has %d bytes, more than %d: %w", t.name, name, m.size, most, manifest.ErrCorrupt)
	}
	return t.file.read(ctx, m.off, m.size)
}

func (t *tarFile) top(ctx context.Context) (*contents, error) {
	b, err := t.member(ctx, "index.json", maxManifest)
	if err != nil {
		return nil, err
	}
	return sortIndex(ctx, t, b)
}

func (t *tarFile) manifest(ctx context.Context, d descriptor) ([]byte, error) {
	return t.member(ctx, blobName(d.Digest), maxManifest)
}

func (t *tarFile) read(ctx context.Context, blob manifest.Digest, off, n int64) ([]byte, error) {
	m, ok := t.members[blobName(blob)]
	if !ok || off < 0 || n < 0 || off+n > m.size {
		return nil, fmt.Errorf("%s: blob %v has no %d bytes at %d: %w", t.name, blob, n, off, manifest.ErrCorrupt)
	}
	return t.file.read(ctx, m.off+off, n)
}

// pad returns what fills a member of n bytes up to a block.
func pad(n int64) []byte { return make([]byte, (tarBlock-n%tarBlock)%tarBlock) }

// memberHeader returns the header of a member of the layout.
func memberHeader(name string, size int64) ([]byte, error) {
	var b bytes.Buffer
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Format: tar.FormatGNU}
	if strings.HasSuffix(name, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		return nil, fmt.Errorf("header of %s: %w", name, err)
	}
	return b.Bytes(), nil
}
