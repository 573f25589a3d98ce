package capture

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// A sourceMount is a file system that the source sees at or below its root.
type sourceMount struct {
	path string // canonical, in the root; "/" first
	host string // on this host
	real bool   // it holds files, and is not a view of the kernel or of another host's state
}

// realTypes are the file systems of which content is captured.
var realTypes = map[string]bool{
	"ext2": true, "ext3": true, "ext4": true, "xfs": true, "btrfs": true, "zfs": true, "f2fs": true, "bcachefs": true, "jfs": true, "reiserfs": true, "nilfs2": true,
	"vfat": true, "exfat": true, "ntfs3": true, "fuseblk": true, "squashfs": true, "erofs": true, "iso9660": true, "udf": true,
	"tmpfs": true, "ramfs": true, "overlay": true, "nfs": true, "nfs4": true, "cifs": true, "smb3": true, "ceph": true, "9p": true, "virtiofs": true, "fuse.glusterfs": true, "ocfs2": true, "gfs2": true,
}

// mountsBelow returns what is mounted below the folder root of this host, its
// own file system first, then sorted by path. Of several mounts at one place
// the last counts, and what it hides is left out.
func mountsBelow(root string) ([]sourceMount, error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("mounts below %s: %w", root, err)
	}
	return arrangeMounts(root, infos), nil
}

func arrangeMounts(root string, infos []*mountinfo.Info) []sourceMount {
	prefix := strings.TrimSuffix(root, "/")
	var mounts []sourceMount
	for _, m := range infos { // a later mount covers earlier ones at and below its place
		at, ok := strings.CutPrefix(m.Mountpoint, prefix+"/")
		if !ok || at == "" {
			continue
		}
		p := "/" + at
		mounts = slices.DeleteFunc(mounts, func(o sourceMount) bool { return inside(o.path, p) })
		mounts = append(mounts, sourceMount{path: p, host: m.Mountpoint, real: realTypes[m.FSType] && !isPseudo(p)})
	}
	slices.SortFunc(mounts, func(a, b sourceMount) int { return cmp.Compare(a.path, b.path) })
	return append([]sourceMount{{path: "/", host: root, real: true}}, mounts...)
}

// mountedAt reports whether something other than this host's own root is mounted at a
// path of this host.
func mountedAt(p string) bool {
	yes, err := mountinfo.Mounted(p)
	return p != "/" && err == nil && yes
}

// mountOf returns the mount that the canonical path p lies on.
func mountOf(mounts []sourceMount, p string) *sourceMount {
	best := &mounts[0]
	for i := range mounts {
		if m := &mounts[i]; inside(p, m.path) && len(m.path) >= len(best.path) {
			best = m
		}
	}
	return best
}

// inside reports whether the clean path p is dir or below it.
func inside(p, dir string) bool {
	return dir == "/" || strings.HasPrefix(p, dir) && (len(p) == len(dir) || p[len(dir)] == '/')
}

// isPseudo reports whether the canonical path p is, or lies in, a folder that
// is empty in a snapshot.
func isPseudo(p string) bool {
	return slices.ContainsFunc(pseudo, func(dir string) bool { return inside(p, dir) })
}

// parents calls f for each folder above the canonical path p, the nearest
// first, until it returns false.
func parents(p string, f func(dir string) bool) {
	for p != "/" {
		p = path.Dir(p)
		if !f(p) {
			return
		}
	}
}
