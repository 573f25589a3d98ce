package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// An Attempt is one source's answer to a request that failed.
type Attempt struct {
	Source string
	Err    error
	Took   time.Duration
}

// A FetchError says that no source could provide some content. It wraps
// manifest.ErrStale if one of them had it and the file has changed since;
// manifest.ErrUnavailable otherwise, and manifest.ErrCorrupt besides if all that
// any of them sent was wrong.
type FetchError struct {
	What     string // the file's path, or which metadata
	Digest   manifest.Digest
	Attempts []Attempt
	Took     time.Duration
}

// Error names the content, the sources, their reasons and times.
func (e *FetchError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%.12s): %v", e.What, e.Digest.Hex(), e.sentinel())
	if len(e.Attempts) == 0 {
		b.WriteString(": it is neither in the store nor on this host, and there is no source to ask")
		return b.String()
	}
	for i, a := range e.Attempts {
		sep := "; "
		if i == 0 {
			sep = ": asked "
		}
		fmt.Fprintf(&b, "%s%s (%v, %v)", sep, a.Source, a.Err, a.Took.Round(time.Millisecond))
	}
	fmt.Fprintf(&b, "; gave up after %v", e.Took.Round(time.Millisecond))
	return b.String()
}

func (e *FetchError) sentinel() error {
	for _, a := range e.Attempts {
		if errors.Is(a.Err, manifest.ErrStale) {
			return manifest.ErrStale
		}
	}
	return manifest.ErrUnavailable
}

// Unwrap returns the sentinels. What the attempts wrap is only told, not
// matched: that one of three origins did not find it doesn't make it not found.
func (e *FetchError) Unwrap() []error {
	is := []error{e.sentinel()}
	corrupt := len(e.Attempts) > 0
	for _, a := range e.Attempts {
		corrupt = corrupt && errors.Is(a.Err, manifest.ErrCorrupt)
	}
	if corrupt {
		is = append(is, manifest.ErrCorrupt)
	}
	return is
}

// A localError is one of our own disk: no other source would help.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// onDisk wraps an error of writing n bytes of what into the store, nil too.
func (s *Store) onDisk(err error, what string, n int64) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		free := int64(-1)
		var st unix.Statfs_t
		if unix.Statfs(s.dir, &st) == nil {
			free = int64(st.Bavail) * st.Bsize
		}
		err = fmt.Errorf("%s needs %d bytes in %s, where %d are free: make room there: %w", what, n, s.dir, free, manifest.ErrNoSpace)
	} else if !errors.Is(err, context.Canceled) {
		err = fmt.Errorf("store %s: %s: %w", s.dir, what, err)
	}
	return localError{err}
}

func isLocal(err error) bool {
	var l localError
	return errors.As(err, &l)
}

// report logs a file that could not be had, once in a while, and counts it.
func (s *Store) report(what string, d manifest.Digest, err error) {
	s.stats.failed.add(1)
	if s.quiet.pass("failed " + d.Hex()) {
		s.log.Error("content can't be read", "path", what, "digest", d.Hex(), "err", err)
	}
}
