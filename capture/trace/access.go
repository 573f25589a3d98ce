package trace

import (
	"fmt"
	"sync"
)

// An Op is what a process wanted with a path.
type Op uint8

// The operations. All that read or write a file's content are Exec or Open.
const (
	Other    Op = iota // anything else, such as mount or inotify_add_watch
	Exec               // ran it
	Open               // opened it, or asked for that
	Dir                // opened it as a directory, or made it the working directory or root
	Stat               // asked for attributes, or whether it is there
	Readlink           // read a symbolic link
	Socket             // bound, or sent to, a Unix socket of that name
	Change             // made, removed, renamed it, or changed its attributes
)

var opNames = [...]string{"other", "exec", "open", "dir", "stat", "readlink", "socket", "change"}

// String returns the operation's name in lower case.
func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// A Mode says how a file's content was to be used by an Open: what the flags of
// open(2) tell beyond reading or writing.
type Mode uint8

// The bits of a Mode.
const (
	Reads     Mode = 1 << iota // to be read, perhaps among other things
	Appends                    // to be written at its end only
	Truncates                  // to be emptied first
)

// An Access is the first use of a path in one way. Later uses that differ in
// neither Path, Root, Op, Write, NoFollow nor Mode are not kept.
type Access struct {
	// Path is absolute in the sandbox's root, before symbolic links; see the
	// package comment for what is cleaned. It may hold any byte but NUL.
	Path string
	// Root is the root of the process, as a path in the sandbox: "/" unless it
	// has called chroot. Path begins with it, except when a process kept a
	// directory from outside its root.
	Root string
	Op   Op
	// Write: opened for writing or creating, or the tree was to be changed there.
	Write bool
	// NoFollow: if the last component is a symbolic link, the link itself was
	// meant (lstat, readlink, O_NOFOLLOW, and all calls that make or remove).
	NoFollow bool
	Mode     Mode // of an Open
	// Pid is the process that was first, in the caller's pid namespace.
	Pid int
	// Seq counts accesses from 0 in the order in which they were first seen.
	Seq int
}

// A GapKind says why a Gap is there.
type GapKind uint8

// The kinds of gaps.
const (
	// Foreign: a program made 32-bit (i386 or x32) system calls. They were
	// answered ENOSYS: the program did not work.
	Foreign GapKind = iota
	// Unknown: a system call newer than this package was answered ENOSYS.
	// Programs that probe for new calls fall back to older ones.
	Unknown
	// Unreadable: the path could not be read from the process.
	Unreadable
	// Unplaced: the path is relative to a directory that has no name in the
	// sandbox's root.
	Unplaced
	// Moved: a process called pivot_root; its later paths are relative to
	// a root that can't be placed in the sandbox.
	Moved
	// Overflow: there were more different accesses than MaxAccesses.
	Overflow
)

var gapNames = [...]string{
	"32-bit programs are not supported: their system calls were refused",
	"unknown system call was refused",
	"path of a system call could not be read",
	"path is relative to a directory that has no name in the sandbox",
	"process changed its root with pivot_root: its later paths are uncertain",
	"too many different paths: the rest was not kept",
}

// String returns a sentence without a subject.
func (k GapKind) String() string {
	if int(k) < len(gapNames) {
		return gapNames[k]
	}
	return fmt.Sprintf("gap(%d)", uint8(k))
}

// A Gap is something that the trace did not see, and why. The same gap of the
// same program is kept once.
type Gap struct {
	Kind    GapKind
	Program string // the process's executable in the sandbox's root; empty if unknown
	Call    string // the system call's name or number; of Foreign the interface, "i386" or "x32"
	Detail  string // the path, or the cause; may be empty
	Pid     int    // the first process, in the caller's pid namespace
}

// String returns the gap in one line.
func (g Gap) String() string {
	s := fmt.Sprintf("%s (%s)", g.Kind, g.Call)
	if g.Program != "" {
		s = g.Program + ": " + s
	}
	if g.Detail != "" {
		s += ": " + g.Detail
	}
	return s
}

// MaxAccesses bounds what one Tracer keeps: more different accesses than that
// are counted as an Overflow gap. At 100 bytes a path it is some 300 MB.
const MaxAccesses = 1 << 20

const maxGaps = 1000

type key struct {
	path, root string
	op         Op
	flags      uint8
	mode       Mode
}

// A record collects accesses and gaps from several ptrace threads.
type record struct {
	mu    sync.Mutex
	seen  map[key]struct{}
	list  []Access
	gaps  []Gap
	known map[Gap]struct{}
	limit int
}

func newRecord() *record {
	return &record{seen: make(map[key]struct{}), known: make(map[Gap]struct{}), limit: MaxAccesses}
}

// add keeps an access if it is the first of its kind. It does not keep path,
// and allocates nothing for an access that is known. It reports whether there
// was room.
func (r *record) add(path []byte, root string, op Op, a arg, noFollow bool, pid int) bool {
	var flags uint8
	if a.write {
		flags |= 1
	}
	if noFollow {
		flags |= 2
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.seen[key{string(path), root, op, flags, a.mode}]; ok {
		return true
	}
	if len(r.list) >= r.limit {
		return false
	}
	p := string(path)
	r.seen[key{p, root, op, flags, a.mode}] = struct{}{}
	r.list = append(r.list, Access{
		Path: p, Root: root, Op: op, Write: a.write, NoFollow: noFollow, Mode: a.mode, Pid: pid, Seq: len(r.list),
	})
	return true
}

func (r *record) gap(g Gap) {
	k := g
	k.Pid, k.Detail = 0, ""
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.known[k]; ok || len(r.gaps) >= maxGaps {
		return
	}
	r.known[k] = struct{}{}
	r.gaps = append(r.gaps, g)
}

func (r *record) accesses() []Access {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Access(nil), r.list...)
}

func (r *record) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list)
}

func (r *record) allGaps() []Gap {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Gap(nil), r.gaps...)
}
