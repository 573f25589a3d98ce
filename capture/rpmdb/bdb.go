package rpmdb

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	bdbHashMagic = 0x061561 // at byte 12, in the byte order of the machine that made it
	bdbHead      = 26       // bytes of a page's header

	bdbPageUnsorted = 2 // P_HASH_UNSORTED
	bdbPageOverflow = 7 // P_OVERFLOW
	bdbPageHash     = 13

	bdbItemHere     = 1 // H_KEYDATA
	bdbItemOverflow = 3 // H_OFFPAGE
)

// A bdb is a hash table of Berkeley DB.
type bdb struct {
	file  []byte
	size  int // of a page
	order binary.ByteOrder
}

// bdbOrder returns the byte order of a hash table of Berkeley DB; ok is false if b
// is none.
func bdbOrder(b []byte) (order binary.ByteOrder, ok bool) {
	if len(b) < 512 {
		return nil, false
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if order.Uint32(b[12:]) == bdbHashMagic {
			return order, true
		}
	}
	return nil, false
}

// bdbHeaders calls yield with each header of a Berkeley DB: the values of a
// hash table, most of them in chains of overflow pages.
func bdbHeaders(b []byte, yield func(header []byte) error) error {
	order, ok := bdbOrder(b)
	if !ok {
		return errors.New("not a hash table of Berkeley DB")
	}
	db := &bdb{file: b, size: int(order.Uint32(b[20:])), order: order}
	if db.size < 512 || db.size > 64<<10 || db.size&(db.size-1) != 0 {
		return fmt.Errorf("pages of %d bytes", db.size)
	}
	if b[24] != 0 {
		return errors.New("it is encrypted")
	}
	for n := uint32(1); int(n) < len(b)/db.size; n++ { // page 0 is about the table
		page := db.page(n)
		if t := page[25]; t != bdbPageHash && t != bdbPageUnsorted {
			continue
		}
		if err := db.values(page, yield); err != nil {
			return fmt.Errorf("page %d: %w", n, err)
		}
	}
	return nil
}

// page returns page n, or nil if the file has none.
func (db *bdb) page(n uint32) []byte {
	from := int64(n) * int64(db.size)
	if from+int64(db.size) > int64(len(db.file)) {
		return nil
	}
	return db.file[from : from+int64(db.size)]
}

// values calls yield with the values of a page of the table. Its items are keys
// and values in turn, each further to the front than the one before.
func (db *bdb) values(page []byte, yield func([]byte) error) error {
	items := int(db.order.Uint16(page[20:]))
	if items%2 != 0 || bdbHead+2*items > len(page) {
		return fmt.Errorf("%d items", items)
	}
	at := func(i int) int { return int(db.order.Uint16(page[bdbHead+2*i:])) }
	for i := 1; i < items; i += 2 {
		from, to := at(i), at(i-1)
		if from < bdbHead+2*items || from >= to || to > len(page) {
			return fmt.Errorf("item %d at bytes %d to %d", i, from, to)
		}
		item := page[from:to]
		switch {
		case item[0] == bdbItemHere && len(item) > 1+8: // of 4 bytes is the highest number so far
			if err := yield(item[1:]); err != nil {
				return err
			}
		case item[0] == bdbItemOverflow && len(item) >= 12:
			value, err := db.chain(db.order.Uint32(item[4:]), int(db.order.Uint32(item[8:])))
			if err != nil {
				return fmt.Errorf("item %d: %w", i, err)
			}
			if err := yield(value); err != nil {
				return err
			}
		}
	}
	return nil
}

// chain returns the value of so many bytes that begins on page n.
func (db *bdb) chain(n uint32, length int) ([]byte, error) {
	if length > min(maxHeader, len(db.file)) {
		return nil, fmt.Errorf("%d bytes", length)
	}
	value := make([]byte, 0, length)
	for len(value) < length {
		page := db.page(n)
		if page == nil || page[25] != bdbPageOverflow {
			return nil, fmt.Errorf("page %d has no more of a value", n)
		}
		used := int(db.order.Uint16(page[22:]))
		if used == 0 || bdbHead+used > len(page) || len(value)+used > length {
			return nil, fmt.Errorf("page %d has %d bytes of a value", n, used)
		}
		value = append(value, page[bdbHead:bdbHead+used]...)
		n = db.order.Uint32(page[16:])
	}
	return value, nil
}
