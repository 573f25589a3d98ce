package garden

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Picture tells all that a reader can see of a folder, a line for each name: two folders
// of one picture are the same byte for byte and attribute for attribute. An error is that
// of a folder which changes meanwhile.
func Picture(dir string) (string, error) {
	var b strings.Builder
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: p, Err: err}
		}
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			st.Size = 0
		case unix.S_IFLNK:
			if content, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%x", sha256.Sum256(data))
		}
		attributes, err := xattrs(p)
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, dir)
		if _, seen := first[st.Ino]; !seen {
			first[st.Ino] = rel
		}
		_, err = fmt.Fprintf(&b, "%q mode %o owner %d:%d size %d device %x links %d time %d.%09d content %q attributes %q file of %q\n",
			rel, st.Mode, st.Uid, st.Gid, st.Size, st.Rdev, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec, content, attributes, first[st.Ino])
		return err
	})
	return b.String(), err
}

// xattrs returns the extended attributes of p, as text.
func xattrs(p string) (string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, list)
	if err != nil {
		return "", &os.PathError{Op: "listxattr", Path: p, Err: err}
	}
	all := map[string]string{} // printed in the order of the names
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return "", &os.PathError{Op: "getxattr " + name, Path: p, Err: err}
		}
		all[name] = string(value[:n])
	}
	return fmt.Sprint(all), nil
}
