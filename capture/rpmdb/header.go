package rpmdb

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// Limits of one header, in bytes and entries. The largest packages of Fedora
// have 60,000 files and 10 MB of header.
const (
	maxHeader  = 64 << 20
	maxEntries = 1 << 16
	maxFiles   = 1 << 20
)

// Tags and types of RPM's lib/rpmtag.h.
const (
	tagName            = 1000
	tagVersion         = 1001
	tagRelease         = 1002
	tagEpoch           = 1003
	tagSummary         = 1004
	tagInstallTime     = 1008
	tagArch            = 1022
	tagOldFileNames    = 1027
	tagFileSizes       = 1028
	tagFileMtimes      = 1034
	tagFileDigests     = 1035
	tagFileFlags       = 1037
	tagProvideName     = 1047
	tagRequireFlags    = 1048
	tagRequireName     = 1049
	tagRequireVersion  = 1050
	tagProvideFlags    = 1112
	tagProvideVersion  = 1113
	tagDirIndexes      = 1116
	tagBaseNames       = 1117
	tagDirNames        = 1118
	tagLongFileSizes   = 5008
	tagFileDigestAlgos = 5011

	typeInt32       = 4
	typeInt64       = 5
	typeString      = 6
	typeStringArray = 8
	typeI18NString  = 9
)

// A header is RPM's form of what it knows of a package: tagged values. It is
// shared with the database's bytes.
type header struct {
	entries map[uint32]entry
	data    []byte
}

type entry struct {
	kind, at, count uint32
}

// parseHeader reads the table of a header. Values are looked at when they are
// asked for. Layout: the number of entries, the bytes of data, entries of 16 bytes,
// the data; all big-endian.
func parseHeader(b []byte) (*header, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("a header of %d bytes", len(b))
	}
	entries, length := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if entries > maxEntries || int64(length) > maxHeader || 8+16*int64(entries)+int64(length) > int64(len(b)) {
		return nil, fmt.Errorf("a header of %d bytes with %d entries and %d bytes of data", len(b), entries, length)
	}
	h := &header{entries: make(map[uint32]entry, entries), data: b[8+16*entries:][:length]}
	for i := range entries {
		e := b[8+16*i:]
		at := binary.BigEndian.Uint32(e[8:])
		if at > length {
			// The trailer of a region is counted backwards: nothing of ours.
			continue
		}
		// The first counts: what follows the header proper was added by rpm when
		// it installed the package.
		if tag := binary.BigEndian.Uint32(e); h.entries[tag].count == 0 {
			h.entries[tag] = entry{binary.BigEndian.Uint32(e[4:]), at, binary.BigEndian.Uint32(e[12:])}
		}
	}
	return h, nil
}

// text returns a tag's only string, or of one in several languages the first;
// empty if there is none.
func (h *header) text(tag uint32) string {
	e, ok := h.entries[tag]
	if !ok || e.count == 0 || e.kind != typeString && e.kind != typeI18NString && e.kind != typeStringArray {
		return ""
	}
	s, _, _ := bytes.Cut(h.data[e.at:], []byte{0})
	return string(s)
}

// strings returns a tag's strings; nil if there are none.
func (h *header) strings(tag uint32) ([]string, error) {
	e, ok := h.entries[tag]
	if !ok {
		return nil, nil
	}
	if e.kind != typeStringArray && e.kind != typeString && e.kind != typeI18NString || e.count > maxFiles || uint64(e.count) > uint64(len(h.data)) {
		return nil, fmt.Errorf("tag %d: %d values of type %d", tag, e.count, e.kind)
	}
	rest := h.data[e.at:]
	length := 0
	for range e.count {
		n := bytes.IndexByte(rest[length:], 0)
		if n < 0 {
			return nil, fmt.Errorf("tag %d: its text does not end", tag)
		}
		length += n + 1
	}
	text := string(rest[:length]) // one for all
	all := make([]string, e.count)
	for i := range all {
		all[i], text, _ = strings.Cut(text, "\x00")
	}
	return all, nil
}

// numbers returns a tag's numbers; nil if there are none.
func (h *header) numbers(tag uint32) ([]uint64, error) {
	e, ok := h.entries[tag]
	if !ok {
		return nil, nil
	}
	width := uint64(4)
	if e.kind == typeInt64 {
		width = 8
	} else if e.kind != typeInt32 {
		return nil, fmt.Errorf("tag %d: of type %d", tag, e.kind)
	}
	if e.count > maxFiles || uint64(e.at)+width*uint64(e.count) > uint64(len(h.data)) {
		return nil, fmt.Errorf("tag %d: %d numbers at byte %d of %d", tag, e.count, e.at, len(h.data))
	}
	all := make([]uint64, e.count)
	for i, b := 0, h.data[e.at:]; i < len(all); i, b = i+1, b[width:] {
		if width == 8 {
			all[i] = binary.BigEndian.Uint64(b)
		} else {
			all[i] = uint64(binary.BigEndian.Uint32(b))
		}
	}
	return all, nil
}

// number returns a tag's first number; ok is false if there is none.
func (h *header) number(tag uint32) (n uint64, ok bool) {
	all, err := h.numbers(tag)
	if err != nil || len(all) == 0 {
		return 0, false
	}
	return all[0], true
}
