package archive

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// fresh begins the names of blobs that are being written.
const fresh = ".new-"

// A stage is a folder in which new blobs are written, under their digest when they
// are whole, flushed, and read back.
type stage struct {
	dir string
	new []descriptor // blobs that were not there before
}

// openStage makes a folder the stage of one export. What an export that was killed
// left half written in it is removed.
func openStage(dir string) (*stage, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("folder for new blobs: %w", noSpace(err))
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("folder for new blobs: %w", err)
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), fresh) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	return &stage{dir: dir}, nil
}

// lockFolder makes the caller the only one who exports to a folder.
func lockFolder(dir, what string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another export to %s is under way: try again when it has ended: %w", what, manifest.ErrUnavailable)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

func (s *stage) path(d manifest.Digest) string { return filepath.Join(s.dir, d.Hex()) }

// A blobWriter writes one blob.
type blobWriter struct {
	stage *stage
	f     *os.File
	buf   *bufio.Writer
	sum   hash.Hash
	n     int64
}

func (s *stage) create() (*blobWriter, error) {
	f, err := os.CreateTemp(s.dir, fresh)
	if err != nil {
		return nil, fmt.Errorf("new blob: %w", noSpace(err))
	}
	return &blobWriter{stage: s, f: f, buf: bufio.NewWriterSize(f, 1<<20), sum: sha256.New()}, nil
}

func (w *blobWriter) Write(p []byte) (int, error) {
	n, err := w.buf.Write(p)
	_, _ = w.sum.Write(p[:n])
	w.n += int64(n)
	return n, noSpace(err)
}

// discard removes what was written, unless it was finished.
func (w *blobWriter) discard() {
	if w.f != nil {
		_ = w.f.Close()
		_ = os.Remove(w.f.Name())
	}
}

// finish flushes the blob, reads it back, and gives it its name.
func (w *blobWriter) finish(mediaType string, notes map[string]string) (descriptor, error) {
	d := descriptor{MediaType: mediaType, Digest: manifest.Digest(w.sum.Sum(nil)), Size: w.n, Annotations: notes}
	err := w.buf.Flush()
	if err == nil {
		err = w.f.Chmod(0o644)
	}
	if err == nil {
		err = w.f.Sync()
	}
	if err == nil {
		err = w.readBack(d)
	}
	if err == nil {
		name := w.stage.path(d.Digest)
		if _, e := os.Lstat(name); errors.Is(e, fs.ErrNotExist) {
			w.stage.new = append(w.stage.new, d)
		}
		err = os.Rename(w.f.Name(), name)
	}
	if err != nil {
		return d, fmt.Errorf("new blob: %w", noSpace(err))
	}
	err = w.f.Close()
	w.f = nil
	return d, err
}

func (w *blobWriter) readBack(d descriptor) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(w.f, 0, d.Size+1)); err != nil {
		return err
	}
	if got := manifest.Digest(sum.Sum(nil)); got != d.Digest {
		return fmt.Errorf("%s does not keep what is written to it: %w", w.stage.dir, manifest.ErrCorrupt)
	}
	return nil
}

// put writes a small blob.
func (s *stage) put(b []byte, mediaType string, notes map[string]string) (descriptor, error) {
	w, err := s.create()
	if err != nil {
		return descriptor{}, err
	}
	defer w.discard()
	if _, err := w.Write(b); err != nil {
		return descriptor{}, fmt.Errorf("new blob: %w", err)
	}
	return w.finish(mediaType, notes)
}

func (s *stage) size() (n int64) {
	for _, d := range s.new {
		n += d.Size
	}
	return n
}

// noSpace marks the error of a full disk.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", err, manifest.ErrNoSpace)
	}
	return err
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// A target is where an archive is written.
type target interface {
	// open makes the caller the only one to export there, and returns what is there, or
	// nil.
	open(ctx context.Context) (*Archive, error)
	stage(ctx context.Context) (*stage, error)
	// publish makes an export whose blobs are all staged what is there from now on. Until
	// it returns, and if it fails, what was there before is there.
	publish(ctx context.Context, s *stage, p *publication) error
	// close removes what was staged and not published.
	close() error
}

// A publication is what an export adds to an archive.
type publication struct {
	old     *Archive // nil: there was none, or it goes
	edition Edition
	image   descriptor
	beside  descriptor // the artefact
	// index is the index.json of a layout.
	index []byte
	// all are all blobs that the archive consists of, manifests with them.
	all []descriptor
}

// A folderTarget is an OCI image layout.
type folderTarget struct {
	dir  string
	lock *os.File
}

func (t *folderTarget) open(ctx context.Context) (*Archive, error) {
	// For its owner alone: private keys may be in it.
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return nil, fmt.Errorf("archive: %w", noSpace(err))
	}
	var err error
	if t.lock, err = lockFolder(t.dir, t.dir); err != nil {
		return nil, err
	}
	list, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	empty := true
	for _, e := range list {
		switch name := e.Name(); {
		case name == "index.json":
			return Open(ctx, t.dir, OpenOptions{})
		case strings.HasPrefix(name, fresh) && e.Type().IsRegular():
			if err := os.Remove(filepath.Join(t.dir, name)); err != nil {
				return nil, err
			}
		case name != "blobs" && name != "oci-layout":
			empty = false
		}
	}
	if !empty {
		return nil, fmt.Errorf("%s: the folder is not empty, and holds no OCI image: choose another, or a name that does not exist: %w", t.dir, manifest.ErrInvalid)
	}
	return nil, nil // or what the first export left when it was killed
}

func (t *folderTarget) stage(context.Context) (*stage, error) {
	return openStage(filepath.Join(t.dir, "blobs", "sha256"))
}

const layoutFile = `{"imageLayoutVersion":"1.0.0"}`

func (t *folderTarget) publish(_ context.Context, s *stage, p *publication) error {
	// The blobs first, with their names, then what leads to them.
	if err := errors.Join(syncFolder(s.dir), syncFolder(filepath.Dir(s.dir))); err != nil {
		return noSpace(err)
	}
	for _, f := range []struct {
		name string
		body []byte
	}{{"oci-layout", []byte(layoutFile)}, {"index.json", p.index}} {
		if err := replace(filepath.Join(t.dir, f.name), f.body); err != nil {
			return err
		}
	}
	if err := errors.Join(syncFolder(t.dir), syncFolder(filepath.Dir(t.dir))); err != nil {
		return noSpace(err)
	}
	// What no snapshot needs any more: of a compact archive the old layers, and what
	// exports that were killed have left.
	keep := map[string]bool{}
	for _, d := range p.all {
		keep[d.Digest.Hex()] = true
	}
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if !keep[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(s.dir, e.Name())))
		}
	}
	return err
}

// replace writes a file beside the one of that name and puts it in its place.
func replace(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), fresh)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, noSpace(err))
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, noSpace(err))
	}
	return nil
}

func (t *folderTarget) close() error {
	if t.lock == nil {
		return nil
	}
	return t.lock.Close()
}
