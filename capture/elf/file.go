package elf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrNotELF: the file is not an ELF program or library, or it is damaged. The
// error says what is wrong.
var ErrNotELF = errors.New("not a loadable ELF file")

// Limits of one file. The largest programs of a distribution need a few hundred
// libraries.
const (
	maxPhdrs   = 1024
	maxDynamic = 16384 // entries
	maxNeeded  = 4096
	maxString  = 4096 // PATH_MAX
)

// A file is what the dynamic linker reads of an ELF file. It is read through
// the program headers, as the linker does: section headers, which debug/elf
// goes by, may have been stripped.
type file struct {
	class     elf.Class
	order     binary.ByteOrder
	machine   elf.Machine
	kind      elf.Type
	dynamic   bool // has PT_DYNAMIC
	interp    string
	soname    string
	needed    []string
	rpath     string // empty if there is a RUNPATH
	runpath   string
	noDefault bool // DF_1_NODEFLIB: neither cache nor default folders
}

// segment is a program header.
type segment struct {
	kind               elf.ProgType
	off, vaddr, filesz uint64
}

// parse reads the ELF file r of size bytes. Errors wrap ErrNotELF, or are r's.
func parse(r io.ReaderAt, size int64) (*file, error) {
	bad := func(format string, args ...any) (*file, error) {
		return nil, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrNotELF)
	}
	head := make([]byte, min(size, 1024))
	if err := readFull(r, head, 0); err != nil {
		return nil, err
	}
	if len(head) < 52 || string(head[:4]) != elf.ELFMAG {
		return bad("no ELF header")
	}
	f := &file{class: elf.Class(head[4])}
	switch elf.Data(head[5]) {
	case elf.ELFDATA2LSB:
		f.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		f.order = binary.BigEndian
	default:
		return bad("byte order %d", head[5])
	}
	f.kind = elf.Type(f.order.Uint16(head[16:]))
	f.machine = elf.Machine(f.order.Uint16(head[18:]))
	if f.kind != elf.ET_EXEC && f.kind != elf.ET_DYN {
		return bad("type %v", f.kind)
	}
	var phoff uint64
	var phsize, phnum int
	switch {
	case f.class == elf.ELFCLASS64 && len(head) >= 64:
		phoff, phsize, phnum = f.order.Uint64(head[32:]), int(f.order.Uint16(head[54:])), int(f.order.Uint16(head[56:]))
	case f.class == elf.ELFCLASS32:
		phoff, phsize, phnum = uint64(f.order.Uint32(head[28:])), int(f.order.Uint16(head[42:])), int(f.order.Uint16(head[44:]))
	default:
		return bad("class %d", head[4])
	}
	if want := map[elf.Class]int{elf.ELFCLASS64: 56, elf.ELFCLASS32: 32}[f.class]; phsize != want || phnum > maxPhdrs {
		return bad("%d program headers of %d bytes", phnum, phsize)
	}
	table, err := section(r, size, head, phoff, uint64(phsize*phnum))
	if err != nil {
		return bad("program headers: %v", err)
	}
	segments := make([]segment, phnum)
	for i := range segments {
		segments[i] = f.segment(table[i*phsize:])
	}
	for _, s := range segments {
		switch s.kind {
		case elf.PT_INTERP:
			b, err := section(r, size, head, s.off, s.filesz)
			if err != nil || len(b) == 0 || len(b) > maxString {
				return bad("interpreter of %d bytes at %d", s.filesz, s.off)
			}
			name, _, _ := bytes.Cut(b, []byte{0})
			f.interp = string(name)
		case elf.PT_DYNAMIC:
			f.dynamic = true
			if err := f.readDynamic(r, size, s, segments); err != nil {
				return bad("dynamic section: %v", err)
			}
		}
	}
	return f, nil
}

func (f *file) segment(b []byte) segment {
	o := f.order
	if f.class == elf.ELFCLASS64 {
		return segment{elf.ProgType(o.Uint32(b)), o.Uint64(b[8:]), o.Uint64(b[16:]), o.Uint64(b[32:])}
	}
	return segment{elf.ProgType(o.Uint32(b)), uint64(o.Uint32(b[4:])), uint64(o.Uint32(b[8:])), uint64(o.Uint32(b[16:]))}
}

// readDynamic reads the tags that matter and the strings that they name.
func (f *file) readDynamic(r io.ReaderAt, size int64, dyn segment, segments []segment) error {
	width := 16
	if f.class == elf.ELFCLASS32 {
		width = 8
	}
	if dyn.filesz > maxDynamic*uint64(width) {
		return fmt.Errorf("%d bytes", dyn.filesz)
	}
	b, err := section(r, size, nil, dyn.off, dyn.filesz)
	if err != nil {
		return err
	}
	var strtab, strsize uint64
	type ref struct {
		off uint64
		tag elf.DynTag
	}
	var refs []ref
	for ; len(b) >= width; b = b[width:] {
		var tag elf.DynTag
		var val uint64
		if width == 16 {
			tag, val = elf.DynTag(f.order.Uint64(b)), f.order.Uint64(b[8:])
		} else {
			tag, val = elf.DynTag(int32(f.order.Uint32(b))), uint64(f.order.Uint32(b[4:]))
		}
		if tag == elf.DT_NULL {
			break
		}
		switch tag {
		case elf.DT_STRTAB:
			strtab = val
		case elf.DT_STRSZ:
			strsize = val
		case elf.DT_FLAGS_1:
			f.noDefault = val&uint64(elf.DF_1_NODEFLIB) != 0
		case elf.DT_NEEDED, elf.DT_SONAME, elf.DT_RPATH, elf.DT_RUNPATH:
			if refs = append(refs, ref{val, tag}); len(refs) > maxNeeded {
				return fmt.Errorf("more than %d names", maxNeeded)
			}
		}
	}
	if len(refs) == 0 {
		return nil
	}
	at, ok := fileOffset(segments, strtab)
	if !ok || at > uint64(size) {
		return errors.New("string table is not in the file")
	}
	// All names are read at once if they lie close together, as linkers write them.
	lo, hi := refs[0].off, refs[0].off
	for _, x := range refs {
		if x.off >= strsize {
			return fmt.Errorf("name at %d of %d bytes of strings", x.off, strsize)
		}
		lo, hi = min(lo, x.off), max(hi, x.off)
	}
	strsize = min(strsize, uint64(size)-at)
	var all []byte
	if hi-lo <= 64<<10 && hi < strsize {
		if all, err = section(r, size, nil, at+lo, min(hi+maxString, strsize)-lo); err != nil {
			return err
		}
	}
	for _, x := range refs {
		text := all
		if all != nil {
			text = all[x.off-lo:]
		} else if x.off < strsize {
			if text, err = section(r, size, nil, at+x.off, min(maxString, strsize-x.off)); err != nil {
				return err
			}
		}
		name, _, ok := bytes.Cut(text, []byte{0})
		if !ok || len(name) >= maxString {
			return fmt.Errorf("name at %d has no end", x.off)
		}
		f.set(x.tag, string(name))
	}
	if f.runpath != "" {
		f.rpath = ""
	}
	return nil
}

func (f *file) set(tag elf.DynTag, s string) {
	switch tag {
	case elf.DT_NEEDED:
		if s != "" {
			f.needed = append(f.needed, s)
		}
	case elf.DT_SONAME:
		f.soname = s
	case elf.DT_RPATH:
		f.rpath = s
	case elf.DT_RUNPATH:
		f.runpath = s
	}
}

// fileOffset says where the byte that is loaded at vaddr lies in the file.
func fileOffset(segments []segment, vaddr uint64) (uint64, bool) {
	for _, s := range segments {
		if s.kind == elf.PT_LOAD && vaddr >= s.vaddr && vaddr-s.vaddr < s.filesz {
			off := s.off + (vaddr - s.vaddr)
			return off, off >= s.off
		}
	}
	return 0, false
}

// section returns n bytes at off, from head if they are in it.
func section(r io.ReaderAt, size int64, head []byte, off, n uint64) ([]byte, error) {
	if off > uint64(size) || n > uint64(size)-off {
		return nil, fmt.Errorf("%d bytes at %d of %d", n, off, size)
	}
	if off+n <= uint64(len(head)) {
		return head[off : off+n], nil
	}
	b := make([]byte, n)
	return b, readFull(r, b, int64(off))
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// fits reports whether g can be loaded into the same process as f.
func (f *file) fits(g *file) bool {
	return f.class == g.class && f.machine == g.machine && f.order == g.order
}

// isMusl reports whether f is for musl's dynamic linker.
func (f *file) isMusl() bool {
	if f.interp != "" {
		return strings.Contains(f.interp, "/ld-musl-")
	}
	for _, n := range f.needed {
		if strings.HasPrefix(n, "libc.musl-") {
			return true
		}
	}
	return false
}
