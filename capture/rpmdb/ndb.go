package rpmdb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
)

const (
	ndbMagic    = "RpmP"
	ndbPage     = 4096
	ndbSlot     = 16
	ndbBlock    = 16
	ndbBlobHead = 16
	ndbBlobTail = 12
)

// ndbHeaders calls yield with each header of an ndb database: a table of slots,
// each of which says in which blocks a package's blob lies.
func ndbHeaders(b []byte, yield func(header []byte) error) error {
	if len(b) < 32 || string(b[:4]) != ndbMagic {
		return errors.New("not an ndb database")
	}
	if v := binary.LittleEndian.Uint32(b[4:]); v != 0 {
		return fmt.Errorf("ndb of version %d", v)
	}
	end := int64(binary.LittleEndian.Uint32(b[12:])) * ndbPage
	if end == 0 || end > int64(len(b)) {
		return fmt.Errorf("%d bytes of slots in a file of %d", end, len(b))
	}
	for at := int64(32); at+ndbSlot <= end; at += ndbSlot {
		slot := b[at : at+ndbSlot]
		if string(slot[:4]) != "Slot" {
			return fmt.Errorf("no slot at byte %d", at)
		}
		if number := binary.LittleEndian.Uint32(slot[4:]); number != 0 {
			header, err := ndbBlob(b, number, int64(binary.LittleEndian.Uint32(slot[8:])), int64(binary.LittleEndian.Uint32(slot[12:])))
			if err != nil {
				return fmt.Errorf("package %d: %w", number, err)
			}
			if err := yield(header); err != nil {
				return err
			}
		}
	}
	return nil
}

// ndbBlob returns the blob of a package, whose checksum is right.
func ndbBlob(b []byte, number uint32, block, blocks int64) ([]byte, error) {
	from, to := block*ndbBlock, (block+blocks)*ndbBlock
	if to > int64(len(b)) || to-from < ndbBlobHead+ndbBlobTail {
		return nil, fmt.Errorf("blocks %d to %d are not in the file", block, block+blocks)
	}
	blob := b[from:to]
	length := int64(binary.LittleEndian.Uint32(blob[12:]))
	if string(blob[:4]) != "BlbS" || binary.LittleEndian.Uint32(blob[4:]) != number || ndbBlobHead+length+ndbBlobTail > int64(len(blob)) {
		return nil, fmt.Errorf("no blob of it at block %d", block)
	}
	tail := blob[len(blob)-ndbBlobTail:] // after some bytes of nothing
	if string(tail[8:]) != "BlbE" || adler32.Checksum(blob[:len(blob)-ndbBlobTail]) != binary.LittleEndian.Uint32(tail) {
		return nil, fmt.Errorf("the blob at block %d is damaged", block)
	}
	return blob[ndbBlobHead : ndbBlobHead+length], nil
}
