package elf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"

	"srvfs/capture/rootfs"
)

// errCache: ld.so.cache can't be understood. ld.so too goes on without it.
var errCache = errors.New("unknown form of ld.so.cache")

const (
	maxCache   = 64 << 20
	cacheMagic = "glibc-ld.so.cache1.1"
	oldMagic   = "ld.so-1.7.0\x00"
	// extensionMagic begins the extensions, of which one names the folders
	// below glibc-hwcaps that entries refer to by number.
	extensionMagic = 0xeaa42174
	tagHwcaps      = 1
	hwcapExtension = 1 << 62 // in an entry's hwcap: the lower half is such a number
)

// A cached is one file that ld.so.cache has for a name.
type cached struct {
	path  string
	hwcap string // folder below glibc-hwcaps that it is for; empty for any processor
}

// parseCache reads ld.so.cache of the form 1.1, which glibc has written since
// 2.2, also when the older form stands before it. It returns the files that
// each library name stands for, in the order of the cache.
func parseCache(b []byte) (map[string][]cached, error) {
	if bytes.HasPrefix(b, []byte(oldMagic)) {
		if len(b) < 16 {
			return nil, errCache
		}
		n := uint64(binary.LittleEndian.Uint32(b[12:]))
		at := 16 + 12*n
		at = (at + 7) &^ 7
		if at > uint64(len(b)) {
			return nil, errCache
		}
		b = b[at:]
	}
	const header, entry = 48, 24
	if len(b) < header || string(b[:len(cacheMagic)]) != cacheMagic {
		return nil, errCache
	}
	var order binary.ByteOrder = binary.LittleEndian
	if b[28]&3 == 3 {
		order = binary.BigEndian
	}
	n := uint64(order.Uint32(b[20:]))
	if n*entry > uint64(len(b)-header) {
		return nil, fmt.Errorf("%d entries in %d bytes: %w", n, len(b), errCache)
	}
	hwcaps := cacheHwcaps(b, order)
	names := make(map[string][]cached, n)
	for i := range n {
		e := b[header+i*entry:]
		key, ok1 := cacheString(b, order.Uint32(e[4:]))
		value, ok2 := cacheString(b, order.Uint32(e[8:]))
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("entry %d: %w", i, errCache)
		}
		c := cached{path: value}
		if h := order.Uint64(e[16:]); h&hwcapExtension != 0 {
			if k := uint64(uint32(h)); k < uint64(len(hwcaps)) {
				c.hwcap = hwcaps[k]
			} else {
				continue
			}
		} else if h != 0 {
			continue // folders of glibc before 2.33, chosen by bits that are no longer defined
		}
		if path.IsAbs(value) {
			names[key] = append(names[key], c)
		}
	}
	return names, nil
}

// cacheHwcaps returns the names that numbers in entries stand for.
func cacheHwcaps(b []byte, order binary.ByteOrder) []string {
	at := uint64(order.Uint32(b[32:]))
	if at == 0 || at+8 > uint64(len(b)) || order.Uint32(b[at:]) != extensionMagic {
		return nil
	}
	count := uint64(order.Uint32(b[at+4:]))
	for i := range min(count, 16) {
		s := at + 8 + 16*i
		if s+16 > uint64(len(b)) || order.Uint32(b[s:]) != tagHwcaps {
			continue
		}
		off, size := uint64(order.Uint32(b[s+8:])), uint64(order.Uint32(b[s+12:]))
		if off > uint64(len(b)) || size > uint64(len(b))-off {
			return nil
		}
		var names []string
		for ; size >= 4; off, size = off+4, size-4 {
			name, _ := cacheString(b, order.Uint32(b[off:]))
			names = append(names, name)
		}
		return names
	}
	return nil
}

func cacheString(b []byte, off uint32) (string, bool) {
	if uint64(off) >= uint64(len(b)) {
		return "", false
	}
	b = b[off:min(uint64(len(b)), uint64(off)+maxString)]
	s, _, ok := bytes.Cut(b, []byte{0})
	return string(s), ok
}

// confFolders returns the folders that /etc/ld.so.conf names, with what it
// includes: what ldconfig would make the cache of.
func confFolders(root *rootfs.Root) []string {
	var dirs []string
	seen := map[string]bool{}
	var read func(file string, depth int)
	read = func(file string, depth int) {
		if seen[file] || depth > 8 || len(seen) > 1000 {
			return
		}
		seen[file] = true
		b, err := root.ReadFile(file, 1<<20)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b)) {
			line, _, _ = strings.Cut(line, "#")
			words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n:,", r) })
			if len(words) == 0 {
				continue
			}
			switch words[0] {
			case "include":
				for _, pattern := range words[1:] {
					if !path.IsAbs(pattern) {
						pattern = path.Join(path.Dir(file), pattern)
					}
					for _, f := range glob(root, pattern) {
						read(f, depth+1)
					}
				}
			case "hwcap":
			default:
				for _, d := range words {
					d, _, _ = strings.Cut(d, "=") // "=TYPE" was for libc5
					if path.IsAbs(d) {
						dirs = append(dirs, path.Clean(d))
					}
				}
			}
		}
	}
	read("/etc/ld.so.conf", 0)
	return dirs
}

// glob expands wildcards in the last component only, which is where they are
// in every ld.so.conf.
func glob(root *rootfs.Root, pattern string) []string {
	dir, last := path.Split(pattern)
	if !strings.ContainsAny(last, "*?[") {
		return []string{pattern}
	}
	entries, err := root.ReadDir(dir)
	if err != nil {
		return nil
	}
	var found []string
	for _, e := range entries {
		if ok, _ := path.Match(last, e.Name()); ok && !strings.HasPrefix(e.Name(), ".") {
			found = append(found, path.Join(dir, e.Name()))
		}
	}
	return found
}
