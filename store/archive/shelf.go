package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"srvfs/manifest"
)

// A shelf is where the blobs of an archive lie. It verifies nothing.
type shelf interface {
	// top returns the artefacts, and with them the images, to begin with.
	top(ctx context.Context) (*contents, error)
	// manifest returns a manifest, at most maxManifest bytes.
	manifest(ctx context.Context, d descriptor) ([]byte, error)
	// read returns n bytes of a blob from off.
	read(ctx context.Context, blob manifest.Digest, off, n int64) ([]byte, error)
	close() error
}

// contents are what an archive says that it has.
type contents struct {
	artefacts []descriptor
	images    []descriptor
	all       []descriptor // as a layout lists them
}

// A file is bytes that are read by range: a file here or on a web server, and the
// plain text of an encrypted one.
type file interface {
	size() int64
	read(ctx context.Context, off, n int64) ([]byte, error)
	close() error
}

// A localFile is a file here.
type localFile struct {
	f *os.File
	n int64
}

func openFile(path string) (*localFile, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("archive %s: %w", path, manifest.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("archive %s: not a file: %w", path, manifest.ErrInvalid)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &localFile{f, info.Size()}, nil
}

func (l *localFile) size() int64  { return l.n }
func (l *localFile) close() error { return l.f.Close() }

func (l *localFile) read(ctx context.Context, off, n int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if off < 0 || n < 0 || off+n > l.n {
		return nil, fmt.Errorf("%s ends at %d bytes, before the %d that are needed: %w", l.f.Name(), l.n, off+n, manifest.ErrCorrupt)
	}
	b := make([]byte, n)
	if _, err := l.f.ReadAt(b, off); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s was cut short while it is read: %w", l.f.Name(), manifest.ErrCorrupt)
		}
		return nil, fmt.Errorf("%w: %w", err, manifest.ErrUnavailable)
	}
	return b, nil
}

// A folder is an OCI image layout.
type folder struct{ dir string }

func blobName(d manifest.Digest) string { return "blobs/sha256/" + d.Hex() }

func openFolder(dir string) (*folder, error) {
	switch _, err := os.Stat(filepath.Join(dir, "index.json")); {
	case err == nil:
		return &folder{dir}, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("archive: %w", err)
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("archive %s: no such folder: %w", dir, manifest.ErrNotFound)
	}
	return nil, fmt.Errorf("archive %s: the folder holds no OCI image (it has no index.json): %w", dir, manifest.ErrInvalid)
}

func (f *folder) whole(ctx context.Context, name string, most int64) ([]byte, error) {
	l, err := openFile(filepath.Join(f.dir, name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.close() }()
	if l.n > most {
		return nil, fmt.Errorf("%s has %d bytes, more than %d: %w", l.f.Name(), l.n, most, manifest.ErrCorrupt)
	}
	return l.read(ctx, 0, l.n)
}

func (f *folder) top(ctx context.Context) (*contents, error) {
	b, err := f.whole(ctx, "index.json", maxManifest)
	if err != nil {
		return nil, err
	}
	return sortIndex(ctx, f, b)
}

func (f *folder) manifest(ctx context.Context, d descriptor) ([]byte, error) {
	return f.whole(ctx, blobName(d.Digest), maxManifest)
}

func (f *folder) read(ctx context.Context, blob manifest.Digest, off, n int64) ([]byte, error) {
	l, err := openFile(filepath.Join(f.dir, blobName(blob)))
	if errors.Is(err, manifest.ErrNotFound) {
		return nil, fmt.Errorf("archive %s: blob %v is missing: %w", f.dir, blob, manifest.ErrCorrupt)
	} else if err != nil {
		return nil, err
	}
	defer func() { _ = l.close() }()
	return l.read(ctx, off, n)
}

func (f *folder) close() error { return nil }

// sortIndex reads the index.json of a layout.
func sortIndex(ctx context.Context, s shelf, b []byte) (*contents, error) {
	var index ociIndex
	if err := parse(b, "index.json", &index); err != nil {
		return nil, err
	}
	c := &contents{all: index.Manifests}
	for _, d := range index.Manifests {
		switch d.ArtifactType {
		case ArtifactType:
			c.artefacts = append(c.artefacts, d)
		case "":
			c.images = append(c.images, d)
		}
	}
	if len(c.artefacts) > 0 {
		return c, nil
	}
	// Tools that copy a layout forget the types of artefacts.
	const most = 64
	images := c.images
	c.images = nil
	for i, d := range images {
		if i < most && (d.MediaType == typeManifest || d.MediaType == "") {
			body, err := s.manifest(ctx, d)
			if err != nil {
				return nil, err
			}
			if m, err := parseManifest(body); err == nil && m.ours() {
				c.artefacts = append(c.artefacts, d)
				continue
			}
		}
		c.images = append(c.images, d)
	}
	return c, nil
}
