package fs

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A View is one mounted snapshot. It lives until it is unmounted, by
// [View.Unmount] or from outside, or aborted; then [View.Done] is closed.
type View struct {
	counters
	snapshot    *manifest.Snapshot // guarded by tree, once the view is mounted
	content     Content
	holder      Holder // nil if content is none
	layout      Layout
	name        string
	deadline    time.Duration
	streamAbove int64
	missed      func(path string) // may be nil
	log         *slog.Logger
	generation  uint64 // of every node; see newView

	mountpoint string
	connection uint64
	device     int // a descriptor of /dev/fuse, to see whether the kernel has hung up
	server     *fuse.Server

	ctx    context.Context // of everything that the view waits for
	cancel context.CancelFunc
	work   sync.WaitGroup // every goroutine of the view but those that serve
	done   chan struct{}

	table  *table
	root   slot // of the snapshot's root
	gate   slot // of the folder "content", or 0
	failed slot // of the folder "failed", or 0
	loads  flights[ref]

	// tree is held for reading by who looks at published nodes, which waits for
	// nothing meanwhile and does not ask for it twice, and for writing by a move while
	// it publishes.
	tree   sync.RWMutex
	moving chan struct{} // holds one token while a move is under way
	ended  bool          // guarded by tree: no move may begin

	files *files
	opens flights[manifest.Digest]
	ahead ahead

	digests digests
	ensures flights[manifest.Digest]
	streams streams
}

// ours are the names that are no part of the snapshot: the root, and with Layers the
// folders.
const ours = 4

// newView prepares a view that is not mounted yet.
func newView(o Options) (*View, error) {
	switch {
	case o.Snapshot == nil || o.Content == nil:
		return nil, fmt.Errorf("a view needs a snapshot and its content: %w", manifest.ErrInvalid)
	case o.Layout > Layers:
		return nil, fmt.Errorf("unknown layout %d: %w", o.Layout, manifest.ErrInvalid)
	case o.Deadline < 0 || o.ReadAhead < 0 || o.OpenFiles < 0:
		return nil, fmt.Errorf("a negative deadline, read-ahead or number of files: %w", manifest.ErrInvalid)
	}
	s := o.Snapshot
	v := &View{
		snapshot: s, content: o.Content, layout: o.Layout,
		name:        cmp.Or(o.Name, s.Source+"/"+s.Service),
		deadline:    cmp.Or(o.Deadline, DefaultDeadline),
		streamAbove: cmp.Or(o.Stream, DefaultStream),
		missed:      o.Missed,
		log:         cmp.Or(o.Log, slog.Default()),
		// An overlay stores file handles of this view in its upper layer. With
		// another view below it later, they must not lead to another file.
		generation: 1 + uint64(rand.Uint32()>>1),
		device:     -1,
		done:       make(chan struct{}),
		table:      newTable(min(s.Totals.Entries, maxNodes) + ours),
		files:      newFiles(cmp.Or(o.OpenFiles, DefaultOpenFiles)),
		moving:     make(chan struct{}, 1),
	}
	v.table.counts = o.Layout == Plain
	v.digests.seed = maphash.MakeSeed()
	v.ahead.to, _ = o.Content.(Anticipator)
	v.holder, _ = o.Content.(Holder)
	v.ctx, v.cancel = context.WithCancel(context.Background())
	if err := v.plant(); err != nil {
		v.end()
		return nil, err
	}
	return v, nil
}

// serve answers the kernel until the view is unmounted or aborted.
func (v *View) serve() {
	v.server.Serve() // returns when no handler runs any more
	v.end()
	close(v.done)
}

// end lets go of everything. No handler may run.
func (v *View) end() {
	v.cancel()
	v.tree.Lock()
	v.ended = true
	v.tree.Unlock()
	v.work.Wait()
	v.files.close()
	v.table.release()
	if v.device >= 0 {
		_ = unix.Close(v.device)
	}
}

// Done is closed when the view has ended and has let go of everything that it
// had of Content.
func (v *View) Done() <-chan struct{} { return v.done }

// Wait waits for Done.
func (v *View) Wait() { <-v.done }

// Mountpoint returns where the view is mounted: an absolute path without
// symlinks, as in /proc/mounts.
func (v *View) Mountpoint() string { return v.mountpoint }

// Connection returns the N of /sys/fs/fuse/connections/N, which is the minor
// number of the view's st_dev.
func (v *View) Connection() uint64 { return v.connection }
