package manifest

import (
	"fmt"
	"path"
	"strings"
)

// A Snapshot is one immutable state of a service: its tree, how it is started
// and stopped, what proves that it works, and what it touched while it started.
type Snapshot struct {
	Service  string // the name that the administrator gave it; see ValidService
	Sequence uint64 // 1 for the first snapshot of the service, then rising
	Created  int64  // nanoseconds since 1970
	Source   string // the source's host name, for people
	Root     Entry  // the root directory; Root.Digest is the root digest
	Totals   Totals
	Units    []Unit   // in the order in which they start
	Probes   []string // URLs, as package probe reads them
	// Profile lists the file ranges that the service touched while it started
	// and answered its probes, in order.
	Profile []Touch
	// Metadata lists the directory pages, and the chunk lists, that the paths of
	// the profile lead through: what a standby asks for in its first batch.
	Metadata []Digest
	// Order is the digest of an encoded [Order]: in which order a prefetch takes
	// what the profile does not name. Zero: in any.
	Order Digest
}

// Totals counts a tree. Readers use it to bound their walks and to say what is
// missing.
type Totals struct {
	Entries uint64 // all names, the root not counted
	Files   uint64 // regular files, each hard-linked file once
	Bytes   uint64 // of these files
	Dirs    uint64 // directories, the root counted
}

// A Touch is one access in the profile: a whole file, or of a large one a range
// of whole chunks.
type Touch struct {
	Path     string // absolute, clean
	Content  Digest
	Off, Len int64
	Write    bool // it was opened for writing
	// Fresh: the service writes it from its beginning and does not read it, as
	// it does a log. Its entry in the tree is empty, whatever the source has there.
	Fresh bool
}

// The flags of a Touch in its encoding. They are those of a bool as long as no
// touch is Fresh, as in a snapshot of the first format.
const (
	touchWrite = 1 << iota
	touchFresh
)

func (t *Touch) flags() (f uint64) {
	if t.Write {
		f |= touchWrite
	}
	if t.Fresh {
		f |= touchFresh
	}
	return f
}

// A StartKind says when a unit's start command has done its work. The words
// are systemd's.
type StartKind string

// The kinds of start.
const (
	Simple  StartKind = "simple"  // the process that was started is the service
	Forking StartKind = "forking" // the process returns and leaves the service behind
	Oneshot StartKind = "oneshot" // the process does its work and returns
	Notify  StartKind = "notify"  // as Simple, and it says READY=1 when it is
)

// A Unit is one process (tree) of a service: what a systemd unit, SysV script
// or command said, with every name already resolved on the source.
type Unit struct {
	Name     string
	Kind     StartKind
	Pre      []Command // run first, in order; each must succeed
	Start    []Command // one, or several in order for Oneshot
	Post     []Command // run when Start has done its work
	Stop     []Command // empty: StopSignal is enough
	PIDFile  string    // where a Forking daemon leaves its number; may be empty
	User     User
	Env      []string // KEY=value, complete
	Dir      string   // working directory; empty is "/"
	Umask    uint32
	Folders  []Folder // made, if missing, before Pre
	Sockets  []Socket // that Start finds open, in this order
	Signal   int      // that asks it to stop; 15 is SIGTERM
	StartMax int64    // nanoseconds until the start has failed
	StopMax  int64    // nanoseconds until the stop is made with SIGKILL
}

// A Command is one command line.
type Command struct {
	Argv       []string // Argv[0] is an absolute path
	MayFail    bool     // its exit status does not matter
	Privileged bool     // run as root, whatever the unit's user
}

// A User is whom a unit runs as, in numbers of the source.
type User struct {
	Name     string // for USER and LOGNAME; empty for root without a passwd entry
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// A Folder is a directory that exists before a unit starts, as systemd's
// RuntimeDirectory and its like ask for.
type Folder struct {
	Path     string
	Mode     uint32
	UID, GID uint32
}

// Limits of a snapshot's encoding.
const (
	MaxSnapshot = 64 << 20
	maxUnits    = 64
	maxCommands = 64
	maxArgs     = 4096
	maxArg      = 128 << 10 // MAX_ARG_STRLEN
	maxProbes   = 256
	maxURL      = 8 << 10
	maxTouches  = 1 << 20
)

// snapshotMagic begins every encoded snapshot, without its format, 1 to 4, and
// the end of the line. A snapshot has the second format if a touch of its profile
// is Fresh, the third if it has an Order, and the fourth if a unit has Sockets: a
// reader of those before would not understand it.
const snapshotMagic = "srvfs snapshot "

// format returns the format that the snapshot is encoded in.
func (s *Snapshot) format() string {
	for i := range s.Units {
		if len(s.Units[i].Sockets) > 0 {
			return "4\n"
		}
	}
	if !s.Order.IsZero() {
		return "3\n"
	}
	for i := range s.Profile {
		if s.Profile[i].Fresh {
			return "2\n"
		}
	}
	return "1\n"
}

// ValidService reports whether s can name a service: it becomes a file name
// and a part of HOST/SERVICE on command lines.
func ValidService(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '.' || s[0] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	})
}

// ValidPath reports whether p is absolute, clean and no longer than PATH_MAX.
func ValidPath(p string) bool {
	return len(p) < MaxPath && strings.HasPrefix(p, "/") && path.Clean(p) == p && !strings.Contains(p, "\x00")
}

// Encode returns the snapshot's canonical form. The error wraps ErrInvalid.
func (s *Snapshot) Encode() ([]byte, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	w := encoder{b: []byte(snapshotMagic + s.format())}
	w.string(s.Service)
	w.uint(s.Sequence)
	w.int(s.Created)
	w.string(s.Source)
	s.Root.encode(&w)
	for _, v := range []uint64{s.Totals.Entries, s.Totals.Files, s.Totals.Bytes, s.Totals.Dirs} {
		w.uint(v)
	}
	w.uint(uint64(len(s.Units)))
	for i := range s.Units {
		s.Units[i].encode(&w)
	}
	w.strings(s.Probes)
	w.uint(uint64(len(s.Profile)))
	for _, t := range s.Profile {
		w.string(t.Path)
		w.digest(t.Content)
		w.uint(uint64(t.Off))
		w.uint(uint64(t.Len))
		w.uint(t.flags())
	}
	w.uint(uint64(len(s.Metadata)))
	for _, d := range s.Metadata {
		w.digest(d)
	}
	if format := s.format(); format >= "3" {
		w.digest(s.Order)
		for i := range s.Units {
			if format >= "4" {
				encodeSockets(&w, s.Units[i].Sockets)
			}
		}
	}
	if len(w.b) > MaxSnapshot {
		return nil, fmt.Errorf("snapshot of %s: %d bytes exceed %d: %w", s.Service, len(w.b), MaxSnapshot, ErrInvalid)
	}
	return w.b, nil
}

// DecodeSnapshot reads what Encode wrote. The error wraps ErrInvalid.
func DecodeSnapshot(b []byte) (*Snapshot, error) {
	r := decoder{what: "snapshot", b: b}
	if len(b) > MaxSnapshot {
		r.fail("%d bytes exceed %d", len(b), MaxSnapshot)
	}
	magic := string(r.take(len(snapshotMagic) + 2))
	most := uint64(touchWrite)
	switch magic {
	case snapshotMagic + "1\n":
	case snapshotMagic + "2\n", snapshotMagic + "3\n", snapshotMagic + "4\n":
		most |= touchFresh
	default:
		r.fail("not a snapshot, or of a format that this version does not know")
	}
	s := &Snapshot{Service: r.string(64, "service"), Sequence: r.uint(), Created: r.int(), Source: r.string(MaxName, "source")}
	s.Root.decode(&r, true)
	s.Totals = Totals{Entries: r.uint(), Files: r.uint(), Bytes: r.uint(), Dirs: r.uint()}
	s.Units = make([]Unit, r.count(maxUnits, 16, "units"))
	for i := range s.Units {
		s.Units[i].decode(&r)
	}
	s.Probes = r.strings(maxProbes, maxURL, "probes")
	s.Profile = make([]Touch, r.count(maxTouches, 1+DigestSize+3, "touches"))
	for i := range s.Profile {
		s.Profile[i] = Touch{Path: r.string(MaxPath, "path"), Content: r.digest(), Off: int64(r.upTo(maxSize, "offset")), Len: int64(r.upTo(maxSize, "length"))}
		flags := r.upTo(most, "flags of a touch")
		s.Profile[i].Write, s.Profile[i].Fresh = flags&touchWrite != 0, flags&touchFresh != 0
	}
	s.Metadata = make([]Digest, r.count(maxTouches, DigestSize, "digests"))
	for i := range s.Metadata {
		s.Metadata[i] = r.digest()
	}
	if magic >= snapshotMagic+"3\n" {
		s.Order = r.digest()
		for i := range s.Units {
			if magic >= snapshotMagic+"4\n" {
				s.Units[i].Sockets = decodeSockets(&r)
			}
		}
	}
	if magic != snapshotMagic+s.format() {
		r.fail("it has a later format than it needs")
	}
	if err := r.finish(); err != nil {
		return nil, err
	}
	return s, s.validate()
}

// Digest returns the digest of the snapshot's canonical form.
func (s *Snapshot) Digest() (Digest, error) {
	b, err := s.Encode()
	return Sum(b), err
}

func (s *Snapshot) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("snapshot %.80q: %s: %w", s.Service, fmt.Sprintf(format, args...), ErrInvalid)
	}
	if !ValidService(s.Service) {
		return bad("not a service name")
	}
	if s.Sequence == 0 {
		return bad("no sequence number")
	}
	if len(s.Source) > MaxName || len(s.Units) > maxUnits || len(s.Probes) > maxProbes || len(s.Profile) > maxTouches || len(s.Metadata) > maxTouches {
		return bad("too long")
	}
	if err := s.Root.validate(true); err != nil {
		return bad("root: %v", err)
	}
	for i := range s.Units {
		if err := s.Units[i].validate(); err != nil {
			return bad("%v", err)
		}
	}
	for _, p := range s.Probes {
		if len(p) > maxURL {
			return bad("probe %.80q is too long", p)
		}
	}
	for _, t := range s.Profile {
		if !ValidPath(t.Path) || t.Off < 0 || t.Len < 0 || t.Off+t.Len < 0 {
			return bad("profile has %d bytes at %d of %.300q", t.Len, t.Off, t.Path)
		}
		if t.Fresh && (!t.Write || t.Content != EmptyDigest || t.Len != 0) {
			return bad("profile has %.300q as a file that starts empty, with content", t.Path)
		}
	}
	return nil
}

func (u *Unit) encode(w *encoder) {
	w.string(u.Name)
	w.string(string(u.Kind))
	for _, cs := range [][]Command{u.Pre, u.Start, u.Post, u.Stop} {
		w.uint(uint64(len(cs)))
		for _, c := range cs {
			w.strings(c.Argv)
			w.bool(c.MayFail)
			w.bool(c.Privileged)
		}
	}
	w.string(u.PIDFile)
	w.string(u.User.Name)
	w.uint(uint64(u.User.UID))
	w.uint(uint64(u.User.GID))
	w.uint(uint64(len(u.User.Groups)))
	for _, g := range u.User.Groups {
		w.uint(uint64(g))
	}
	w.strings(u.Env)
	w.string(u.Dir)
	w.uint(uint64(u.Umask))
	w.uint(uint64(len(u.Folders)))
	for _, f := range u.Folders {
		w.string(f.Path)
		w.uint(uint64(f.Mode))
		w.uint(uint64(f.UID))
		w.uint(uint64(f.GID))
	}
	w.uint(uint64(u.Signal))
	w.uint(uint64(u.StartMax))
	w.uint(uint64(u.StopMax))
}

func (u *Unit) decode(r *decoder) {
	const u32 = 1<<32 - 1
	u.Name = r.string(MaxName, "unit name")
	u.Kind = StartKind(r.string(16, "kind"))
	for _, cs := range []*[]Command{&u.Pre, &u.Start, &u.Post, &u.Stop} {
		if n := r.count(maxCommands, 3, "commands"); n > 0 {
			*cs = make([]Command, n)
		}
		for i := range *cs {
			(*cs)[i] = Command{Argv: r.strings(maxArgs, maxArg, "arguments"), MayFail: r.bool(), Privileged: r.bool()}
		}
	}
	u.PIDFile = r.string(MaxPath, "pid file")
	u.User = User{Name: r.string(MaxName, "user"), UID: uint32(r.upTo(u32, "user")), GID: uint32(r.upTo(u32, "group"))}
	if n := r.count(64<<10, 1, "groups"); n > 0 {
		u.User.Groups = make([]uint32, n)
	}
	for i := range u.User.Groups {
		u.User.Groups[i] = uint32(r.upTo(u32, "group"))
	}
	u.Env = r.strings(maxArgs, maxArg, "variables")
	u.Dir = r.string(MaxPath, "working directory")
	u.Umask = uint32(r.upTo(0o777, "umask"))
	if n := r.count(maxArgs, 4, "folders"); n > 0 {
		u.Folders = make([]Folder, n)
	}
	for i := range u.Folders {
		u.Folders[i] = Folder{Path: r.string(MaxPath, "folder"), Mode: uint32(r.upTo(0o7777, "mode")), UID: uint32(r.upTo(u32, "owner")), GID: uint32(r.upTo(u32, "group"))}
	}
	u.Signal = int(r.upTo(64, "signal"))
	u.StartMax = int64(r.upTo(maxSize, "time"))
	u.StopMax = int64(r.upTo(maxSize, "time"))
}

func (u *Unit) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("unit %.80q: %s: %w", u.Name, fmt.Sprintf(format, args...), ErrInvalid)
	}
	switch u.Kind {
	case Simple, Forking, Oneshot, Notify:
	default:
		return bad("kind %.20q", u.Kind)
	}
	if len(u.Start) == 0 || len(u.Start) > 1 && u.Kind != Oneshot {
		return bad("%d start commands", len(u.Start))
	}
	for _, cs := range [][]Command{u.Pre, u.Start, u.Post, u.Stop} {
		if len(cs) > maxCommands {
			return bad("%d commands", len(cs))
		}
		for _, c := range cs {
			if len(c.Argv) == 0 || len(c.Argv) > maxArgs || !strings.HasPrefix(c.Argv[0], "/") {
				return bad("command %.200q does not begin with an absolute path", c.Argv)
			}
			for _, a := range c.Argv {
				if len(a) > maxArg || strings.Contains(a, "\x00") {
					return bad("argument %.80q", a)
				}
			}
		}
	}
	for _, e := range u.Env {
		if k := strings.IndexByte(e, '='); k <= 0 || len(e) > maxArg || strings.Contains(e, "\x00") {
			return bad("variable %.80q", e)
		}
	}
	if u.PIDFile != "" && !ValidPath(u.PIDFile) || u.Dir != "" && !ValidPath(u.Dir) {
		return bad("pid file %.300q or working directory %.300q is not a clean absolute path", u.PIDFile, u.Dir)
	}
	for _, f := range u.Folders {
		if !ValidPath(f.Path) || f.Mode&^0o7777 != 0 {
			return bad("folder %.300q", f.Path)
		}
	}
	if len(u.Sockets) > maxSockets {
		return bad("%d sockets", len(u.Sockets))
	}
	for i := range u.Sockets {
		if err := u.Sockets[i].validate(); err != nil {
			return bad("%v", err)
		}
	}
	if len(u.Env) > maxArgs || len(u.Folders) > maxArgs || u.Umask&^0o777 != 0 || u.Signal < 0 || u.Signal > 64 || u.StartMax < 0 || u.StopMax < 0 {
		return bad("a value is out of range")
	}
	return nil
}
