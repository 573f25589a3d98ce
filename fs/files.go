package fs

import (
	"container/list"
	"context"
	"sync"
	"time"

	"srvfs/manifest"
)

// failureMemory is how long a read of the same content fails at once after one
// has failed. The kernel, when its read-ahead fails, asks for the page itself
// again; without this a reader would wait for two deadlines.
const failureMemory = 500 * time.Millisecond

// files are the contents that are open between reads. As OPEN is not asked, a
// READ says which node it wants and nothing else; so the view opens content at
// the first read and closes what has not been read for longest.
type files struct {
	mu     sync.Mutex
	max    int
	open   map[manifest.Digest]*handle
	recent list.List // of *handle, the last read first
	failed map[manifest.Digest]failure
	closed bool
}

type failure struct {
	err  error
	when time.Time
}

// A handle is a File that is in use by refs reads, or kept for the next.
type handle struct {
	file   File
	digest manifest.Digest
	refs   int
	elem   *list.Element // nil when it is to be closed after the last read
}

func newFiles(max int) *files {
	return &files{max: max, open: map[manifest.Digest]*handle{}, failed: map[manifest.Digest]failure{}}
}

// get returns c's handle if it is open. It must be given back with put.
func (f *files) get(d manifest.Digest) *handle {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.open[d]
	if h != nil {
		h.refs++
		f.recent.MoveToFront(h.elem)
	}
	return h
}

// keep enters a newly opened file and returns its handle, in use once. If the
// content has been opened meanwhile, or the view has ended, the file is used
// for this once only.
func (f *files) keep(d manifest.Digest, file File) *handle {
	h := &handle{file: file, digest: d, refs: 1}
	f.mu.Lock()
	var idle []*handle
	if !f.closed && f.open[d] == nil {
		f.open[d] = h
		h.elem = f.recent.PushFront(h)
		for e := f.recent.Back(); e != nil && len(f.open) > f.max; {
			old, before := e.Value.(*handle), e.Prev()
			if old.refs == 0 {
				f.forget(old)
				idle = append(idle, old)
			}
			e = before
		}
	}
	f.mu.Unlock()
	for _, old := range idle {
		_ = old.file.Close() // it was read from only
	}
	return h
}

// put gives a handle back. After a failed read the file is opened anew.
func (f *files) put(h *handle, failed bool) {
	f.mu.Lock()
	if failed && h.elem != nil {
		f.forget(h)
	}
	h.refs--
	end := h.refs == 0 && h.elem == nil
	f.mu.Unlock()
	if end {
		_ = h.file.Close()
	}
}

func (f *files) forget(h *handle) {
	delete(f.open, h.digest)
	f.recent.Remove(h.elem)
	h.elem = nil
}

// len returns the number of open files.
func (f *files) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open)
}

// close closes all files that are not in use, and the others after their read.
func (f *files) close() {
	f.mu.Lock()
	f.closed = true
	var idle []*handle
	for _, h := range f.open {
		f.forget(h)
		if h.refs == 0 {
			idle = append(idle, h)
		}
	}
	f.mu.Unlock()
	for _, h := range idle {
		_ = h.file.Close()
	}
}

// hasFailed returns the error of a read of d that failed a moment ago.
func (f *files) hasFailed(d manifest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e, ok := f.failed[d]; ok {
		if time.Since(e.when) < failureMemory {
			return e.err
		}
		delete(f.failed, d)
	}
	return nil
}

// fails remembers a failure, and forgets those that are over.
func (f *files) fails(d manifest.Digest, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for k, e := range f.failed {
		if now.Sub(e.when) >= failureMemory {
			delete(f.failed, k)
		}
	}
	f.failed[d] = failure{err, now}
}

// works forgets a failure.
func (f *files) works(d manifest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.failed, d)
}

// acquire returns a handle for c, opening it if needed.
func (v *View) acquire(ctx context.Context, c manifest.Content) (*handle, error) {
	if h := v.files.get(c.Digest); h != nil {
		return h, nil
	}
	if v.holder != nil {
		if file, ok := v.holder.OpenHeld(c); ok {
			return v.files.keep(c.Digest, file), nil
		}
	}
	err := v.opens.do(ctx, v, c.Digest, func(ctx context.Context) error {
		file, err := v.content.Open(ctx, c)
		if err != nil {
			return err
		}
		v.files.put(v.files.keep(c.Digest, file), false)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if h := v.files.get(c.Digest); h != nil {
		return h, nil
	}
	// Evicted in between, under a storm of reads: a file for this read alone.
	file, err := v.content.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return v.files.keep(c.Digest, file), nil
}
