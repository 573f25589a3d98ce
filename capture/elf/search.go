package elf

import (
	"debug/elf"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/cpu"
)

// A hit is a file that a name leads to.
type hit struct {
	path    string
	file    *file
	variant bool
}

// find returns the file that the dynamic linker would load for name on behalf
// of o, and its variants for other processors.
func (s *search) find(o *object, name string) []hit {
	if strings.Contains(name, "/") {
		for _, p := range s.expand(o, name) {
			if h := s.at(p); h != nil {
				return []hit{*h}
			}
		}
		return nil
	}
	if s.musl {
		return s.findMusl(o, name)
	}
	if o.runpath == "" {
		for l := o; l != nil; l = l.loader {
			if hits := s.folders(l, splitPath(l.rpath), name); hits != nil {
				return hits
			}
		}
	}
	if hits := s.folders(o, s.libraryPath, name); hits != nil {
		return hits
	}
	if hits := s.folders(o, splitPath(o.runpath), name); hits != nil {
		return hits
	}
	if o.noDefault {
		return nil
	}
	if hits := s.cached(name); hits != nil {
		return hits
	}
	if hits := s.folders(o, s.linker.conf, name); hits != nil {
		return hits
	}
	return s.folders(o, s.defaults(), name)
}

func (s *search) findMusl(o *object, name string) []hit {
	dirs := s.libraryPath
	for l := o; l != nil; l = l.loader {
		for _, d := range splitPath(l.rpath + l.runpath) { // at most one is set
			dirs = append(dirs[:len(dirs):len(dirs)], s.expand(l, d)...)
		}
	}
	for _, dirs := range [][]string{dirs, s.linker.muslFolders(s.main)} {
		for _, d := range dirs {
			if h := s.at(path.Join(d, name)); h != nil {
				return []hit{*h}
			}
		}
	}
	return nil
}

func splitPath(p string) []string {
	if p == "" {
		return nil
	}
	return strings.Split(p, ":")
}

// folders looks for name in each of dirs and its glibc-hwcaps.
func (s *search) folders(o *object, dirs []string, name string) []hit {
	for _, d := range dirs {
		for _, d := range s.expand(o, d) {
			var hits []hit
			for i, hw := range hwcaps(s.main.machine) {
				if h := s.at(path.Join(d, "glibc-hwcaps", hw, name)); h != nil {
					h.variant = !supported(s.main.machine, i)
					hits = append(hits, *h)
				}
			}
			if h := s.at(path.Join(d, name)); h != nil {
				hits = append(hits, *h)
			}
			if chosen := choose(hits); chosen != nil {
				return chosen
			}
		}
	}
	return nil
}

// cached looks for name in ld.so.cache.
func (s *search) cached(name string) []hit {
	entries := s.linker.cache[name]
	var hits []hit
	for i, hw := range hwcaps(s.main.machine) {
		for _, c := range entries {
			if c.hwcap != hw {
				continue
			}
			if h := s.at(c.path); h != nil {
				h.variant = !supported(s.main.machine, i)
				hits = append(hits, *h)
			}
		}
	}
	for _, c := range entries {
		if c.hwcap != "" {
			continue
		}
		if h := s.at(c.path); h != nil {
			hits = append(hits, *h)
			break
		}
	}
	return choose(hits)
}

// choose puts the first hit that is not a variant first, and makes variants of
// all others. If this processor can load none, there is none.
func choose(hits []hit) []hit {
	for i, h := range hits {
		if h.variant {
			continue
		}
		for k := range hits {
			hits[k].variant = true
		}
		copy(hits[1:i+1], hits[:i])
		h.variant = false
		hits[0] = h
		return hits
	}
	return nil
}

// at returns the file at p if it can be loaded into this process.
func (s *search) at(p string) *hit {
	f, err := s.linker.load(p)
	if err != nil || !f.fits(s.main) {
		return nil
	}
	return &hit{path: p, file: f}
}

// defaults returns the folders that are built into glibc's dynamic linker: of
// Debian's, of the others' for 64 bits, of the others' for 32.
func (s *search) defaults() []string {
	var dirs []string
	if t := triples[s.main.machine][s.main.class]; t != "" {
		dirs = append(dirs, "/lib/"+t, "/usr/lib/"+t)
	}
	if s.main.class == elf.ELFCLASS64 {
		dirs = append(dirs, "/lib64", "/usr/lib64")
	}
	return append(dirs, "/lib", "/usr/lib")
}

// expand replaces the dynamic string tokens in a path. $LIB and $PLATFORM are
// built into the dynamic linker, so all their usual values are tried. What is
// relative, to a working directory that we don't know, is left out.
func (s *search) expand(o *object, p string) []string {
	all := []string{p}
	if strings.Contains(p, "$") {
		all = replaceToken(all, "ORIGIN", o.origin)
		all = replaceToken(all, "LIB", libNames(s.main)...)
		all = replaceToken(all, "PLATFORM", platforms(s.main)...)
	}
	n := 0
	for _, p := range all {
		if path.IsAbs(p) {
			all[n] = path.Clean(p)
			n++
		}
	}
	return all[:n]
}

// replaceToken replaces $NAME and ${NAME} by each of the values.
func replaceToken(paths []string, name string, values ...string) []string {
	var out []string
	for _, p := range paths {
		if !strings.Contains(p, "$"+name) && !strings.Contains(p, "${"+name+"}") {
			out = append(out, p)
			continue
		}
		for _, v := range values {
			r := strings.NewReplacer("${"+name+"}", v, "$"+name, v).Replace(p)
			if len(r) < maxString {
				out = append(out, r)
			}
		}
	}
	return out
}

func libNames(f *file) []string {
	names := []string{"lib64", "lib"}
	if f.class == elf.ELFCLASS32 {
		names = []string{"lib", "lib32"}
	}
	if t := triples[f.machine][f.class]; t != "" {
		names = append([]string{"lib/" + t}, names...)
	}
	return names
}

func platforms(f *file) []string {
	switch f.machine {
	case elf.EM_X86_64:
		return []string{"haswell", "x86_64"}
	case elf.EM_386:
		return []string{"i686", "i586", "i386"}
	case elf.EM_AARCH64:
		return []string{"aarch64"}
	}
	return []string{strings.ToLower(strings.TrimPrefix(f.machine.String(), "EM_"))}
}

// hwcaps returns the names below glibc-hwcaps, best first.
func hwcaps(m elf.Machine) []string {
	switch m {
	case elf.EM_X86_64:
		return []string{"x86-64-v4", "x86-64-v3", "x86-64-v2"}
	case elf.EM_PPC64:
		return []string{"power10", "power9"}
	case elf.EM_S390:
		return []string{"z16", "z15", "z14", "z13"}
	}
	return nil
}

// supported reports whether this machine's processor gets the i-th of hwcaps.
// Of other machines than x86 it is not known; the plain library serves.
func supported(m elf.Machine, i int) bool {
	if m != elf.EM_X86_64 || runtime.GOARCH != "amd64" {
		return false
	}
	x := &cpu.X86
	v2 := x.HasSSE3 && x.HasSSSE3 && x.HasSSE41 && x.HasSSE42 && x.HasPOPCNT && x.HasCX16
	v3 := v2 && x.HasAVX && x.HasAVX2 && x.HasBMI1 && x.HasBMI2 && x.HasFMA && x.HasOSXSAVE
	v4 := v3 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512CD && x.HasAVX512DQ && x.HasAVX512VL
	return []bool{v4, v3, v2}[i]
}
