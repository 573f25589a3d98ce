package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A fileTarget is a FILE.tar. An export writes the new file beside the old one, in a
// folder that holds what is staged too, and puts it in its place.
type fileTarget struct {
	path     string
	options  Options
	to       []age.Recipient
	dir      string
	lock     *os.File
	finished bool
}

func newFileTarget(dest string, o Options) (*fileTarget, error) {
	if !strings.HasSuffix(dest, ".tar") {
		return nil, fmt.Errorf("%s is a file: an archive in a file is named FILE.tar: %w", dest, manifest.ErrInvalid)
	}
	t := &fileTarget{path: dest, options: o, dir: filepath.Join(filepath.Dir(dest), "."+filepath.Base(dest)+fresh+"export")}
	for _, r := range o.Recipients {
		to, err := age.ParseRecipients(strings.NewReader(r))
		if err != nil {
			return nil, fmt.Errorf("recipient %.100q: %w; it is the age1... that age-keygen prints: %w", r, err, manifest.ErrInvalid)
		}
		t.to = append(t.to, to...)
	}
	return t, nil
}

func (t *fileTarget) open(ctx context.Context) (*Archive, error) {
	if err := os.Mkdir(t.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("folder for new blobs: %w", noSpace(err))
	}
	lock, err := lockFolder(t.dir, t.path)
	if err != nil {
		return nil, err
	}
	t.lock = lock
	// The one that was locked may have been removed by another export that has ended.
	if a, err := lock.Stat(); err != nil {
		return nil, err
	} else if b, err := os.Stat(t.dir); err != nil || !os.SameFile(a, b) {
		t.finished = true
		return nil, fmt.Errorf("another export to %s has just ended: try again: %w", t.path, manifest.ErrUnavailable)
	}
	list, err := os.ReadDir(t.dir) // of an export that was killed
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if err := os.RemoveAll(filepath.Join(t.dir, e.Name())); err != nil {
			return nil, err
		}
	}
	info, err := os.Lstat(t.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("archive: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file: %w", t.path, manifest.ErrInvalid)
	}
	a, err := Open(ctx, t.path, OpenOptions{Identity: t.options.Identity})
	if errors.Is(err, manifest.ErrDenied) && t.options.Identity == "" {
		return nil, fmt.Errorf("%s is there, and encrypted: to add to it give --identity FILE, or choose another name: %w", t.path, manifest.ErrDenied)
	} else if err != nil {
		return nil, err
	}
	_, encrypted := a.shelf.(*tarFile).file.(*sealed)
	if encrypted && len(t.to) == 0 {
		return nil, errors.Join(fmt.Errorf("%s is encrypted: say for whom the new one is, --encrypt age1..., or choose another name: %w", t.path, manifest.ErrInvalid), a.Close())
	}
	return a, nil
}

func (t *fileTarget) stage(context.Context) (*stage, error) { return openStage(t.dir) }

func (t *fileTarget) publish(ctx context.Context, s *stage, p *publication) (err error) {
	name := filepath.Join(t.dir, fresh+"file")
	// For its owner alone: private keys may be in it.
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("new file: %w", noSpace(err))
	}
	defer func() { err = errors.Join(noSpace(err), f.Close()) }()
	if err := t.likeOld(f); err != nil {
		return fmt.Errorf("new file: %w", err)
	}
	if len(t.to) == 0 {
		err = t.write(ctx, f, s, p)
	} else {
		var w io.WriteCloser
		if w, err = age.Encrypt(f, t.to...); err == nil {
			err = errors.Join(t.write(ctx, w, s, p), w.Close())
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("new file: %w", err)
	}
	if err := t.check(ctx, name, s, p); err != nil {
		return fmt.Errorf("new file, read back: %w", err)
	}
	if err := os.Rename(name, t.path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(t.path))
}

// likeOld gives the new file the owner and the permissions of the one in whose place it
// comes.
func (t *fileTarget) likeOld(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Lstat(t.path, &st); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(f.Chown(int(st.Uid), int(st.Gid)), f.Chmod(fs.FileMode(st.Mode&0o777)))
}

// write writes the tar file: layers first, then all that is small, so that a reader
// finds that in one piece at the end.
func (t *fileTarget) write(ctx context.Context, w io.Writer, s *stage, p *publication) error {
	small := func(name string, b []byte) error {
		h, err := memberHeader(name, int64(len(b)))
		if err != nil {
			return err
		}
		for _, b := range [][]byte{h, b, pad(int64(len(b)))} {
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		return nil
	}
	if err := small("oci-layout", []byte(layoutFile)); err != nil {
		return err
	}
	for _, d := range tarOrder(p.all) {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := memberHeader(blobName(d.Digest), d.Size)
		if err != nil {
			return err
		}
		if _, err := w.Write(h); err != nil {
			return err
		}
		if err := t.copy(ctx, w, s, p, d); err != nil {
			return fmt.Errorf("blob %v: %w", d.Digest, err)
		}
		if _, err := w.Write(pad(d.Size)); err != nil {
			return err
		}
	}
	if err := small("index.json", p.index); err != nil {
		return err
	}
	_, err := w.Write(make([]byte, 2*tarBlock))
	return err
}

// tarOrder puts each blob once, the layers first.
func tarOrder(all []descriptor) []descriptor {
	seen := map[manifest.Digest]bool{}
	var out []descriptor
	for _, d := range all {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			out = append(out, d)
		}
	}
	slices.SortStableFunc(out, func(a, b descriptor) int {
		return rank(a.MediaType == typeLayer) - rank(b.MediaType == typeLayer)
	})
	return out
}

// copy writes the bytes of a blob, from what is staged or from the old file. Between
// two files the kernel copies them, or shares their blocks.
func (t *fileTarget) copy(ctx context.Context, w io.Writer, s *stage, p *publication, d descriptor) error {
	if f, err := os.Open(s.path(d.Digest)); err == nil {
		defer func() { _ = f.Close() }()
		return exactly(w, f, d.Size)
	}
	if p.old == nil {
		return fmt.Errorf("it was not staged: %w", manifest.ErrNotFound)
	}
	old := p.old.shelf.(*tarFile)
	m, ok := old.members[blobName(d.Digest)]
	if !ok || m.size != d.Size {
		return fmt.Errorf("it is missing in the old file: %w", manifest.ErrCorrupt)
	}
	if l, ok := old.file.(*localFile); ok {
		if _, err := l.f.Seek(m.off, io.SeekStart); err != nil {
			return err
		}
		return exactly(w, l.f, m.size)
	}
	const piece = 1 << 20
	for off := int64(0); off < m.size; off += piece {
		b, err := old.read(ctx, d.Digest, off, min(piece, m.size-off))
		if err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func exactly(w io.Writer, r io.Reader, n int64) error {
	// Of two files io.CopyN has the kernel do it.
	k, err := io.CopyN(w, r, n)
	if err == nil && k != n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// check opens the new file and looks for all that belongs to it.
func (t *fileTarget) check(ctx context.Context, name string, s *stage, p *publication) (err error) {
	if len(t.to) > 0 {
		return nil // nobody here may be able to read it
	}
	a, err := Open(ctx, name, OpenOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	members := a.shelf.(*tarFile).members
	for _, d := range p.all {
		if m, ok := members[blobName(d.Digest)]; !ok || m.size != d.Size {
			return fmt.Errorf("blob %v is missing: %w", d.Digest, manifest.ErrCorrupt)
		}
	}
	if a.editions[0] != p.edition {
		return fmt.Errorf("it has snapshot %d: %w", a.editions[0].Sequence, manifest.ErrCorrupt)
	}
	_, err = a.Encoded(ctx, manifest.Ref{})
	return err
}

func (t *fileTarget) close() error {
	if t.lock == nil {
		return nil
	}
	var err error
	if !t.finished { // else it is another's
		err = os.RemoveAll(t.dir)
	}
	return errors.Join(err, t.lock.Close())
}
