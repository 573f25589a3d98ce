package fs

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// ErrUntold: a view has moved, and the kernel goes on with some of what it remembers of
// the snapshot before.
var ErrUntold = errors.New("the kernel could not be told of all that has changed")

// News are what the kernel remembers and that is true no more. It is told after the new
// tree is published and while nothing is locked: it may have to wait for requests that
// are to be answered first.
//
// No answer from before can come after it and be remembered. The kernel takes the lock of
// a directory for whoever looks a name up in it or lists it, until it has taken the
// answer in, and alone for dropping a name: so that waits for the answers that are under
// way. Listings and attributes are dropped after the names for the same reason. Where no
// name has changed one is dropped all the same (fence).
type news struct {
	listings   []listingNews
	attributes []uint64 // nodes
}

// A listingNews is a directory in which these names are no more what they were. A name
// that has come is one: the kernel may remember that there is none. Without any, only
// attributes of what is in it have changed.
type listingNews struct {
	dir   uint64
	names []string
}

// fence is a name that nobody has, or that can be looked up again.
const fence = ".srvfs-fence"

// tellers is how many directories the kernel is told of at a time. Each may wait for
// somebody who waits for content.
const tellers = 8

// tell tells the kernel, and returns when it has acted on it.
func (v *View) tell(n *news) error {
	var mu sync.Mutex
	var failed error
	check := func(s fuse.Status, what string, id uint64) {
		// ENOENT: it does not remember that at all.
		if s == fuse.OK || s == fuse.ENOENT {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if failed == nil {
			failed = fmt.Errorf("%w: %s of node %d: %w", ErrUntold, what, id, syscall.Errno(s))
		}
	}
	one := func(l *listingNews) {
		if len(l.names) == 0 {
			check(v.server.EntryNotify(l.dir, fence), "names", l.dir)
			return
		}
		for _, name := range l.names {
			check(v.server.EntryNotify(l.dir, name), "name", l.dir)
		}
		check(v.server.InodeNotify(l.dir, 0, 0), "listing", l.dir)
	}
	var all sync.WaitGroup
	free := make(chan struct{}, tellers)
	for i := range n.listings {
		free <- struct{}{}
		all.Go(func() { one(&n.listings[i]); <-free })
	}
	all.Wait()
	for _, id := range n.attributes {
		check(v.server.InodeNotify(id, -1, 0), "attributes", id)
	}
	return failed
}
