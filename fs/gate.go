package fs

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"srvfs/manifest"
)

// The folders of the layout Layers.
const (
	treeFolder    = "tree"
	contentFolder = "content"
	failedFolder  = "failed"
)

const (
	// streamGrace is how long Ensure may take with a file above the stream
	// threshold before the file is streamed.
	streamGrace = 50 * time.Millisecond
	// streamSmallest is the size in bytes up to which a file is waited for until
	// the deadline. A larger one that is still on its way after half of that
	// time, over a slow line, is streamed whatever the threshold.
	streamSmallest = 1 << 20
	// streamRetry is how long after a failure a stream's file is fetched again
	// in the background, if it is still read.
	streamRetry = 5 * time.Second
	// firstStream is the number of the first node of the gate's own.
	firstStream = 1 << 40
)

// The attributes by which the tree sends the overlay to the gate.
const (
	overlayMetacopy = "trusted.overlay.metacopy"
	overlayRedirect = "trusted.overlay.redirect"
)

// lookupContent answers the overlay's question for a content, which it asks when
// a file is opened for the first time. The best answer is "no such file", once
// the content stands among the blobs: there the kernel looks next. It asks on
// after a failure too, among the blobs and then in the folder "failed", whose
// answer is what the opener gets. Nothing remembers it: the next open asks again.
func (v *View) lookupContent(cancel <-chan struct{}, caller uint32, name string, out *fuse.EntryOut) fuse.Status {
	s, known := v.contentNamed(name)
	if !known {
		return fuse.ENOENT
	}
	v.gateLookups.Add(1)
	c := v.contentOf(s)
	if err := v.files.hasFailed(c.Digest); errors.Is(err, manifest.ErrStale) {
		return errno(err) // after ESTALE the kernel tries the whole path again, at once
	}
	v.opened(s)
	if v.holder != nil && v.holder.Holds(c) {
		v.files.works(c.Digest)
		return fuse.ENOENT
	}
	ctx := v.operation(cancel, caller)
	defer ctx.end()
	switch err := v.admit(ctx, c); {
	case err == nil:
		v.files.works(c.Digest)
		return fuse.ENOENT
	case errors.Is(err, errStream):
		v.stream(c, out)
		return fuse.OK
	default:
		err = explain(ctx, err)
		v.files.fails(c.Digest, err)
		return v.fail("open", c.Path, err)
	}
}

// lookupFailed answers for a content that the overlay found neither at the gate
// nor among the blobs. Without this last layer it would tell the opener that
// there is no such file.
func (v *View) lookupFailed(name string) fuse.Status {
	s, known := v.contentNamed(name)
	if !known {
		return fuse.ENOENT
	}
	if err := v.files.hasFailed(v.table.at(s).digest); err != nil {
		return errno(err)
	}
	return v.fail("open", v.path(s), fmt.Errorf("blob is gone although it was there a moment ago: %w", manifest.ErrNotFound))
}

// contentNamed returns a file of the tree with the content of this name.
func (v *View) contentNamed(name string) (slot, bool) {
	if len(name) != 2*manifest.DigestSize {
		return 0, false
	}
	d, err := manifest.ParseDigest(name)
	if err != nil {
		return 0, false
	}
	return v.digests.find(v.table, d)
}

// errStream says that a content is too large to wait for.
var errStream = errors.New("to be streamed")

// admit waits until c stands among the blobs.
func (v *View) admit(ctx context.Context, c manifest.Content) error {
	patience := v.deadline // which ctx ends too
	switch {
	case v.streamAbove < 0 || c.Size <= streamSmallest:
	case c.Size <= v.streamAbove:
		patience /= 2
	default:
		patience = min(streamGrace, patience/2)
	}
	call := v.ensure(c)
	defer v.ensures.leave(c.Digest, call)
	if patience < v.deadline {
		brief, end := context.WithTimeoutCause(ctx, patience, errStream)
		defer end()
		ctx = brief
	}
	err := call.wait(ctx)
	if errors.Is(err, errStream) {
		v.background(c) // joins the call before this one leaves it
	}
	return err
}

func (v *View) ensure(c manifest.Content) *flight {
	return v.ensures.join(v, c.Digest, func(ctx context.Context) error { return v.content.Ensure(ctx, c) })
}

// A stream is a content that is read through the gate while it is fetched.
type stream struct {
	content manifest.Content
	node    uint64
	fetch   atomic.Pointer[time.Time] // of the last failure to fetch it whole
}

// streams are the gate's own nodes, and the fetches of whole files that are
// under way behind them.
type streams struct {
	mu       sync.Mutex
	all      []*stream
	byDigest map[manifest.Digest]*stream
	fetching map[manifest.Digest]bool
}

// stream answers with a node of the gate's own. It has the long life of every
// node: if the kernel asked for it again and were told that it is gone, for good
// reason as the blob is there by now, the overlay would answer ESTALE for it from
// then on. Only a lookup after the kernel has dropped the name finds the blob, or
// a root on another view.
func (v *View) stream(c manifest.Content, out *fuse.EntryOut) {
	v.streams.mu.Lock()
	st := v.streams.byDigest[c.Digest]
	if st == nil {
		st = &stream{content: c, node: firstStream + uint64(len(v.streams.all))}
		if v.streams.byDigest == nil {
			v.streams.byDigest = map[manifest.Digest]*stream{}
		}
		v.streams.byDigest[c.Digest] = st
		v.streams.all = append(v.streams.all, st)
	}
	v.streams.mu.Unlock()
	v.streamAttr(st, &out.Attr)
	out.NodeId, out.Generation = st.node, v.generation
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
}

// streamOf returns the stream with this node number.
func (v *View) streamOf(node uint64) (*stream, bool) {
	v.streams.mu.Lock()
	defer v.streams.mu.Unlock()
	if i := node - firstStream; node >= firstStream && i < uint64(len(v.streams.all)) {
		return v.streams.all[i], true
	}
	return nil, false
}

func (v *View) streamAttr(st *stream, out *fuse.Attr) {
	size := uint64(st.content.Size)
	*out = fuse.Attr{Ino: st.node, Mode: fuse.S_IFREG | 0o400, Nlink: 1, Size: size, Blocks: (size + sector - 1) / sector, Blksize: blockSize}
}

// background brings the whole content in while its parts are read. The view
// owns it: it ends with the view.
func (v *View) background(c manifest.Content) {
	v.streams.mu.Lock()
	defer v.streams.mu.Unlock()
	if v.streams.fetching[c.Digest] {
		return
	}
	if v.streams.fetching == nil {
		v.streams.fetching = map[manifest.Digest]bool{}
	}
	v.streams.fetching[c.Digest] = true
	call := v.ensure(c)
	v.work.Go(func() {
		err := call.wait(v.ctx)
		v.ensures.leave(c.Digest, call)
		v.streams.mu.Lock()
		delete(v.streams.fetching, c.Digest)
		st := v.streams.byDigest[c.Digest]
		v.streams.mu.Unlock()
		if st != nil {
			now := time.Now()
			if err == nil {
				now = now.Add(forever) // it is there: not again
			}
			st.fetch.Store(&now)
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			v.fail("fetch", c.Path, fmt.Errorf("in the background: %w", err))
		}
	})
}

// resume starts the background fetch again if it has failed a while ago.
func (v *View) resume(st *stream) {
	if last := st.fetch.Load(); last != nil && time.Since(*last) > streamRetry {
		v.background(st.content)
	}
}

// digests finds a file by its content's digest: a hash table of slots, with
// linear probing. It is filled as directories are loaded, so that each digest
// that the overlay can know from the tree is found.
type digests struct {
	seed  maphash.Seed // so that nobody can choose digests that collide
	mu    sync.RWMutex
	slots []slot // 0, which is no file, is an empty place
	used  int
}

func (d *digests) find(t *table, want manifest.Digest) (slot, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if len(d.slots) == 0 {
		return 0, false
	}
	s := d.slots[d.place(t, want)]
	return s, s != 0
}

// place returns where want stands or would have to stand.
func (d *digests) place(t *table, want manifest.Digest) int {
	mask := len(d.slots) - 1
	i := int(maphash.Bytes(d.seed, want[:])) & mask
	for d.slots[i] != 0 && t.at(d.slots[i]).digest != want {
		i = (i + 1) & mask
	}
	return i
}

// add enters the files among the n slots from first on.
func (d *digests) add(t *table, first slot, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := first; s < first+slot(n); s++ {
		n := t.at(s)
		if c := t.class(n); !c.is(manifest.File) || c.parts&partAlias != 0 || n.value == 0 {
			continue
		}
		if 4*(d.used+1) > 3*len(d.slots) {
			d.grow(t)
		}
		if i := d.place(t, n.digest); d.slots[i] == 0 {
			d.slots[i] = s
			d.used++
		}
	}
}

func (d *digests) grow(t *table) {
	old := d.slots
	d.slots = make([]slot, max(64, 2*len(old)))
	for _, s := range old {
		if s != 0 {
			d.slots[d.place(t, t.at(s).digest)] = s
		}
	}
}
