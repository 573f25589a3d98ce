// Package rootfs reads files below a folder as a process would see them that
// has this folder as its root: a container's folder, a dead machine's disk, or
// simply "/".
//
// A symlink in such a tree may be absolute, or lead up with "..": in the
// container it means something inside the container, and so it does here. No
// path, however hostile the tree, leads out of it. (os.Root refuses absolute
// symlinks, which every Debian root is full of; it protects, but does not
// resolve.)
//
// # Canonical paths
//
// A canonical path is absolute, clean, and crosses no symlink: on a system
// with merged /usr the canonical path of /bin/sh is /usr/bin/dash, and on the
// way two links were crossed, /bin and /usr/bin/sh. Whoever copies a file needs
// both, the file and the links. Links are named with their own directory in
// canonical form.
//
// # Caching and races
//
// A Root remembers what each directory resolves to for as long as it lives, so
// make one for each capture and not one for the life of a daemon. The metadata
// of files is never cached. Files are opened with openat2(RESOLVE_IN_ROOT)
// where the kernel has it (Linux 5.6), so that a tree which changes under our
// feet can't lead an open out of it either.
//
// Errors are *fs.PathError values with the path on this host: match them with
// errors.Is(err, fs.ErrNotExist) and the like.
package rootfs
