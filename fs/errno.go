package fs

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"srvfs/manifest"
)

// errInterrupted is the cause of a context whose waiting process is dying.
var errInterrupted = fmt.Errorf("the process that waited was killed: %w", context.Canceled)

// errnos is this package's table of errors: what the kernel is told when content
// or a directory can't be had. The first that matches counts.
//
// ErrNotFound is EIO and not ENOENT: it says that no origin has the content of a
// name, and that name exists. "No such file" would be a lie on which programs
// act, as when they write a fresh configuration. Names that the snapshot does
// not have are no errors; they are answered from the tree.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{context.Canceled, syscall.EINTR},
	{manifest.ErrNoSpace, syscall.ENOSPC},
	{manifest.ErrStale, syscall.ESTALE},
	{manifest.ErrDenied, syscall.EACCES},
	{manifest.ErrCorrupt, syscall.EIO},
	{manifest.ErrUnavailable, syscall.EIO},
	{manifest.ErrNotFound, syscall.EIO},
	{manifest.ErrInvalid, syscall.EIO},
	{context.DeadlineExceeded, syscall.EIO},
}

// errno translates an error by the table; anything else is EIO.
func errno(err error) fuse.Status {
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return fuse.Status(e.errno)
		}
	}
	return fuse.EIO
}

// fail writes the line that says why an operation on path failed, and returns
// what the kernel is told.
func (v *View) fail(operation, path string, err error) fuse.Status {
	status := errno(err)
	if status == fuse.EINTR {
		return status // nobody is left who would want to know
	}
	v.failures.Add(1)
	v.log.Warn("view: operation failed", "op", operation, "path", path, "errno", syscall.Errno(status).Error(), "err", err)
	return status
}

// errPanic is what a panic in the view or in its Content becomes.
var errPanic = errors.New("internal error")

// guard turns a panic of fn into an error with a log line: one defect must not
// take down a view that a service lives on.
func (v *View) guard(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			v.panicked(p)
			err = fmt.Errorf("%w: %v", errPanic, p)
		}
	}()
	return fn()
}

// panicked logs a panic and returns what the kernel is told.
func (v *View) panicked(p any) fuse.Status {
	v.failures.Add(1)
	v.log.Error("view: internal error", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return fuse.EIO
}
