package statcache

import (
	"encoding/binary"
	"hash/crc32"

	"srvfs/manifest"
)

// A record is 40 bytes of key, two digests, four zeros and the checksum of all
// that, little-endian.
const (
	keySize    = 5 * 8
	sumAt      = keySize + 2*manifest.DigestSize + 4
	recordSize = sumAt + 4
)

// header is the first record.
var header = func() (h [recordSize]byte) {
	copy(h[:], "srvfs statcache 1\n")
	return h
}()

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type record [recordSize]byte

func encodeRecord(k Key, v Value) (r record) {
	for i, n := range [...]uint64{k.Dev, k.Ino, uint64(k.Size), uint64(k.Mtime), uint64(k.Ctime)} {
		binary.LittleEndian.PutUint64(r[8*i:], n)
	}
	copy(r[keySize:], v.Digest[:])
	copy(r[keySize+manifest.DigestSize:], v.Chunks[:])
	binary.LittleEndian.PutUint32(r[sumAt:], crc32.Checksum(r[:sumAt], castagnoli))
	return r
}

func decodeRecord(b []byte) (Key, Value) {
	n := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	return Key{Dev: n(0), Ino: n(1), Size: int64(n(2)), Mtime: int64(n(3)), Ctime: int64(n(4))},
		Value{Digest: manifest.Digest(b[keySize:]), Chunks: manifest.Digest(b[keySize+manifest.DigestSize:])}
}

func intact(b []byte) bool {
	return binary.LittleEndian.Uint32(b[sumAt:]) == crc32.Checksum(b[:sumAt], castagnoli)
}

// A table holds the newest record of each inode, encoded as in the file: a Go
// map of decoded records would take twice the memory and five times as long to
// fill. slots is a hash table with linear probing; it holds 1 + the number of
// a record, or 0.
type table struct {
	records []byte
	slots   []uint32
	n       int
}

// load fills the table from a file's bytes after the header, which it keeps and
// moves about in, and returns how many whole records do not count.
func (t *table) load(b []byte) (stale int) {
	total := len(b) / recordSize
	*t = table{records: b[:0]}
	t.resize(total)
	for i := range total {
		r := b[i*recordSize : (i+1)*recordSize]
		if !intact(r) {
			stale++
			continue
		}
		if t.set(r) {
			stale++
		}
	}
	return stale
}

// resize makes room for n records at three quarters of load.
func (t *table) resize(n int) {
	size := 64
	for size*3/4 < n {
		size *= 2
	}
	t.slots = make([]uint32, size)
	for i := range t.n {
		slot, _ := t.find(t.records[i*recordSize:])
		t.slots[slot] = uint32(i) + 1
	}
}

// find returns the slot in which the record of r's inode stands, or the free
// one where it would.
func (t *table) find(r []byte) (slot int, ok bool) {
	dev, ino := binary.LittleEndian.Uint64(r), binary.LittleEndian.Uint64(r[8:])
	h := dev*0x9e3779b97f4a7c15 ^ ino*0xd6e8feb86659fd93
	h ^= h >> 32
	for i := int(h) & (len(t.slots) - 1); ; i = (i + 1) & (len(t.slots) - 1) {
		n := int(t.slots[i])
		if n == 0 {
			return i, false
		}
		if old := t.records[(n-1)*recordSize:]; binary.LittleEndian.Uint64(old[8:]) == ino && binary.LittleEndian.Uint64(old) == dev {
			return i, true
		}
	}
}

// set stores an encoded record and reports whether it replaced another. The
// record may lie in the spare capacity of t.records (see load): it moves to
// the front of it.
func (t *table) set(r []byte) (replaced bool) {
	slot, ok := t.find(r)
	if ok {
		copy(t.records[(t.slots[slot]-1)*recordSize:][:recordSize], r)
		return true
	}
	if (t.n+1)*4 > len(t.slots)*3 {
		t.resize(2 * (t.n + 1))
		slot, _ = t.find(r)
	}
	t.records = append(t.records, r...)
	t.n++
	t.slots[slot] = uint32(t.n)
	return false
}

func (t *table) get(k Key) (Value, bool) {
	if t.n == 0 {
		return Value{}, false
	}
	var probe [16]byte
	binary.LittleEndian.PutUint64(probe[:], k.Dev)
	binary.LittleEndian.PutUint64(probe[8:], k.Ino)
	slot, ok := t.find(probe[:])
	if !ok {
		return Value{}, false
	}
	got, v := decodeRecord(t.records[(t.slots[slot]-1)*recordSize:])
	if got != k {
		return Value{}, false
	}
	return v, true
}
