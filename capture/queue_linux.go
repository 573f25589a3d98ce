package capture

import (
	"context"
	"sync"
	"time"

	"srvfs/capture/notify"
)

// A change is one that was reported.
type change struct {
	path   string
	below  bool
	inodes []notify.Inode
	// defines: there is nothing to be followed, but what a capture finds may be another
	// now.
	defines bool
}

// A queue holds what was reported until it is taken. Whoever fills it does so in batches,
// for two reasons: what happens to a file between two of them is one report, which costs
// whoever writes less, and a process that runs for each single event takes the writer's
// time.
type queue struct {
	filled chan struct{} // closed when there will be no more

	mu    sync.Mutex
	all   []change
	since time.Time // of the first of them
	pause time.Time // until then nobody takes them
}

const (
	// pauseMost is for how long at most events stay in the kernel's queue, which holds
	// 16,384, when nobody would take them.
	pauseMost = 20 * time.Millisecond
	// mostQueued bounds the queue: it costs less then to look at everything.
	mostQueued = 1 << 18
)

func newQueue() *queue { return &queue{filled: make(chan struct{}, 1)} }

// close says that there will be no more. Nobody must call put then.
func (q *queue) close() { close(q.filled) }

func (q *queue) put(some []change, since time.Time) {
	if len(some) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.all) == 0 {
		q.since = since
	}
	if q.all = append(q.all, some...); len(q.all) > mostQueued {
		q.all = []change{{path: "/", below: true}}
	}
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// take empties it.
func (q *queue) take(use func(c change, since time.Time)) {
	q.mu.Lock()
	all, since := q.all, q.since
	q.all = nil
	q.mu.Unlock()
	for _, c := range all {
		use(c, since)
	}
}

// rest says for how long nothing will be done about what is reported.
func (q *queue) rest(d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pause = time.Now().Add(d)
}

// gather returns how long events are to be gathered from now on.
func (q *queue) gather() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return max(gatherFor, min(time.Until(q.pause), pauseMost))
}

// read waits for changes, and for more of them, and puts into the queue what matters.
func (q *queue) read(ctx context.Context, w *notify.Watcher, f *follower) error {
	if err := w.Wait(ctx); err != nil {
		return err
	}
	since := time.Now()
	select {
	case <-time.After(q.gather()):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	events, err := w.Next(ctx)
	if err != nil {
		return err
	}
	var some []change
	for _, e := range events {
		if f.scope.definedAt(e.Path) {
			some = append(some, change{path: e.Path, defines: true})
		}
		if f.far(e.Path) || f.ignores(e.Path) {
			continue
		}
		names, inodes := w.Others(e)
		some = append(some, change{path: e.Path, below: e.Below, inodes: inodes})
		for _, p := range names {
			if !f.far(p) && !f.ignores(p) {
				some = append(some, change{path: p})
			}
		}
	}
	q.put(some, since)
	return nil
}
