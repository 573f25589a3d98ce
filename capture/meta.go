package capture

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"srvfs/manifest"
)

// A metaSet holds directory pages and chunk lists by digest. It is what
// [manifest.EncodeDirectory] puts into, and a [manifest.MetaSource].
type metaSet map[manifest.Digest][]byte

func (m metaSet) put(d manifest.Digest, b []byte) error {
	m[d] = b
	return nil
}

// Meta implements [manifest.MetaSource].
func (m metaSet) Meta(_ context.Context, digests []manifest.Digest) ([][]byte, error) {
	out := make([][]byte, len(digests))
	for i, d := range digests {
		b, ok := m[d]
		if !ok {
			return nil, fmt.Errorf("metadata %v: %w", d, manifest.ErrNotFound)
		}
		out[i] = b
	}
	return out, nil
}

// The file of a metaSet: the magic, the number of bodies, a record of each
// (digest, length) sorted by digest, then the bodies in the same order.
const metaMagic = "srvfs meta 1\n"

const (
	metaHead   = len(metaMagic) + 8
	metaRecord = manifest.DigestSize + 4
)

func (m metaSet) writeTo(w *bufio.Writer) error {
	all := make([]manifest.Digest, 0, len(m))
	for d := range m {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b manifest.Digest) int { return bytes.Compare(a[:], b[:]) })
	head := binary.BigEndian.AppendUint64([]byte(metaMagic), uint64(len(all)))
	for _, d := range all {
		head = append(head, d[:]...)
		head = binary.BigEndian.AppendUint32(head, uint32(len(m[d])))
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, d := range all {
		if _, err := w.Write(m[d]); err != nil {
			return err
		}
	}
	return nil
}

// A metaFile finds metadata in a file that writeTo wrote: 48 bytes of memory
// for each page.
type metaFile struct {
	f       *os.File
	records []metaWhere
}

type metaWhere struct {
	digest manifest.Digest
	off    int64
	size   uint32
}

// openMeta reads the table of the file. The error wraps [manifest.ErrCorrupt]
// if the file is not what was written.
func openMeta(name string) (*metaFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	records, err := readMetaTable(bufio.NewReaderSize(f, 1<<16), info.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return &metaFile{f: f, records: records}, nil
}

// readMetaTable reads the head of a file of size bytes.
func readMetaTable(r io.Reader, size int64) ([]metaWhere, error) {
	head := make([]byte, metaHead)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(metaMagic)]) != metaMagic {
		return nil, fmt.Errorf("not a metadata file: %w", manifest.ErrCorrupt)
	}
	n := binary.BigEndian.Uint64(head[len(metaMagic):])
	if n > uint64(size-int64(metaHead))/uint64(metaRecord) {
		return nil, fmt.Errorf("%d records in %d bytes: %w", n, size, manifest.ErrCorrupt)
	}
	records := make([]metaWhere, n)
	off := int64(metaHead) + int64(n)*int64(metaRecord)
	var raw [metaRecord]byte
	for i := range records {
		if _, err := io.ReadFull(r, raw[:]); err != nil {
			return nil, err
		}
		w := metaWhere{digest: manifest.Digest(raw[:manifest.DigestSize]), off: off, size: binary.BigEndian.Uint32(raw[manifest.DigestSize:])}
		if i > 0 && bytes.Compare(records[i-1].digest[:], w.digest[:]) >= 0 {
			return nil, fmt.Errorf("records out of order: %w", manifest.ErrCorrupt)
		}
		records[i] = w
		off += int64(w.size)
	}
	if off != size {
		return nil, fmt.Errorf("%d bytes instead of %d: %w", size, off, manifest.ErrCorrupt)
	}
	return records, nil
}

func (m *metaFile) find(d manifest.Digest) (metaWhere, bool) {
	i, ok := slices.BinarySearchFunc(m.records, d, func(w metaWhere, d manifest.Digest) int {
		return cmp.Compare(bytes.Compare(w.digest[:], d[:]), 0)
	})
	if !ok {
		return metaWhere{}, false
	}
	return m.records[i], true
}
