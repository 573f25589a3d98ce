package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sync"

	"srvfs/manifest"
)

// A PinKind says how a host file's content got into the store.
type PinKind uint8

// The kinds of pins.
const (
	Unpinned  PinKind = iota // not from the host
	Linked                   // a hard link: the host's own inode
	Reflinked                // shares the host file's blocks until one of them changes
	Copied
)

var pinNames = [...]string{"unpinned", "linked", "reflinked", "copied"}

// String returns the kind in lower case.
func (k PinKind) String() string { return pinNames[min(int(k), int(Copied))] }

// pinRecord is a digest, a kind, three zeros, and a CRC-32C.
const pinRecord = manifest.DigestSize + 4 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pinIndex tells which blobs are the host's files, for people: nothing that is
// read depends on it. So it is appended to and never flushed; the newest record
// of a digest counts, a damaged one is skipped.
type pinIndex struct {
	mu   sync.Mutex
	file *os.File
	kind map[manifest.Digest]PinKind
}

func encodePin(d manifest.Digest, k PinKind) []byte {
	b := append(d[:], byte(k), 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodePins reads an index, and returns how many bytes of it are whole records.
func decodePins(b []byte) (map[manifest.Digest]PinKind, int) {
	kinds := map[manifest.Digest]PinKind{}
	n := 0
	for ; n+pinRecord <= len(b); n += pinRecord {
		r := b[n : n+pinRecord]
		k := PinKind(r[manifest.DigestSize])
		if binary.LittleEndian.Uint32(r[pinRecord-4:]) != crc32.Checksum(r[:pinRecord-4], castagnoli) || k > Copied {
			continue
		}
		d := manifest.Digest(r)
		if kinds[d] = k; k == Unpinned {
			delete(kinds, d)
		}
	}
	return kinds, n
}

func openPins(path string) (*pinIndex, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	kinds, n := decodePins(b)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(n)); err != nil {
		_ = f.Close()
		return nil, err
	}
	return &pinIndex{file: f, kind: kinds}, nil
}

// Close releases the file.
func (p *pinIndex) Close() error { return p.file.Close() }

func (p *pinIndex) get(d manifest.Digest) PinKind {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kind[d]
}

// set records that d is pinned, or with Unpinned that it is not.
func (p *pinIndex) set(d manifest.Digest, k PinKind) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kind[d] == k {
		return nil
	}
	if p.kind[d] = k; k == Unpinned {
		delete(p.kind, d)
	}
	if _, err := p.file.Write(encodePin(d, k)); err != nil {
		return fmt.Errorf("pins: %w", err)
	}
	return nil
}

// Pin returns how content got into the store from the host, or Unpinned.
func (s *Store) Pin(d manifest.Digest) PinKind { return s.pins.get(d) }
