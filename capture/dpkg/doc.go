// Package dpkg reads Debian's database of installed packages in-process, from
// any root: /var/lib/dpkg/status and the files beside it. It is an
// implementation of pkgdb.DB and never runs dpkg, which may be of another
// architecture, or gone with the machine.
//
// # What is read, and when
//
// Open reads "status", then what a dpkg that was interrupted left in
// "updates/". The lists of files (info/*.list) are read together, in parallel,
// when a path's owner is first asked for, or one by one when a package's files
// are. Checksums (info/*.md5sums) are read package by package on demand. Images
// without dpkg ("distroless") have a folder status.d instead, whose packages
// count as installed.
//
// # What counts as installed
//
// Every package whose files are unpacked: installed, waiting for triggers, or
// not yet configured; not those that are removed with their configuration left.
//
// # Diversions
//
// A diversion moves a file of every package except one: the path that another
// package lists is then really elsewhere, and the answers say where.
//
// # Architectures
//
// A dependency of a package of a foreign architecture, when it has no qualifier
// of its own, is returned with that architecture: libc6 (>= 2.34) of an i386
// program on amd64 reads libc6:i386 (>= 2.34).
package dpkg
