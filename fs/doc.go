// Package fs shows a snapshot as a FUSE file system.
package fs
