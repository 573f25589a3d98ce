package store

import (
	"encoding/binary"
	"fmt"

	"srvfs/manifest"
)

// A chunk map says which chunks of a partial file have been written: a magic
// number, the file's size, and one bit per chunk, the lowest first. It is a
// claim, not a proof: an earlier process's chunks are verified again before
// they are used.
type chunkMap []byte

const (
	mapMagic  = "srvfsmp1"
	mapHeader = len(mapMagic) + 8
)

// newChunkMap returns the map of a file of size bytes of which nothing is there.
func newChunkMap(size int64) chunkMap {
	m := make(chunkMap, mapHeader+int(manifest.Chunks(size)+7)/8)
	copy(m, mapMagic)
	binary.LittleEndian.PutUint64(m[len(mapMagic):], uint64(size))
	return m
}

// decodeChunkMap reads the map of a file of size bytes. The error wraps
// ErrInvalid.
func decodeChunkMap(b []byte, size int64) (chunkMap, error) {
	n := manifest.Chunks(size)
	bad := size < 0 || n > manifest.MaxChunks || len(b) != mapHeader+int(n+7)/8 || string(b[:len(mapMagic)]) != mapMagic ||
		binary.LittleEndian.Uint64(b[len(mapMagic):]) != uint64(size)
	if !bad && n%8 != 0 {
		bad = b[len(b)-1]>>(n%8) != 0
	}
	if bad {
		return nil, fmt.Errorf("chunk map of %d bytes for a file of %d: %w", len(b), size, manifest.ErrInvalid)
	}
	return chunkMap(b), nil
}

func (m chunkMap) has(i int64) bool { return m[int64(mapHeader)+i/8]>>(i%8)&1 == 1 }

// set sets or clears the bit of chunk i, and returns where its byte is.
func (m chunkMap) set(i int64, there bool) (at int64) {
	at = int64(mapHeader) + i/8
	m[at] &^= 1 << (i % 8)
	if there {
		m[at] |= 1 << (i % 8)
	}
	return at
}
