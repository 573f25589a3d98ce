// Package rpmdb reads the database of installed RPM packages, in the process
// itself and without rpm's help.
//
// # Formats
//
// An RPM database is a table from numbers to headers, and a header is what the
// package file had, with a few tags more. The table comes in three formats:
//
//	rpmdb.sqlite    SQLite, perhaps with a write-ahead log beside it; since RPM 4.16
//	Packages.db     "ndb", RPM's own; SUSE
//	Packages        a hash table of Berkeley DB; RHEL and CentOS up to 8
//
// It stands in /usr/lib/sysimage/rpm or in /var/lib/rpm. Each format is read by
// a few dozen lines that know how to find the headers and no more: indexes are
// not used, since all packages are wanted. Sources: RPM's own lib/backend and
// lib/header.c, https://www.sqlite.org/fileformat.html, and Berkeley DB's
// dbinc/db_page.h.
//
// # Trust
//
// The root may be anybody's, so the bytes are hostile: lengths and offsets are
// checked before they are used, chains of pages are followed as far as the file
// can have pages, and what is wrong is an error that says where.
//
// # A transaction under way
//
// RPM holds a lock while it installs. The database is then refused
// (pkgdb.ErrBusy): what it says would be true for a moment only.
package rpmdb
