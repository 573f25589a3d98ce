// Package pkgdb says what a database of installed packages can answer: which
// package owns a path, which files a package has, what it depends on. Package
// dpkg implements it for Debian; an RPM database answers the same questions.
//
// # Names
//
// A package is named by its ID, the shortest name that its own tools print and
// accept without doubt: "nginx", "libc6:amd64" where several architectures of a
// package can be installed together, "bash" or "glibc.i686" for RPM. Every
// method accepts an ID; Package also accepts a bare name.
//
// # Paths
//
// A database lists paths as they were packed. On a system with merged /usr it
// says /bin/sh where the file is /usr/bin/sh. So the directory of each listed
// path, and of each path that is asked for, is brought to its canonical form
// (package rootfs); the last component is not followed, since a package owns
// the link and not what it leads to. All paths that come back have this form.
package pkgdb
