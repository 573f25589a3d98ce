package fs

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"srvfs/manifest"
)

// A slot is the place of one name in the node table. A name's slot does not
// change as long as the name is there, and the number that the kernel knows a node by
// is the slot of its first name plus one: 1, FUSE's root, is slot 0.
type slot uint32

func (s slot) id() uint64 { return uint64(s) + 1 }

// A node is what the table keeps for one name: 64 bytes, without pointers. Once its
// directory is published only a move changes it, and the loading of a directory's
// children.
type node struct {
	record uint32 // where its record begins in the arena, in units of recordUnit
	parent slot
	class  uint32 // index into the table's classes
	nsec   uint32
	sec    int64
	// value is, of a file, its size in bytes; of a device, its number as the
	// kernel encodes it; of a further name of a file that has one already, the
	// slot of the first. Of a directory it is the slot of the first child,
	// shifted by 32, and the number of children, or the index of a list (see
	// listing); zero until they are loaded.
	value  uint64
	digest manifest.Digest
}

// setChildren publishes what the caller has written into the table.
func (n *node) setChildren(first slot, count uint32) {
	atomic.StoreUint64(&n.value, uint64(first)<<32|uint64(count))
}

// A class is what many nodes have in common, and therefore is kept once.
type class struct {
	mode     uint32 // type and permissions, as in st_mode
	uid, gid uint32
	parts    uint8 // what the record holds after the name
}

// The parts of a record, in their order.
const (
	partLinks  uint8 = 1 << iota // uvarint: st_nlink, where it is not 1
	partChunks                   // 32 bytes: the digest of the chunk list
	partTarget                   // uvarint and bytes: a symlink's target
	partXattrs                   // uvarint: their number; for each two times uvarint and bytes: name, value
	// partAlias has no bytes: the node is a further name of another node.
	partAlias
)

// appendRecord writes the record of e: the length of its name in one byte, the
// name, and the parts.
func appendRecord(b []byte, e *manifest.Entry, parts uint8) []byte {
	b = append(append(b, byte(len(e.Name))), e.Name...)
	if parts&partLinks != 0 {
		b = binary.AppendUvarint(b, uint64(e.Links))
	}
	if parts&partChunks != 0 {
		b = append(b, e.Chunks[:]...)
	}
	if parts&partTarget != 0 {
		b = appendString(b, e.Target)
	}
	if parts&partXattrs != 0 {
		b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			b = appendString(appendString(b, x.Name), x.Value)
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// partsOf says what the record of e has to hold.
func partsOf(e *manifest.Entry) (parts uint8) {
	if e.Links != 1 {
		parts |= partLinks
	}
	if !e.Chunks.IsZero() {
		parts |= partChunks
	}
	if e.Target != "" {
		parts |= partTarget
	}
	if len(e.Xattrs) > 0 {
		parts |= partXattrs
	}
	return parts
}

// A record is the rest of a record in the arena. Its methods take the parts off
// in their order; what they return is memory of the arena and must not be kept
// or written to.
type record struct {
	b     []byte
	parts uint8
}

func (r *record) bytes() []byte {
	n, k := binary.Uvarint(r.b)
	v := r.b[k : k+int(n)]
	r.b = r.b[k+int(n):]
	return v
}

func (r *record) uint() uint64 {
	n, k := binary.Uvarint(r.b)
	r.b = r.b[k:]
	return n
}

func (r *record) name() []byte {
	n := 1 + int(r.b[0])
	v := r.b[1:n]
	r.b = r.b[n:]
	return v
}

func (r *record) links() uint32 {
	if r.parts&partLinks == 0 {
		return 1
	}
	return uint32(r.uint())
}

func (r *record) chunks() (d manifest.Digest) {
	if r.parts&partChunks != 0 {
		d = manifest.Digest(r.b)
		r.b = r.b[len(d):]
	}
	return d
}

func (r *record) target() []byte {
	if r.parts&partTarget == 0 {
		return nil
	}
	return r.bytes()
}

// xattrs calls yield for each extended attribute until it returns false.
func (r *record) xattrs(yield func(name, value []byte) bool) {
	if r.parts&partXattrs == 0 {
		return
	}
	for n := r.uint(); n > 0; n-- {
		name := r.bytes()
		if !yield(name, r.bytes()) {
			return
		}
	}
}

// typeBits are the S_IFMT bits of each type.
var typeBits = [...]uint32{
	manifest.File:        0o100000,
	manifest.Dir:         0o040000,
	manifest.Symlink:     0o120000,
	manifest.CharDevice:  0o020000,
	manifest.BlockDevice: 0o060000,
	manifest.FIFO:        0o010000,
}

const typeMask = 0o170000

func (c *class) is(t manifest.Type) bool { return c.mode&typeMask == typeBits[t] }

// kernelDevice turns a device number of stat(2) into the 32 bits of the FUSE
// protocol: 12 of the major, 20 of the minor number.
func kernelDevice(rdev uint64) (uint32, error) {
	major := rdev>>8&0xfff | rdev>>32&^0xfff
	minor := rdev&0xff | rdev>>12&^0xff&0xffffffff
	if major > 0xfff || minor > 0xfffff {
		return 0, fmt.Errorf("device %d:%d is beyond what Linux numbers: %w", major, minor, manifest.ErrInvalid)
	}
	return uint32(minor&0xff | major<<8 | minor&^0xff<<12), nil
}

const (
	nodeSize   = unsafe.Sizeof(node{})
	blockBits  = 14
	blockNodes = 1 << blockBits // 1 MiB
)
