package rpmdb

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	sqliteMagic = "SQLite format 3\x00"
	// sqliteDepth is more than a tree of 2^32 pages with two children each has.
	sqliteDepth = 40
)

// sqliteHeaders calls yield with each header in the table Packages of an SQLite
// database, whose write-ahead log is wal (nil: there is none).
func sqliteHeaders(b, wal []byte, yield func(header []byte) error) error {
	f, err := newSQLite(b, wal)
	if err != nil {
		return err
	}
	root := uint32(0)
	err = f.rows(1, 0, func(row []byte) error {
		// type, name, table's name, root page, SQL
		columns, err := record(row)
		if err != nil {
			return fmt.Errorf("schema: %w", err)
		}
		if len(columns) > 3 && string(columns[0]) == "table" && string(columns[1]) == "Packages" {
			for _, c := range columns[3] {
				root = root<<8 | uint32(c)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if root == 0 {
		return errors.New("no table Packages")
	}
	return f.rows(root, 0, func(row []byte) error {
		// the number, which stands in the row's key, and the header
		columns, err := record(row)
		if err != nil {
			return err
		}
		if len(columns) < 2 {
			return fmt.Errorf("a row with %d columns", len(columns))
		}
		return yield(columns[1])
	})
}

// An sqlite is a database file with what its log has newer.
type sqlite struct {
	file   []byte
	size   int // of a page
	usable int // of it
	newer  map[uint32][]byte
	left   int // pages that may still be visited: a hostile tree may be a cycle
}

func newSQLite(b, wal []byte) (*sqlite, error) {
	if len(b) < 100 || string(b[:16]) != sqliteMagic {
		return nil, errors.New("not an SQLite database")
	}
	f := &sqlite{file: b, size: int(binary.BigEndian.Uint16(b[16:]))}
	if f.size == 1 {
		f.size = 64 << 10
	}
	f.usable = f.size - int(b[20])
	if f.size < 512 || f.size&(f.size-1) != 0 || f.usable < 480 {
		return nil, fmt.Errorf("pages of %d bytes, %d of them used", f.size, f.usable)
	}
	f.newer = walPages(wal, f.size)
	f.left = len(b)/f.size + len(f.newer)
	return f, nil
}

// page returns page n; they count from 1.
func (f *sqlite) page(n uint32) ([]byte, error) {
	if f.left--; f.left < 0 {
		return nil, errors.New("pages that lead in a circle")
	}
	if p, ok := f.newer[n]; ok {
		return p[:f.usable], nil
	}
	end := int64(n) * int64(f.size)
	if n == 0 || end > int64(len(f.file)) {
		return nil, fmt.Errorf("page %d is not in the file", n)
	}
	return f.file[end-int64(f.size):][:f.usable], nil
}

// rows calls yield with each row of the table whose tree has the page n.
func (f *sqlite) rows(n uint32, depth int, yield func([]byte) error) error {
	page, err := f.page(n)
	if err != nil {
		return err
	}
	if depth > sqliteDepth {
		return fmt.Errorf("page %d: a tree too deep", n)
	}
	head := page
	if n == 1 {
		head = page[100:] // after the file's own header; offsets count from the page's begin
	}
	cells, pointers := int(binary.BigEndian.Uint16(head[3:])), 8
	interior := head[0] == 0x05
	switch head[0] {
	case 0x05:
		pointers = 12
	case 0x0d:
	default:
		return fmt.Errorf("page %d: type %d is no table's", n, head[0])
	}
	if pointers+2*cells > len(head) {
		return fmt.Errorf("page %d: %d cells", n, cells)
	}
	for i := range cells {
		at := int(binary.BigEndian.Uint16(head[pointers+2*i:]))
		if at+4 > len(page) {
			return fmt.Errorf("page %d: cell at %d", n, at)
		}
		if interior {
			if err := f.rows(binary.BigEndian.Uint32(page[at:]), depth+1, yield); err != nil {
				return err
			}
			continue
		}
		row, err := f.payload(page, at)
		if err != nil {
			return fmt.Errorf("page %d: cell at %d: %w", n, at, err)
		}
		if err := yield(row); err != nil {
			return err
		}
	}
	if interior {
		return f.rows(binary.BigEndian.Uint32(head[8:]), depth+1, yield)
	}
	return nil
}

// payload returns what the cell of a leaf has, with what of it overflows.
func (f *sqlite) payload(page []byte, at int) ([]byte, error) {
	length, n := varint(page[at:])
	if n == 0 || length > maxHeader {
		return nil, fmt.Errorf("%d bytes", length)
	}
	_, k := varint(page[at+n:]) // the key
	if k == 0 {
		return nil, errors.New("no key")
	}
	at += n + k
	whole, here := int(length), int(length)
	if most := f.usable - 35; whole > most {
		least := (f.usable-12)*32/255 - 23
		if here = least + (whole-least)%(f.usable-4); here > most {
			here = least
		}
	}
	if at+here > len(page) {
		return nil, fmt.Errorf("%d bytes at its end", here)
	}
	row := page[at : at+here]
	if here == whole {
		return row, nil
	}
	if at+here+4 > len(page) {
		return nil, errors.New("no overflow page")
	}
	next := binary.BigEndian.Uint32(page[at+here:])
	row = append(make([]byte, 0, whole), row...)
	for len(row) < whole {
		p, err := f.page(next)
		if err != nil {
			return nil, err
		}
		next = binary.BigEndian.Uint32(p)
		row = append(row, p[4:min(len(p), 4+whole-len(row))]...)
	}
	return row, nil
}

// record splits a row into its columns. Numbers are big-endian, and those that
// need no bytes come back empty.
func record(row []byte) (columns [][]byte, err error) {
	length, n := varint(row)
	if n == 0 || length > uint64(len(row)) || length < uint64(n) {
		return nil, errors.New("a row's header is damaged")
	}
	types, body := row[n:length], row[length:]
	for len(types) > 0 {
		t, n := varint(types)
		if n == 0 {
			return nil, errors.New("a row's header is cut off")
		}
		types = types[n:]
		var size uint64
		switch {
		case t >= 12:
			size = (t - 12) / 2
		case t == 5:
			size = 6
		case t == 6 || t == 7:
			size = 8
		case t <= 4:
			size = t
		}
		if size > uint64(len(body)) {
			return nil, fmt.Errorf("a column of %d bytes where %d are left", size, len(body))
		}
		columns = append(columns, body[:size:size])
		body = body[size:]
	}
	return columns, nil
}

// varint decodes SQLite's numbers of one to nine bytes and returns how many it
// took; 0 if b is too short.
func varint(b []byte) (v uint64, n int) {
	for n < len(b) && n < 8 {
		v = v<<7 | uint64(b[n]&0x7f)
		if n++; b[n-1] < 0x80 {
			return v, n
		}
	}
	if n == 8 && len(b) > 8 {
		return v<<8 | uint64(b[8]), 9
	}
	return 0, 0
}

// walPages returns the pages that the transactions in a write-ahead log have
// written and committed. What follows the last commit, or is not of the log's
// present round, or does not fit its checksum, is no part of the database.
func walPages(wal []byte, size int) map[uint32][]byte {
	const header, frame = 32, 24
	if len(wal) < header {
		return nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch binary.BigEndian.Uint32(wal) {
	case 0x377f0682:
	case 0x377f0683:
		order = binary.BigEndian
	default:
		return nil
	}
	if int(binary.BigEndian.Uint32(wal[8:])) != size {
		return nil
	}
	var s0, s1 uint32
	sum := func(b []byte) {
		for ; len(b) >= 8; b = b[8:] {
			s0 += order.Uint32(b) + s1
			s1 += order.Uint32(b[4:]) + s0
		}
	}
	fits := func(b []byte) bool {
		return binary.BigEndian.Uint32(b) == s0 && binary.BigEndian.Uint32(b[4:]) == s1
	}
	if sum(wal[:24]); !fits(wal[24:]) {
		return nil
	}
	salts := string(wal[16:24])
	committed, since := map[uint32][]byte{}, map[uint32][]byte{}
	for b := wal[header:]; len(b) >= frame+size; b = b[frame+size:] {
		sum(b[:8])
		sum(b[frame : frame+size])
		if string(b[8:16]) != salts || !fits(b[16:]) {
			break
		}
		since[binary.BigEndian.Uint32(b)] = b[frame : frame+size]
		if binary.BigEndian.Uint32(b[4:]) != 0 { // the size of the database after a commit
			for n, p := range since {
				committed[n] = p
			}
			clear(since)
		}
	}
	return committed
}
