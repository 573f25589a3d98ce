package fs

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"srvfs/manifest"
)

// Content is where a view gets everything that is not in the snapshot itself:
// directory pages, and the bytes of files. All of it is verified already.
//
// The methods are called from many goroutines at once. Each call has a context
// with the view's deadline, which also ends when the process that waits is
// killed; an error wraps one of manifest's sentinels, or a context's.
type Content interface {
	manifest.MetaSource
	// Open returns a file whose bytes can be read at once, even if they are
	// only partly, or not at all, on this machine. The view calls it once for
	// each file that is read through it and keeps the File open for a while.
	Open(ctx context.Context, c manifest.Content) (File, error)
	// Ensure returns when the whole content stands in the folder of blobs,
	// under the 64 hexadecimal digits of its digest. Only a view with the
	// layout Layers calls it.
	Ensure(ctx context.Context, c manifest.Content) error
}

// A Holder is a Content that can tell at once what it holds. The view asks it
// first: what is there needs no call that others could join, and no deadline.
type Holder interface {
	// Holds reports whether the whole content stands among the blobs,
	// verified, so that Ensure would return at once.
	Holds(c manifest.Content) bool
	// OpenHeld is Open for such a content; ok is false for any other.
	OpenHeld(c manifest.Content) (f File, ok bool)
}

// An Anticipator is a Content that takes hints of what will be wanted soon, so
// that a program that walks a tree, or reads many small files one after the
// other, does not wait for a round trip at each. Its methods begin work in the
// background and return at once. What they can't get is nobody's error: whoever
// then needs it waits, and is told.
type Anticipator interface {
	// ReadAhead brings these contents to this machine, in this order, in few
	// requests. Each can be opened as soon as it is there itself.
	ReadAhead(contents []manifest.Content)
	// MetaAhead does the same for directory pages.
	MetaAhead(digests []manifest.Digest)
}

// A File is one content that is open for reading. ReadAt may be called from
// many goroutines at once; Close is called once, when no ReadAt is under way.
type File interface {
	// ReadAt fills p with the bytes from off on. It returns fewer than len(p)
	// only at the end of the file (where err may be nil or io.EOF) or with an
	// error.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	Close() error
}

// A Layout says what the root of the mount is.
type Layout uint8

const (
	// Plain: the root of the mount is the root of the snapshot's tree. Reads
	// are served by this process and cached by the kernel.
	Plain Layout = iota
	// Layers: the root of the mount has three folders that are lower layers of
	// an overlay file system:
	//
	//	lowerdir=M/tree::M/content::BLOBS::M/failed,metacopy=on,redirect_dir=on
	//
	// where M is the mountpoint and BLOBS the folder that Content.Ensure fills;
	// see [Lower]. It needs Linux 6.5.
	Layers
)

// String returns the layout's name in lower case.
func (l Layout) String() string {
	if l == Layers {
		return "layers"
	}
	return "plain"
}

// Defaults of [Options].
const (
	DefaultDeadline  = 10 * time.Second
	DefaultStream    = 32 << 20 // bytes
	DefaultReadAhead = 1 << 20  // bytes
	DefaultOpenFiles = 512
)

// Options say what a view shows and how. Snapshot and Content are needed.
type Options struct {
	Snapshot *manifest.Snapshot
	Content  Content
	Layout   Layout
	// Name is the file system's source in /proc/mounts, HOST/SERVICE. If it is
	// empty, the snapshot's own source and service are shown.
	Name string
	// Deadline bounds each operation of the kernel: when content or a directory
	// can't be had by then, the operation fails with EIO. Zero means
	// DefaultDeadline.
	Deadline time.Duration
	// Stream is the size in bytes above which a file that is not on this machine
	// is not waited for at its first open, but read in parts (layout Layers
	// only). Zero means DefaultStream, a negative value never.
	Stream int64
	// ReadAhead is how far the kernel reads ahead in files that this process
	// serves, in bytes. Zero means DefaultReadAhead.
	ReadAhead int
	// OpenFiles bounds the number of Files that are kept open between reads.
	// Zero means DefaultOpenFiles.
	OpenFiles int
	// Missed, if not nil, is told of each name that was looked up and that the
	// snapshot does not have: once, as the kernel remembers. It is called by many
	// goroutines, while somebody waits for the answer.
	Missed func(path string)
	// Log receives a line for each operation that fails, with the path and the
	// cause. Nil means slog.Default().
	Log *slog.Logger
	// Debug logs each request and answer, at slog's debug level.
	Debug bool
}

// Lower returns the value of overlayfs's option lowerdir for a view with the
// layout Layers: the tree; the gate, which is asked first for a file's content;
// the folder of blobs, where it then is; and the folder "failed", which answers
// with the reason where it is not. Without that last layer a program that opens
// a file whose content can't be had would be told that there is no such file.
func Lower(mountpoint, blobs string) string {
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace
	m := escape(mountpoint)
	return m + "/" + treeFolder + "::" + m + "/" + contentFolder + "::" + escape(blobs) + "::" + m + "/" + failedFolder
}
