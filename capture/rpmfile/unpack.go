package rpmfile

import (
	"bufio"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/cavaliergopher/rpm"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
	"golang.org/x/sys/unix"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// Unpack makes a root in the empty folder dir of what the package files hold:
// with owners and groups by name, modes and times. Each file's bytes are verified
// with the digest in its package's header. Accounts that files belong to, or that a
// package's script would make, and that no package's /etc/passwd has, are added
// there, as the scripts would do; scripts are not run.
//
// The order of the packages does not count. Errors wrap manifest.ErrInvalid for
// what is no package, manifest.ErrCorrupt for a damaged one, fs.ErrNotExist.
func Unpack(ctx context.Context, names []string, dir string) (err error) {
	folder, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	root, err := rootfs.New(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	u := &unpacking{folder: folder, root: root, accounts: newAccounts()}
	var packages []*opened
	for _, name := range names {
		p, err := openPayload(name)
		if err != nil {
			return fmt.Errorf("package file %s: %w", name, err)
		}
		defer p.close()
		packages = append(packages, p)
		u.accounts.script(p.PreInstallScript())
	}
	// Links first: a package's /lib/x belongs into /usr/lib if any other says so.
	if err := u.links(packages); err != nil {
		return err
	}
	for i, p := range packages {
		if err := u.payload(ctx, p); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				err = fmt.Errorf("%w: %w", err, manifest.ErrNoSpace)
			}
			return fmt.Errorf("package file %s: %w", names[i], err)
		}
	}
	return u.finish()
}

// An opened is a package file of which the header has been read.
type opened struct {
	*rpm.Package
	files []rpm.FileInfo
	f     *os.File
	rest  *bufio.Reader // begins with the payload
}

func (p *opened) close() { _ = p.f.Close() }

func openPayload(name string) (p *opened, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if v := recover(); v != nil { // the parser trusts the lengths in the header
			err = fmt.Errorf("damaged header (%v): %w", v, manifest.ErrInvalid)
		}
		if err != nil {
			_ = f.Close()
		}
	}()
	p = &opened{f: f}
	limited := &io.LimitedReader{R: f, N: maxHeader}
	p.rest = bufio.NewReaderSize(limited, 1<<16)
	if p.Package, err = rpm.Read(p.rest); err != nil {
		return nil, fmt.Errorf("not an rpm package: %w: %w", err, manifest.ErrInvalid)
	}
	limited.N = 1 << 62 // the payload may have any length
	if p.files = p.Files(); len(p.files) > maxFiles {
		return nil, fmt.Errorf("%d files exceed %d: %w", len(p.files), maxFiles, manifest.ErrInvalid)
	}
	for _, f := range p.files {
		if !manifest.ValidPath(f.Name()) {
			return nil, fmt.Errorf("file %.300q is not an absolute, clean path: %w", f.Name(), manifest.ErrInvalid)
		}
	}
	return p, nil
}

// decompressed returns the archive in the payload.
func (p *opened) decompressed() (io.Reader, func(), error) {
	none := func() {}
	if format := p.PayloadFormat(); format != "cpio" && format != "" {
		return nil, none, fmt.Errorf("a payload of the format %.20q: %w", format, manifest.ErrInvalid)
	}
	switch name := p.PayloadCompression(); name {
	case "gzip", "":
		r, err := gzip.NewReader(p.rest)
		return r, none, err
	case "bzip2":
		return bzip2.NewReader(p.rest), none, nil
	case "xz":
		r, err := xz.NewReader(p.rest)
		return r, none, err
	case "lzma":
		r, err := lzma.NewReader(p.rest)
		return r, none, err
	case "zstd":
		r, err := zstd.NewReader(p.rest, zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			return nil, none, err
		}
		return r, r.Close, nil
	default:
		return nil, none, fmt.Errorf("a payload packed by %.20q: %w", name, manifest.ErrInvalid)
	}
}

// An unpacking is what Unpack knows on its way.
type unpacking struct {
	folder   *os.Root
	root     *rootfs.Root
	accounts *accounts
	made     []placed
}

// A placed is a path that gets its attributes when all is there.
type placed struct {
	name string // below the folder
	info *rpm.FileInfo
	mode uint32
}

// place returns where a path of a package is below the folder, and makes the
// folders on the way.
func (u *unpacking) place(p string) (string, error) {
	canonical, _, _ := u.root.ResolveParent(p)
	name := strings.TrimPrefix(canonical, "/")
	if name == "" {
		return ".", nil
	}
	return name, u.folder.MkdirAll(path.Dir(name), 0o755)
}

// links makes the symlinks of all packages, those near the root first.
func (u *unpacking) links(packages []*opened) error {
	var all []*rpm.FileInfo
	for _, p := range packages {
		for i := range p.files {
			if f := &p.files[i]; f.Mode()&fs.ModeSymlink != 0 && f.Flags()&rpm.FileFlagGhost == 0 {
				all = append(all, f)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *rpm.FileInfo) int {
		return cmp.Compare(strings.Count(a.Name(), "/"), strings.Count(b.Name(), "/"))
	})
	for _, f := range all {
		name, err := u.place(f.Name())
		if err != nil {
			return err
		}
		if err := u.folder.Symlink(f.Linkname(), name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		u.made = append(u.made, placed{name, f, unix.S_IFLNK})
	}
	return nil
}

// payload unpacks one package.
func (u *unpacking) payload(ctx context.Context, p *opened) error {
	byName := make(map[string]*rpm.FileInfo, len(p.files))
	for i := range p.files {
		byName[p.files[i].Name()] = &p.files[i]
	}
	r, end, err := p.decompressed()
	if err != nil {
		return err
	}
	defer end()
	links := map[int64][]string{} // of a file, names that came before its bytes
	archive := cpio.NewReader(bufio.NewReaderSize(r, 1<<18))
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("payload: %w: %w", err, manifest.ErrCorrupt)
		}
		name := path.Clean("/" + strings.TrimPrefix(h.Name, "."))
		info := byName[name]
		if info == nil {
			return fmt.Errorf("the payload has %.300q, which the header has not: %w", name, manifest.ErrInvalid)
		}
		if err := u.entry(p, info, h, archive, links); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, names := range links { // empty files
		if err := u.write(p, byName[names[0]], strings.NewReader(""), names[1:], byName); err != nil {
			return err
		}
	}
	return nil
}

// entry unpacks one entry of an archive.
func (u *unpacking) entry(p *opened, info *rpm.FileInfo, h *cpio.Header, body io.Reader, links map[int64][]string) error {
	kind := uint32(h.Mode) & unix.S_IFMT
	switch kind {
	case unix.S_IFLNK:
		return nil // made already
	case unix.S_IFREG:
		if h.Links > 1 && h.Size == 0 {
			links[h.Inode] = append(links[h.Inode], info.Name())
			return nil
		}
		others := links[h.Inode]
		delete(links, h.Inode)
		byName := map[string]*rpm.FileInfo{}
		for i := range p.files {
			if slices.Contains(others, p.files[i].Name()) {
				byName[p.files[i].Name()] = &p.files[i]
			}
		}
		return u.write(p, info, body, others, byName)
	case unix.S_IFDIR:
		name, err := u.place(info.Name())
		if err == nil && name != "." {
			if err = u.folder.Mkdir(name, 0o755); errors.Is(err, fs.ErrExist) {
				err = nil
			}
		}
		u.made = append(u.made, placed{name, info, uint32(h.Mode)})
		return err
	}
	return nil // devices and the like are for whoever starts the host
}

// write makes a regular file, and its other names.
func (u *unpacking) write(p *opened, info *rpm.FileInfo, body io.Reader, others []string, byName map[string]*rpm.FileInfo) error {
	name, err := u.place(info.Name())
	if err != nil {
		return err
	}
	_ = u.folder.Remove(name) // two packages may have the same file
	f, err := u.folder.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sum := p.hash()
	n, err := io.Copy(io.MultiWriter(f, sum), body)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if want := info.Digest(); n != info.Size() || want != "" && hex.EncodeToString(sum.Sum(nil)) != strings.ToLower(want) {
		return fmt.Errorf("%d bytes that are not those of the header: %w", n, manifest.ErrCorrupt)
	}
	u.made = append(u.made, placed{name, info, unix.S_IFREG})
	for _, other := range others {
		to, err := u.place(other)
		if err != nil {
			return err
		}
		_ = u.folder.Remove(to)
		if err := u.folder.Link(name, to); err != nil {
			return err
		}
		u.made = append(u.made, placed{to, byName[other], unix.S_IFREG})
	}
	return nil
}

// hash returns the hash of the digests in the header.
func (p *opened) hash() hash.Hash {
	const tagFileDigestAlgo = 5011
	switch p.Header.GetTag(tagFileDigestAlgo).Int64() {
	case 2:
		return sha1.New()
	case 8:
		return sha256.New()
	case 9:
		return sha512.New384()
	case 10:
		return sha512.New()
	}
	return md5.New()
}

// finish gives everything its owner, mode and time, folders last: they change
// when something is put into them.
func (u *unpacking) finish() error {
	if err := u.accounts.load(u.root); err != nil {
		return err
	}
	for _, p := range u.made {
		u.accounts.need(p.info.Owner(), p.info.Group())
	}
	if err := u.accounts.save(u.folder); err != nil {
		return err
	}
	slices.SortStableFunc(u.made, func(a, b placed) int {
		return cmp.Compare(strings.Count(b.name, "/"), strings.Count(a.name, "/"))
	})
	for _, p := range u.made {
		uid, gid := u.accounts.ids(p.info.Owner(), p.info.Group())
		err := u.folder.Lchown(p.name, uid, gid)
		if err == nil && p.info.Mode()&fs.ModeSymlink == 0 {
			err = u.folder.Chmod(p.name, p.info.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
			if err == nil {
				err = u.folder.Chtimes(p.name, time.Now(), p.info.ModTime())
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // another package has put something else there
		}
		if err != nil {
			return err
		}
	}
	return nil
}
