package archive

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"srvfs/manifest"
)

// Kinds lists what an archive can be, for messages.
const Kinds = "DIR (an OCI image layout), FILE.tar, docker://REGISTRY/REPOSITORY:TAG; and, to read, http://HOST/FILE.tar or https://"

type kind int

const (
	folderKind kind = iota
	fileKind
	webKind
	registryKind
)

const registryPrefix = "docker://"

var scheme = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:`)

// sort tells what kind of archive a reference names. The error wraps ErrInvalid.
func sortOf(ref string) (kind, error) {
	switch {
	case ref == "":
		return 0, fmt.Errorf("no archive is named: it is %s: %w", Kinds, manifest.ErrInvalid)
	case strings.HasPrefix(ref, registryPrefix):
		return registryKind, nil
	case strings.HasPrefix(ref, "http://"), strings.HasPrefix(ref, "https://"):
		return webKind, nil
	case scheme.MatchString(ref):
		return 0, fmt.Errorf("%.200q is no kind of archive: it is %s: %w", ref, Kinds, manifest.ErrInvalid)
	}
	info, err := os.Stat(ref)
	switch {
	case err == nil && info.IsDir():
		return folderKind, nil
	case err == nil, strings.HasSuffix(ref, ".tar"):
		return fileKind, nil
	}
	return folderKind, nil
}

// IsRef reports whether a word on a command line names an archive, and not
// HOST/SERVICE or a service's name: docker://, http:// and https://, what ends in .tar, and
// a folder that is an OCI image layout.
func IsRef(s string) bool {
	if strings.HasPrefix(s, registryPrefix) || strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://") || strings.HasSuffix(s, ".tar") {
		return true
	}
	_, err := os.Stat(filepath.Join(s, "oci-layout"))
	return s != "" && err == nil
}

// Absolute returns the reference with an absolute path, if it names a folder or a file.
// The error wraps ErrInvalid if it names no kind of archive.
func Absolute(ref string) (string, error) {
	k, err := sortOf(ref)
	if err != nil || k == webKind || k == registryKind {
		return ref, err
	}
	return filepath.Abs(ref)
}
