package fs

import "sync/atomic"

// An op is an operation of the kernel that is counted.
type op int

const (
	opLookup op = iota
	opForget
	opGetAttr
	opReadlink
	opOpen
	opRead
	opFlush
	opOpenDir
	opReadDir
	opReadDirPlus
	opGetXAttr
	opListXAttr
	opStatFs
	opWrite // all that would change something
	ops
)

var opNames = [ops]string{"lookup", "forget", "getattr", "readlink", "open", "read", "flush", "opendir", "readdir",
	"readdirplus", "getxattr", "listxattr", "statfs", "write"}

// counters are a view's, each changed on its own.
type counters struct {
	upcalls                                       [ops]atomic.Uint64
	readBytes, gateLookups, directories, failures atomic.Uint64
	moves                                         atomic.Uint64
}

func (c *counters) count(o op) { c.upcalls[o].Add(1) }

// Stats are a view's counters since it was mounted.
type Stats struct {
	// Upcalls are the kernel's requests by operation: lookup, forget, getattr,
	// readlink, open, read, flush, opendir, readdir, readdirplus, getxattr,
	// listxattr, statfs; and write for all that would change something. What the
	// kernel answers from its caches is not among them.
	Upcalls map[string]uint64
	// Reads and ReadBytes are the reads that came to this process, and what they
	// returned.
	Reads, ReadBytes uint64
	// GateLookups are the first opens of files in the layout Layers; Streams the
	// files that were not waited for.
	GateLookups, Streams uint64
	// AheadFiles and AheadDirectories are those that the content was asked for
	// before anybody wanted them.
	AheadFiles, AheadDirectories uint64
	// Nodes are the names that the view knows; Directories those it has loaded. Slots
	// are the places in its table that they, and those that have gone, have taken.
	Nodes, Directories, Slots uint64
	// Moves are the snapshots that the view has moved to.
	Moves uint64
	// OpenFiles are the contents open at the moment.
	OpenFiles int
	// Failures are the operations that failed, each of which has a line in the log.
	Failures uint64
}

// Total returns the number of requests for which a process waited: all but
// forget.
func (s Stats) Total() uint64 {
	var n uint64
	for name, k := range s.Upcalls {
		if name != opNames[opForget] {
			n += k
		}
	}
	return n
}

// Stats returns the counters.
func (v *View) Stats() Stats {
	s := Stats{
		Upcalls: make(map[string]uint64, ops), Reads: v.upcalls[opRead].Load(), ReadBytes: v.readBytes.Load(),
		GateLookups: v.gateLookups.Load(), Nodes: v.table.len(), Slots: v.table.size(), Moves: v.moves.Load(), Directories: v.directories.Load(),
		OpenFiles: v.files.len(), Failures: v.failures.Load(),
	}
	for i, name := range opNames {
		s.Upcalls[name] = v.upcalls[i].Load()
	}
	v.streams.mu.Lock()
	s.Streams = uint64(len(v.streams.all))
	v.streams.mu.Unlock()
	v.ahead.mu.Lock()
	s.AheadFiles, s.AheadDirectories = v.ahead.files, v.ahead.directories
	v.ahead.mu.Unlock()
	return s
}
