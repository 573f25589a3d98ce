package elf

import (
	"debug/elf"
	"fmt"
	"path"
	"strings"
	"sync"
	"syscall"

	"srvfs/capture/rootfs"
)

// maxLibraries bounds what one program can make us load.
const maxLibraries = 4096

// A Linker resolves the dependencies of ELF files in one root. It remembers
// every file that it has read (by device and inode) and the root's
// configuration, so make one for each capture. It is safe for concurrent use.
type Linker struct {
	root *rootfs.Root

	once    sync.Once // the configuration below
	cache   map[string][]cached
	conf    []string // folders of ld.so.conf, if there is no cache
	preload []string

	mu    sync.Mutex
	paths map[string]result // by path as searched
	files map[inode]result
	musl  map[string][]string // by architecture, folders
}

type inode struct{ dev, ino uint64 }

type result struct {
	file *file
	err  error
}

// New returns a Linker for the files of root.
func New(root *rootfs.Root) *Linker {
	return &Linker{root: root, paths: map[string]result{}, files: map[inode]result{}, musl: map[string][]string{}}
}

// A Library is one file that is needed.
type Library struct {
	// Path is where the dynamic linker finds it, before links are resolved:
	// rootfs.Resolve gives the links and the file.
	Path string
	Name string // as DT_NEEDED, PT_INTERP or a preload list has it
	By   string // path of the ELF file, or of the list, that names it
	// Reason is for people: "library libz.so.1 of /usr/sbin/nginx".
	Reason string
	// Variant: this processor would not load it, another one would.
	Variant bool
}

// InterpreterOf begins the Reason of an ELF interpreter, which the kernel loads
// with the program.
const InterpreterOf = "ELF interpreter of "

// A Missing is a library that is needed and not found. A library that only a
// Variant needs is not reported.
type Missing struct {
	Name string // as DT_NEEDED or PT_INTERP has it
	By   string // path of the ELF file that needs it
}

// String returns "libz.so.1, needed by /usr/sbin/nginx".
func (m Missing) String() string { return m.Name + ", needed by " + m.By }

// IsELF reports whether path is an ELF program or library that can be loaded.
func (l *Linker) IsELF(path string) bool {
	_, err := l.load(path)
	return err == nil
}

// object is a loaded file: what its search for libraries depends on.
type object struct {
	*file
	path    string
	origin  string  // what $ORIGIN is in it
	loader  *object // that needed it first; nil for the program
	variant bool
}

// Needed returns everything that the dynamic linker would load for the program
// or library at path: its interpreter, what /etc/ld.so.preload names, its
// libraries, theirs, in the order in which it would load them. env is the
// environment of the process (KEY=value), of which LD_LIBRARY_PATH and
// LD_PRELOAD count; nil is none.
//
// A static program needs nothing. A file that is not ELF gives ErrNotELF; one
// that can't be read gives the error of that. Missing libraries are not an
// error: some programs work without.
func (l *Linker) Needed(path string, env []string) ([]Library, []Missing, error) {
	f, err := l.load(path)
	if err != nil {
		return nil, nil, err
	}
	if !f.dynamic && f.interp == "" {
		return nil, nil, nil
	}
	l.once.Do(l.configure)
	s := &search{linker: l, main: f, musl: f.isMusl(), names: map[string]bool{}, loaded: map[*file]bool{f: true}}
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "LD_LIBRARY_PATH="); ok {
			s.libraryPath = strings.FieldsFunc(v, func(r rune) bool { return r == ':' || r == ';' })
		} else if v, ok := strings.CutPrefix(e, "LD_PRELOAD="); ok {
			s.preload = strings.FieldsFunc(v, func(r rune) bool { return r == ':' || r == ' ' })
		}
	}
	s.run(path)
	return s.libs, s.missing, nil
}

// search is one run of the dynamic linker.
type search struct {
	linker      *Linker
	main        *file
	musl        bool
	libraryPath []string
	preload     []string

	names   map[string]bool // as needed, and sonames
	loaded  map[*file]bool
	queue   []*object
	libs    []Library
	missing []Missing
}

func (s *search) run(p string) {
	top := &object{file: s.main, path: p, origin: path.Dir(p)}
	if c, _, err := s.linker.root.Resolve(p); err == nil {
		top.origin = path.Dir(c) // the kernel tells ld.so the real path of the program
	}
	if s.main.soname != "" {
		s.names[s.main.soname] = true
	}
	if in := s.main.interp; in != "" {
		f, err := s.linker.load(in)
		if err != nil || !f.fits(s.main) {
			s.missing = append(s.missing, Missing{in, p})
		} else {
			s.libs = append(s.libs, Library{Path: in, Name: in, By: p, Reason: InterpreterOf + p})
			s.names[in], s.names[path.Base(in)], s.names[f.soname] = true, true, true
			s.loaded[f] = true
		}
	}
	for _, n := range s.preload {
		s.need(top, n, p, "library preloaded by LD_PRELOAD of ")
	}
	if !s.musl {
		for _, n := range s.linker.preload {
			s.need(top, n, "/etc/ld.so.preload", "library preloaded by ")
		}
	}
	s.queue = append([]*object{top}, s.queue...)
	for i := 0; i < len(s.queue) && len(s.libs) < maxLibraries; i++ {
		o := s.queue[i]
		for _, n := range o.needed {
			s.need(o, n, o.path, "library "+n+" of ")
		}
	}
}

// need loads the library name for o, unless it is there.
func (s *search) need(o *object, name, by, reason string) {
	if s.names[name] || s.musl && muslOwn(name) {
		return
	}
	hits := s.find(o, name)
	if len(hits) == 0 {
		if !o.variant {
			s.names[name] = true
			s.missing = append(s.missing, Missing{name, by})
		}
		return
	}
	s.names[name] = true
	for _, h := range hits {
		if h.file.soname != "" {
			s.names[h.file.soname] = true
		}
		if s.loaded[h.file] {
			continue
		}
		s.loaded[h.file] = true
		variant := h.variant || o.variant
		s.libs = append(s.libs, Library{Path: h.path, Name: name, By: by, Reason: reason + by, Variant: variant})
		s.queue = append(s.queue, &object{file: h.file, path: h.path, origin: path.Dir(h.path), loader: o, variant: variant})
	}
}

// load reads the ELF file at p, or remembers it. Its error wraps ErrNotELF or
// says why it can't be read.
func (l *Linker) load(p string) (*file, error) {
	l.mu.Lock()
	r, ok := l.paths[p]
	l.mu.Unlock()
	if ok {
		return r.file, r.err
	}
	r.file, r.err = l.read(p)
	l.mu.Lock()
	l.paths[p] = r
	l.mu.Unlock()
	return r.file, r.err
}

func (l *Linker) read(p string) (*file, error) {
	info, err := l.root.Stat(p)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", l.root.Host(p), ErrNotELF)
	}
	st := info.Sys().(*syscall.Stat_t)
	id := inode{st.Dev, st.Ino}
	l.mu.Lock()
	r, ok := l.files[id]
	l.mu.Unlock()
	if ok {
		return r.file, r.err
	}
	f, err := l.root.Open(p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	r.file, r.err = parse(f, info.Size())
	if r.err != nil {
		r.err = fmt.Errorf("%s: %w", l.root.Host(p), r.err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if first, ok := l.files[id]; ok { // another goroutine was faster: one file, one value
		return first.file, first.err
	}
	l.files[id] = r
	return r.file, r.err
}

// configure reads the root's configuration of glibc's dynamic linker.
func (l *Linker) configure() {
	b, err := l.root.ReadFile("/etc/ld.so.cache", maxCache)
	if err == nil {
		l.cache, err = parseCache(b)
	}
	if err != nil {
		l.conf = confFolders(l.root)
	}
	if b, err := l.root.ReadFile("/etc/ld.so.preload", 1<<20); err == nil {
		for line := range strings.Lines(string(b)) {
			line, _, _ = strings.Cut(line, "#")
			l.preload = append(l.preload, strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n:", r) })...)
		}
	}
}

// muslFolders returns the folders that musl's dynamic linker searches.
func (l *Linker) muslFolders(f *file) []string {
	arch := muslArch(f)
	l.mu.Lock()
	defer l.mu.Unlock()
	dirs, ok := l.musl[arch]
	if !ok {
		dirs = []string{"/lib", "/usr/local/lib", "/usr/lib"}
		if b, err := l.root.ReadFile("/etc/ld-musl-"+arch+".path", 1<<20); err == nil {
			dirs = strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' || r == ':' })
		}
		l.musl[arch] = dirs
	}
	return dirs
}

// muslArch is the ARCH of ld-musl-ARCH.so.1 that loads f.
func muslArch(f *file) string {
	if base, ok := strings.CutPrefix(path.Base(f.interp), "ld-musl-"); ok {
		return strings.TrimSuffix(base, ".so.1")
	}
	for _, n := range f.needed {
		if base, ok := strings.CutPrefix(n, "libc.musl-"); ok {
			base = strings.TrimSuffix(base, ".so.1")
			if !strings.Contains(base, "/") {
				return base
			}
		}
	}
	return "x86_64"
}

// muslOwn reports whether name is one that musl's dynamic linker itself
// stands for.
func muslOwn(name string) bool {
	if name == "libc.so" || strings.HasPrefix(name, "libc.musl-") {
		return true
	}
	rest, ok := strings.CutPrefix(name, "lib")
	if !ok {
		return false
	}
	for _, own := range []string{"c.", "pthread.", "rt.", "m.", "dl.", "util.", "xnet."} {
		if strings.HasPrefix(rest, own) {
			return true
		}
	}
	return false
}

// triples are the names of Debian's multi-arch folders.
var triples = map[elf.Machine]map[elf.Class]string{
	elf.EM_X86_64:  {elf.ELFCLASS64: "x86_64-linux-gnu", elf.ELFCLASS32: "x86_64-linux-gnux32"},
	elf.EM_386:     {elf.ELFCLASS32: "i386-linux-gnu"},
	elf.EM_AARCH64: {elf.ELFCLASS64: "aarch64-linux-gnu"},
	elf.EM_ARM:     {elf.ELFCLASS32: "arm-linux-gnueabihf"},
	elf.EM_RISCV:   {elf.ELFCLASS64: "riscv64-linux-gnu"},
	elf.EM_PPC64:   {elf.ELFCLASS64: "powerpc64le-linux-gnu"},
	elf.EM_S390:    {elf.ELFCLASS64: "s390x-linux-gnu"},
}
