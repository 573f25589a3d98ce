// Package rpmfile reads which files an RPM package file (.rpm) installs. It
// looks at the header alone: what the files hold comes from the source's root,
// where the package is installed.
//
// Package files may come from anywhere, so the header is hostile: it is read up
// to a limit, a parser's panic is an error, and paths that are not absolute and
// clean are refused.
package rpmfile

import (
	"bufio"
	"fmt"
	"io"
	"os"

	"github.com/cavaliergopher/rpm"

	"srvfs/manifest"
)

// Limits of a package file: the bytes of lead, signature and header, and the
// number of files (the largest package of Fedora has some 60,000).
const (
	maxHeader = 96 << 20
	maxFiles  = 1 << 20
)

// A Package is what a package file says of itself.
type Package struct {
	Name    string   // name-version-release.architecture
	Files   []string // absolute, clean paths, in the package's order; folders too
	Configs []string // those of them that are configuration
}

// Open reads the package file called name. The error wraps manifest.ErrInvalid
// if it is not one, or is damaged, and fs.ErrNotExist if it does not exist.
func Open(name string) (*Package, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	p, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("package file %s: %w", name, err)
	}
	return p, nil
}

// Read reads a package file's header. The error wraps manifest.ErrInvalid.
func Read(r io.Reader) (p *Package, err error) {
	defer func() {
		if v := recover(); v != nil { // the parser trusts the lengths in the header
			p, err = nil, fmt.Errorf("damaged header (%v): %w", v, manifest.ErrInvalid)
		}
	}()
	raw, err := rpm.Read(bufio.NewReader(io.LimitReader(r, maxHeader)))
	if err != nil {
		return nil, fmt.Errorf("not an rpm package: %w: %w", err, manifest.ErrInvalid)
	}
	files := raw.Files()
	if len(files) > maxFiles {
		return nil, fmt.Errorf("%d files exceed %d: %w", len(files), maxFiles, manifest.ErrInvalid)
	}
	p = &Package{Name: raw.String()}
	for _, f := range files {
		if !manifest.ValidPath(f.Name()) {
			return nil, fmt.Errorf("file %.300q is not an absolute, clean path: %w", f.Name(), manifest.ErrInvalid)
		}
		p.Files = append(p.Files, f.Name())
		if f.Flags()&rpm.FileFlagConfig != 0 {
			p.Configs = append(p.Configs, f.Name())
		}
	}
	return p, nil
}
