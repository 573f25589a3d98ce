package statcache

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// Window is how long before its hashing a file must have been unchanged for
// its entry to be recorded: two steps of the kernel's slowest clock.
const Window = 20 * time.Millisecond

// A Key is what stat says of a file's identity and state. Times are in
// nanoseconds since 1970.
type Key struct {
	Dev, Ino     uint64
	Size         int64 // bytes
	Mtime, Ctime int64
}

// KeyOf returns the key of a file by its stat.
func KeyOf(st *unix.Stat_t) Key {
	return Key{Dev: st.Dev, Ino: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}
}

// FileKey returns the key of an open file. The error is an [os.PathError].
func FileKey(f *os.File) (Key, error) {
	var st unix.Stat_t
	for {
		switch err := unix.Fstat(int(f.Fd()), &st); err {
		case nil:
			return KeyOf(&st), nil
		case unix.EINTR:
		default:
			return Key{}, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
		}
	}
}

// Racy reports whether a file with this key, hashed from the time started on,
// could have been changed afterwards without its key showing it.
func (k Key) Racy(started time.Time) bool {
	// A ctime in the future says that the clock was set back: not to be trusted.
	// An mtime may be in the future, since anyone can set it.
	limit := started.Add(-Window).UnixNano()
	return k.Ctime > limit || k.Mtime > limit && k.Mtime < started.Add(Window).UnixNano()
}

// A Value is what is known of a file's bytes.
type Value struct {
	Digest manifest.Digest
	// Chunks is the digest of the chunk list. It is zero for a file of one
	// chunk, and where only the file's own digest was computed.
	Chunks manifest.Digest
}

// A Cache is the map. Its methods may be called from several goroutines.
type Cache struct {
	path string

	mu    sync.RWMutex
	table table
	file  *os.File
	stale int // records in the file that count no more, as far as we know
	idle  bool
	users int // of one that is idle otherwise
}

// Open loads the cache from the file at path, which is made if it is missing.
// The folder must exist. Whatever the file holds, Open succeeds: errors are
// those of the file system.
func Open(path string) (*Cache, error) {
	c := &Cache{path: path}
	if err := c.reopen(true); err != nil {
		return nil, fmt.Errorf("statcache: %w", err)
	}
	if c.mostlyStale() {
		if err := c.compact(); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	return c, nil
}

// OpenIdle opens the cache without loading it: as long as nobody uses it, it takes no
// memory, Get knows nothing, and Put adds to the file alone.
func OpenIdle(path string) (*Cache, error) {
	c := &Cache{path: path, idle: true}
	if err := c.reopen(false); err != nil {
		return nil, fmt.Errorf("statcache: %w", err)
	}
	return c, nil
}

// Use loads a cache that is idle, until done is called. A million records take 150 MB,
// and a tenth of a second.
func (c *Cache) Use() (done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.idle {
		return func() {}, nil
	}
	if c.users == 0 {
		if err = c.reopen(true); err == nil && c.mostlyStale() {
			err = c.compact()
		}
		if err != nil {
			c.table, c.stale = table{}, 0
			return nil, fmt.Errorf("statcache: %w", err)
		}
	}
	c.users++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.users--; c.users == 0 {
			c.table, c.stale = table{}, 0
		}
	}, nil
}

// Close releases the file. Get goes on answering, Put fails.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.file.Close()
}

// Len returns the number of files known.
func (c *Cache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.table.n
}

// Get returns what is known of the file with this key. It answers in about
// 100 ns and makes no system call.
func (c *Cache) Get(k Key) (Value, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.table.get(k)
}

// An Entry is one file for [Cache.PutAll].
type Entry struct {
	Key
	Value
	Started time.Time // when its hashing began
}

// Put records the value of a file that was hashed from the time started on,
// and whose key was the same before and after. It reports whether it did: a
// racy entry is not recorded. With an error, which is one of the file system,
// the entry is known to this Cache only.
func (c *Cache) Put(k Key, v Value, started time.Time) (bool, error) {
	if k.Racy(started) {
		return false, nil
	}
	return true, c.PutTrusted(k, v)
}

// PutAll is Put for many files with one write.
func (c *Cache) PutAll(entries []Entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b []byte
	for i := range entries {
		if e := &entries[i]; !e.Racy(e.Started) {
			b = c.put(b, e.Key, e.Value)
		}
	}
	return c.write(b)
}

// PutTrusted is Put without the rule for racy entries: the caller knows that a
// later change of the file will show in its key.
func (c *Cache) PutTrusted(k Key, v Value) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b [recordSize]byte
	return c.write(c.put(b[:0], k, v))
}

// PutAllTrusted is PutTrusted for many files with one write.
func (c *Cache) PutAllTrusted(all map[Key]Value) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b []byte
	for k, v := range all {
		b = c.put(b, k, v)
	}
	return c.write(b)
}

// put enters the value into the table, and appends what the file lacks to b.
func (c *Cache) put(b []byte, k Key, v Value) []byte {
	r := encodeRecord(k, v)
	if c.idle && c.users == 0 {
		return append(b, r[:]...)
	}
	if old, ok := c.table.get(k); ok && old == v {
		return b
	}
	if c.table.set(r[:]) {
		c.stale++
	}
	return append(b, r[:]...)
}

// write appends records to the file.
func (c *Cache) write(records []byte) error {
	if len(records) == 0 {
		return nil
	}
	if err := c.append(records); err != nil {
		return fmt.Errorf("statcache: %w", err)
	}
	if c.mostlyStale() {
		return c.compact()
	}
	return nil
}

// Compact rewrites the file with the records that count. It happens by itself
// when most of the file does not count any more.
func (c *Cache) Compact() error {
	done, err := c.Use()
	if err != nil {
		return err
	}
	defer done()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.compact()
}

func (c *Cache) mostlyStale() bool { return c.stale > 1024 && c.stale > c.table.n }
