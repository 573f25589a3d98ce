package capture

import (
	"sync/atomic"
	"time"
)

// FollowStats is what following a service has done since the library was opened.
type FollowStats struct {
	Events     uint64        // changes that were reported and may concern the service
	Lost       uint64        // times that reports were lost, so that all files were looked at
	Rescans    uint64        // looks at all files, the first one too
	Rescanning time.Duration // the time that these took, with publishing what they found
}

// followCounters are the counters behind it.
type followCounters struct {
	events, lost, rescans atomic.Uint64
	rescanning            atomic.Int64 // nanoseconds
}

// countersOf returns the counters of a service. They stay when it is not followed any
// more.
func (l *Library) countersOf(service string) *followCounters {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counters[service]
	if c == nil {
		c = &followCounters{}
		if l.counters == nil {
			l.counters = map[string]*followCounters{}
		}
		l.counters[service] = c
	}
	return c
}

// FollowStats returns, by service, what [Library.Follow] has done.
func (l *Library) FollowStats() map[string]FollowStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make(map[string]FollowStats, len(l.counters))
	for service, c := range l.counters {
		all[service] = FollowStats{c.events.Load(), c.lost.Load(), c.rescans.Load(), time.Duration(c.rescanning.Load())}
	}
	return all
}
