package capture

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/capture/pkgdb"
	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// What a package manager shows of a file that it has unpacked and nobody has
// touched since: its ctime is that of the installation. Packages that are unpacked
// in one transaction are recorded together, minutes after the first of them.
const (
	installedBefore = time.Minute
	installedAfter  = 15 * time.Minute
)

// shipped says what the packages of a root know of its files.
type shipped struct {
	db      pkgdb.DB
	configs map[string][]string // of a package, sorted
}

// digest returns the digest that a package manager has recorded for a file, if
// that is as good as reading it: it is a SHA-256, and by size, mtime and ctime
// nobody has touched the file since the package was installed. A file of more
// than one chunk must be read for the digests of those.
func (s *shipped) digest(n *node) (manifest.Digest, bool) {
	if n.entry.Size > manifest.ChunkSize {
		return manifest.Digest{}, false
	}
	ids, err := s.db.Owner(n.path)
	if err != nil || len(ids) != 1 {
		return manifest.Digest{}, false
	}
	d, ok := s.db.Digest(ids[0], n.path)
	if !ok || d.Algorithm != "sha256" || d.Size != n.entry.Size || d.Mtime == 0 || n.id.Mtime != d.Mtime*int64(time.Second) {
		return manifest.Digest{}, false
	}
	installed, changed := s.db.Installed(ids[0]), time.Unix(0, n.id.Ctime)
	if installed.IsZero() || changed.Before(installed.Add(-installedBefore)) || changed.After(installed.Add(installedAfter)) {
		return manifest.Digest{}, false
	}
	digest, err := manifest.ParseDigest(d.Hex)
	return digest, err == nil
}

// modified reports whether the file n is not what its package shipped. Debian's
// packages have MD5 sums only; they are computed for configuration, and for files
// that are newer than their package's installation.
func (s *shipped) modified(ctx context.Context, r *reader, n *node) (bool, error) {
	ids, err := s.db.Owner(n.path)
	if err != nil {
		return false, fmt.Errorf("owner of %s: %w", n.path, err)
	}
	for _, id := range ids {
		d, ok := s.db.Digest(id, n.path)
		switch {
		case !ok:
			continue
		case d.Size >= 0 && d.Size != n.entry.Size:
			return true, nil
		case d.Algorithm == "sha256":
			return d.Hex != n.entry.Digest.Hex(), nil
		case d.Algorithm != "md5", !s.config(id, n.path) && time.Unix(0, n.id.Mtime).Before(s.db.Installed(id)):
			return false, nil
		}
		sum, err := r.md5(ctx, n)
		return sum != "" && sum != d.Hex, err
	}
	return false, nil
}

// config reports whether the package has path as configuration.
func (s *shipped) config(id, path string) bool {
	list, ok := s.configs[id]
	if !ok {
		list, _ = s.db.Conffiles(id) // that its list can't be read was said before
		slices.Sort(list)
		if s.configs == nil {
			s.configs = map[string][]string{}
		}
		s.configs[id] = list
	}
	_, found := slices.BinarySearch(list, path)
	return found
}

// md5 returns the MD5 sum of the file n; that of one which has changed since it
// was hashed is nothing, and no error.
func (r *reader) md5(ctx context.Context, n *node) (string, error) {
	fd, err := openFile(r.root, n.path)
	if err != nil {
		if gone(err) {
			return "", nil
		}
		return "", fmt.Errorf("open %s: %w", n.path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if r.buf == nil {
		r.buf = make([]byte, readSize)
	}
	sum := md5.New() // not for safety: Debian's packages have no other
	for {
		k, err := r.fill(fd, len(r.buf))
		if err = errors.Join(err, ctx.Err()); err != nil {
			return "", fmt.Errorf("%s: %w", n.path, err)
		}
		if k == 0 {
			break
		}
		_, _ = sum.Write(r.buf[:k])
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil || statcache.KeyOf(&st) != n.id {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// markModified notes which files are not what their packages shipped.
func (c *capturing) markModified(ctx context.Context) error {
	if c.service.db == nil {
		return nil
	}
	s, r := shipped{db: c.service.db}, &reader{hasher: c.hasher}
	for _, n := range c.tree.nodes {
		if n.entry.Type != manifest.File || n.fresh() {
			continue
		}
		var err error
		if n.item.modified, err = s.modified(ctx, r, n); err != nil {
			return err
		}
	}
	return nil
}
