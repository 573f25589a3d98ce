package store

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// rateOver is the time over which a rate is the mean, and rateSlot a part of it.
const (
	rateOver  = 2 * time.Second
	rateSlot  = 250 * time.Millisecond
	rateSlots = int64(rateOver / rateSlot)
)

// A meter tells how fast bytes have come lately.
type meter struct {
	mu    sync.Mutex
	slots [rateSlots]int64
	last  int64 // the number of the slot that was written last
}

// slot makes the slot of this moment the last one. It needs mu.
func (m *meter) slot() int64 {
	now := time.Now().UnixNano() / int64(rateSlot)
	if now-m.last >= rateSlots || now < m.last {
		m.slots, m.last = [rateSlots]int64{}, now
	}
	for ; m.last < now; m.last++ {
		m.slots[(m.last+1)%rateSlots] = 0
	}
	return now % rateSlots
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slots[m.slot()] += n
}

// rate returns bytes a second.
func (m *meter) rate() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slot()
	var sum int64
	for _, n := range m.slots {
		sum += n
	}
	return float64(sum) / rateOver.Seconds()
}

// got counts verified bytes that a source has sent.
func (r *Reader) got(o *Source, n int) {
	r.store.originBytes(o.Name).add(int64(n))
	r.rate.add(int64(n))
}

// Rate returns how many bytes a second this reader has fetched lately: content and
// metadata, in the mean of two seconds.
func (r *Reader) Rate() float64 { return r.rate.rate() }

// originBytes returns the counter of what came from a source.
func (s *Store) originBytes(name string) *counter {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.origins[name]
	if c == nil {
		c = &counter{}
		s.origins[name] = c
	}
	return c
}

// Origins returns, by the name of the source, how many verified bytes of content and
// metadata have come from it since the store was opened.
func (s *Store) Origins() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]uint64, len(s.origins))
	for name, c := range s.origins {
		all[name] = c.v.Load()
	}
	return all
}

// Usage returns how many whole files the store has, pinned ones too, and their bytes. It
// looks at each.
func (s *Store) Usage() (Count, error) {
	var all Count
	dir, err := os.Open(s.BlobDir())
	if err != nil {
		return all, err
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return all, err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := uninterrupted(func() error { return unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err == nil {
			all.add(1, st.Size)
		}
	}
	return all, nil
}
