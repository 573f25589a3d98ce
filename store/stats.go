package store

import (
	"sync"
	"sync/atomic"
	"time"
)

// Stats counts what a store has done since it was opened.
type Stats struct {
	Fetches       uint64 `json:"fetches"`         // requests to sources; a batch is one
	FetchedBytes  uint64 `json:"fetched_bytes"`   // verified bytes of files that came from sources
	FetchedFiles  uint64 `json:"fetched_files"`   // files that became whole by fetching
	FetchedChunks uint64 `json:"fetched_chunks"`  // chunks of large files that came from sources
	ReusedChunks  uint64 `json:"reused_chunks"`   // chunks of large files that an older version of them had
	ReusedBytes   uint64 `json:"reused_bytes"`    // their bytes
	MetaFetched   uint64 `json:"meta_fetched"`    // directory pages and chunk lists that did
	MetaBytes     uint64 `json:"meta_bytes"`      // their bytes
	BlobHits      uint64 `json:"blob_hits"`       // times that content was whole in the store when it was asked for
	HostHits      uint64 `json:"host_hits"`       // host files pinned
	HostBytes     uint64 `json:"host_bytes"`      // their bytes
	HostHashed    uint64 `json:"host_hashed"`     // bytes of host files read to look for identical ones
	Rehashed      uint64 `json:"rehashed"`        // blobs hashed again because their stat had changed
	Dropped       uint64 `json:"dropped"`         // blobs found damaged, or changed by the host, and removed
	BadFromSource uint64 `json:"bad_from_source"` // pieces that a source sent and that did not have their digest
	Failed        uint64 `json:"failed"`          // fetches that no source could answer
}

type counter struct{ v atomic.Uint64 }

func (c *counter) add(n int64)  { c.v.Add(uint64(n)) }
func (c *counter) next() uint64 { return c.v.Add(1) }

type counters struct {
	fetches, fetchedBytes, fetchedFiles, fetchedChunks, reusedChunks, reusedBytes, metaFetched, metaBytes, blobHits,
	hostHits, hostBytes, hostHashed, rehashed, dropped, badFromSource, failed counter
}

// Stats returns the counters. Each is read atomically, all together are not.
func (s *Store) Stats() Stats {
	c := &s.stats
	return Stats{
		Fetches: c.fetches.v.Load(), FetchedBytes: c.fetchedBytes.v.Load(), FetchedFiles: c.fetchedFiles.v.Load(),
		FetchedChunks: c.fetchedChunks.v.Load(),
		ReusedChunks:  c.reusedChunks.v.Load(), ReusedBytes: c.reusedBytes.v.Load(), MetaFetched: c.metaFetched.v.Load(), MetaBytes: c.metaBytes.v.Load(),
		BlobHits: c.blobHits.v.Load(), HostHits: c.hostHits.v.Load(), HostBytes: c.hostBytes.v.Load(), HostHashed: c.hostHashed.v.Load(),
		Rehashed: c.rehashed.v.Load(), Dropped: c.dropped.v.Load(), BadFromSource: c.badFromSource.v.Load(), Failed: c.failed.v.Load(),
	}
}

// A limiter lets a key pass once in a while, so that a file that fails a
// thousand times makes one line in the log.
type limiter struct {
	mu   sync.Mutex
	seen map[string]time.Time
}

const (
	quietFor   = 30 * time.Second
	limiterMax = 4096
)

func (l *limiter) pass(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if t, ok := l.seen[key]; ok && now.Sub(t) < quietFor {
		return false
	}
	if l.seen == nil || len(l.seen) >= limiterMax {
		l.seen = map[string]time.Time{}
	}
	l.seen[key] = now
	return true
}
