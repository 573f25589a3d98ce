package daemon

import (
	"context"
	"sync"

	"srvfs/store"
)

// A transfer is a prefetch under way, for who asks how far it is.
type transfer struct {
	*opened
	source string

	mu    sync.Mutex
	stage string
}

func (t *transfer) report(p store.Progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stage = p.Stage
}

// transferring notes a transfer until done is called.
func (d *daemon) transferring(source string, o *opened) (t *transfer, done func()) {
	t = &transfer{opened: o, source: source}
	d.mu.Lock()
	d.transfers[t] = true
	d.mu.Unlock()
	return t, func() {
		d.mu.Lock()
		delete(d.transfers, t)
		d.mu.Unlock()
	}
}

// addTransfers tells of the transfers under way: with what they are for, if that is in
// the list, else on a line of their own.
func (d *daemon) addTransfers(ctx context.Context, all []Status) ([]Status, error) {
	d.mu.Lock()
	list := make([]*transfer, 0, len(d.transfers))
	for t := range d.transfers {
		list = append(list, t)
	}
	d.mu.Unlock()
	for _, t := range list {
		var s *Status
		for i := range all {
			if all[i].key == t.key && all[i].Service == t.snapshot.Service && all[i].Sequence == t.snapshot.Sequence && all[i].Following == nil {
				s = &all[i]
			}
		}
		if s == nil {
			content, err := d.tally(ctx, t.key, t.reader, t.snapshot)
			if err != nil {
				return nil, err
			}
			all = append(all, Status{Source: t.source, Service: t.snapshot.Service, Sequence: t.snapshot.Sequence, State: "prefetching", Content: content, key: t.key})
			s = &all[len(all)-1]
		}
		s.Rate += t.reader.Rate()
		t.mu.Lock()
		s.Stage = t.stage
		t.mu.Unlock()
	}
	return all, nil
}
