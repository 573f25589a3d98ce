package manifest

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// pages is a MetaSource in memory that counts its round trips.
type pages struct {
	m     map[Digest][]byte
	trips int
}

func newPages() *pages { return &pages{m: map[Digest][]byte{}} }

func (p *pages) put(d Digest, b []byte) error { p.m[d] = bytes.Clone(b); return nil }

func (p *pages) Meta(_ context.Context, ds []Digest) ([][]byte, error) {
	p.trips++
	out := make([][]byte, len(ds))
	for i, d := range ds {
		b, ok := p.m[d]
		if !ok {
			return nil, fmt.Errorf("page %v: %w", d, ErrNotFound)
		}
		out[i] = b
	}
	return out, nil
}

func sample() []Entry {
	entries := []Entry{
		{Name: "big", Type: File, Mode: 0o644, Links: 1, Size: ChunkSize + 1, Digest: Sum([]byte("big")), Chunks: Sum([]byte("list"))},
		{Name: "dir", Type: Dir, Mode: 0o1777, UID: 33, GID: 33, Mtime: Time{-1, 999999999}, Links: 3, Digest: Sum([]byte("dir"))},
		{Name: "empty", Type: File, Links: 1, Digest: EmptyDigest},
		{Name: "fifo", Type: FIFO, Mode: 0o600, Links: 1},
		{Name: "line\nfeed", Type: Symlink, Mode: 0o777, Links: 1, Target: "../\xff"},
		{Name: "null", Type: CharDevice, Mode: 0o666, Links: 1, Rdev: 0x103},
		{Name: "su", Type: File, Mode: 0o4755, Links: 2, Link: 7, Size: 5, Digest: Sum([]byte("hello")), Mtime: Time{1700000000, 123456789},
			Xattrs: []Xattr{{"security.capability", "\x01\x00\x00\x02"}, {"user.note", ""}}},
		{Name: "\xff\xfe", Type: BlockDevice, Links: 1, Rdev: 0x800},
	}
	return entries
}

func TestDirectoryRoundTrip(t *testing.T) {
	p := newPages()
	want := sample()
	d, err := EncodeDirectory(want, p.put)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadDirectory(context.Background(), p, d, 100)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// The golden vectors hold the encoding still: a change of these bytes is a
// change of every digest that anyone has stored.
func TestGoldenVectors(t *testing.T) {
	p := newPages()
	d, err := EncodeDirectory(sample(), p.put)
	if err != nil {
		t.Fatal(err)
	}
	const wantDir = "sha256:cc383e69fba06ffec5f4db21f00e576d88fafa5587c51a1f1cb9dd0a2b557074"
	if d.String() != wantDir {
		t.Errorf("directory digest %v, want %v; page %x", d, wantDir, p.m[d])
	}
	empty, err := EncodeDirectory(nil, p.put)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(p.m[empty]); got != "0000" {
		t.Errorf("empty directory encodes as %s", got)
	}
	one, err := EncodeDirectory([]Entry{{Name: "a", Type: File, Mode: 0o644, UID: 1, GID: 2, Mtime: Time{3, 4}, Links: 1, Size: 5, Digest: Sum([]byte("hello"))}}, p.put)
	if err != nil {
		t.Fatal(err)
	}
	const wantOne = "0001" + "01" + "0161" + "a403" + "01" + "02" + "06" + "04" + "01" + "05" + "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" + "00"
	if got := hex.EncodeToString(p.m[one]); got != wantOne {
		t.Errorf("one file encodes as\n%s, want\n%s", got, wantOne)
	}
	s := sampleSnapshot()
	sd, err := s.Digest()
	if err != nil {
		t.Fatal(err)
	}
	const wantSnap = "sha256:306c5c59b023c7bed51fd50017ac4d489601334e2d18e61079b82301c61e1b24"
	if sd.String() != wantSnap {
		t.Errorf("snapshot digest %v, want %v", sd, wantSnap)
	}
}

func manyEntries(n int) []Entry {
	entries := make([]Entry, n)
	for i := range entries {
		entries[i] = Entry{Name: fmt.Sprintf("msg-%07d", i), Type: File, Mode: 0o600, Links: 1, Size: 5, Digest: Sum([]byte("hello"))}
	}
	return entries
}

func TestLargeDirectoryMovesLittle(t *testing.T) {
	p := newPages()
	entries := manyEntries(100_000)
	before, err := EncodeDirectory(entries, p.put)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadDirectory(context.Background(), p, before, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, entries) {
		t.Fatal("entries differ after a round trip")
	}
	if p.trips > 4 {
		t.Errorf("%d round trips to read it", p.trips)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		at := rng.IntN(len(entries))
		for what, changed := range map[string][]Entry{
			"add":    slices.Insert(slices.Clone(entries), at+1, Entry{Name: entries[at].Name + "x", Type: FIFO, Links: 1}),
			"remove": slices.Delete(slices.Clone(entries), at, at+1),
		} {
			moved := 0
			if _, err := EncodeDirectory(changed, func(d Digest, b []byte) error {
				if p.m[d] == nil {
					moved += len(b)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			// Pages vary in length: 64 KiB is the promise for the typical one, and
			// the longest possible page bounds the rest.
			if moved > 200<<10 {
				t.Errorf("%s at %d: %d bytes of pages changed", what, at, moved)
			}
		}
	}
}

func TestEncodeDirectoryRefuses(t *testing.T) {
	ok := Entry{Name: "a", Type: FIFO, Links: 1}
	with := func(change func(*Entry)) []Entry { e := ok; change(&e); return []Entry{e} }
	cases := map[string][]Entry{
		"dot dot":         with(func(e *Entry) { e.Name = ".." }),
		"slash":           with(func(e *Entry) { e.Name = "a/b" }),
		"absolute":        with(func(e *Entry) { e.Name = "/etc" }),
		"no name":         with(func(e *Entry) { e.Name = "" }),
		"NUL":             with(func(e *Entry) { e.Name = "a\x00" }),
		"long name":       with(func(e *Entry) { e.Name = strings.Repeat("x", 256) }),
		"twice":           {ok, ok},
		"unsorted":        {{Name: "b", Type: FIFO, Links: 1}, ok},
		"socket":          with(func(e *Entry) { e.Type = 7 }),
		"mode":            with(func(e *Entry) { e.Mode = 0o10000 }),
		"link unnumbered": with(func(e *Entry) { e.Links = 2 }),
		"dir no digest":   with(func(e *Entry) { e.Type = Dir }),
		"file no digest":  with(func(e *Entry) { e.Type = File }),
		"big no chunks":   with(func(e *Entry) { e.Type = File; e.Size = ChunkSize + 1; e.Digest = Sum([]byte("x")) }),
		"empty target":    with(func(e *Entry) { e.Type = Symlink }),
		"redirect":        with(func(e *Entry) { e.Xattrs = []Xattr{{"trusted.overlay.redirect", "/etc/shadow"}} }),
		"xattr order":     with(func(e *Entry) { e.Xattrs = []Xattr{{"user.b", ""}, {"user.a", ""}} }),
	}
	for name, entries := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := EncodeDirectory(entries, newPages().put); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
			// The decoder must refuse the same from a peer that wrote it anyway.
			p := Page{Entries: entries}
			if _, err := DecodePage(p.encode()); !errors.Is(err, ErrInvalid) {
				t.Errorf("decoder: got %v", err)
			}
		})
	}
}

func TestReadDirectoryRefusesHostileIndex(t *testing.T) {
	p := newPages()
	add := func(pg Page) Digest { b := pg.encode(); d := Sum(b); _ = p.put(d, b); return d }
	leaf := func(names ...string) PageRef {
		var pg Page
		for _, n := range names {
			pg.Entries = append(pg.Entries, Entry{Name: n, Type: FIFO, Links: 1})
		}
		return PageRef{First: names[0], Digest: add(pg), Count: uint64(len(names))}
	}
	ab, cd := leaf("a", "b"), leaf("c", "d")
	overlap := leaf("a", "z")
	lie := cd
	lie.Count = 1 << 40
	wrongFirst := cd
	wrongFirst.First = "bb"
	deep := add(Page{Children: []PageRef{ab, cd}})
	mixed := PageRef{First: "a", Digest: deep, Count: 4}
	for range 10 {
		deep = add(Page{Children: []PageRef{{First: "a", Digest: deep, Count: 4}, {First: "e", Digest: leaf("e").Digest, Count: 1}}})
	}
	for name, d := range map[string]Digest{
		"overlapping pages":   add(Page{Children: []PageRef{overlap, cd}}),
		"count lies":          add(Page{Children: []PageRef{ab, lie}}),
		"first name lies":     add(Page{Children: []PageRef{ab, wrongFirst}}),
		"index beside leaf":   add(Page{Children: []PageRef{mixed, {First: "e", Digest: leaf("e").Digest, Count: 1}}}),
		"eleven levels":       deep,
		"more than the limit": leaf("1", "2", "3", "4", "5", "6", "7").Digest,
	} {
		if _, err := ReadDirectory(context.Background(), p, d, 6); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func sampleSnapshot() *Snapshot {
	return &Snapshot{
		Service: "web", Sequence: 12, Created: 1700000000123456789, Source: "source.example",
		Root:   Entry{Type: Dir, Mode: 0o755, Links: 20, Digest: Sum([]byte("root"))},
		Totals: Totals{Entries: 10, Files: 5, Bytes: 1234, Dirs: 3},
		Units: []Unit{{
			Name: "nginx.service", Kind: Forking,
			Pre:     []Command{{Argv: []string{"/usr/sbin/nginx", "-t"}, Privileged: true}},
			Start:   []Command{{Argv: []string{"/usr/sbin/nginx", "-g", "daemon on; master_process on;"}}},
			Stop:    []Command{{Argv: []string{"/sbin/start-stop-daemon", "--stop"}, MayFail: true}},
			PIDFile: "/run/nginx.pid", User: User{Name: "www-data", UID: 33, GID: 33, Groups: []uint32{4}},
			Env: []string{"PATH=/usr/bin", "EMPTY="}, Dir: "/", Umask: 0o22,
			Folders: []Folder{{Path: "/run/nginx", Mode: 0o755, UID: 33, GID: 33}},
			Signal:  15, StartMax: 90e9, StopMax: 5e9,
		}},
		Probes:   []string{"http://127.0.0.1/"},
		Profile:  []Touch{{Path: "/usr/sbin/nginx", Content: Sum([]byte("nginx")), Len: 5}, {Path: "/var/log/x", Content: EmptyDigest, Write: true}},
		Metadata: []Digest{Sum([]byte("root"))},
	}
}

func sampleSockets() []Socket {
	return []Socket{
		{Name: "web.socket", Network: "tcp", Address: ":80", Backlog: 4096, NonBlock: true, PassCred: true},
		{Name: "web.socket", Network: "udp6", Address: "[::1]:443", ReusePort: true},
		{Name: "control", Network: "unix", Address: "/run/web/control", UID: 33, GID: 34, Mode: 0o660, DirMode: 0o755, FreeBind: true},
		{Name: "control", Network: "unixgram", Address: "@web"},
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	want := sampleSnapshot()
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeSnapshot(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for n := range b {
		if _, err := DecodeSnapshot(b[:n]); !errors.Is(err, ErrInvalid) {
			t.Fatalf("cut to %d of %d bytes: got %v", n, len(b), err)
		}
	}
	if _, err := DecodeSnapshot(append(b, 0)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a byte too many: got %v", err)
	}
}

// A snapshot has a later format only if a reader of those before would misread it.
func TestSnapshotFormats(t *testing.T) {
	s := sampleSnapshot()
	encode := func(format string) []byte {
		b, err := s.Encode()
		if err != nil || !bytes.HasPrefix(b, []byte("srvfs snapshot "+format+"\n")) {
			t.Fatalf("%.20q %v", b, err)
		}
		if got, err := DecodeSnapshot(b); err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("got  %+v, %v\nwant %+v", got, err, s)
		}
		return b
	}
	all := [][]byte{encode("1")}
	s.Profile[1].Fresh = true
	all = append(all, encode("2"))
	s.Order = Sum([]byte("order"))
	all = append(all, encode("3"))
	s.Profile[1].Fresh = false
	encode("3")
	s.Units[0].Sockets = sampleSockets()
	all = append(all, encode("4"))
	s.Order = Digest{}
	encode("4")
	// None says what another's bytes mean.
	for i, b := range all {
		for _, other := range "1234" {
			if other == rune('1'+i) {
				continue
			}
			b[len(snapshotMagic)] = byte(other)
			if _, err := DecodeSnapshot(b); !errors.Is(err, ErrInvalid) {
				t.Errorf("%.20q, which has format %d: got %v", b, i+1, err)
			}
		}
	}
	all[0][len(snapshotMagic)] = '5'
	if _, err := DecodeSnapshot(all[0]); err == nil || !strings.Contains(err.Error(), "format that this version does not know") {
		t.Errorf("a fifth format: %v", err)
	}
}

func TestSnapshotRefuses(t *testing.T) {
	socket := func(s *Snapshot) *Socket {
		s.Units[0].Sockets = sampleSockets()
		return &s.Units[0].Sockets[0]
	}
	for name, change := range map[string]func(*Snapshot){
		"name leads out":     func(s *Snapshot) { s.Service = "../etc" },
		"no sequence":        func(s *Snapshot) { s.Sequence = 0 },
		"root is a file":     func(s *Snapshot) { s.Root = sample()[0] },
		"profile leads out":  func(s *Snapshot) { s.Profile[0].Path = "/../etc/shadow" },
		"relative program":   func(s *Snapshot) { s.Units[0].Start[0].Argv[0] = "nginx" },
		"no start":           func(s *Snapshot) { s.Units[0].Start = nil },
		"pid file":           func(s *Snapshot) { s.Units[0].PIDFile = "run/../../x" },
		"variable":           func(s *Snapshot) { s.Units[0].Env = []string{"=x"} },
		"kind":               func(s *Snapshot) { s.Units[0].Kind = "dbus" },
		"fresh, not written": func(s *Snapshot) { s.Profile[1].Fresh, s.Profile[1].Write = true, false },
		"fresh with content": func(s *Snapshot) { s.Profile[0].Fresh, s.Profile[0].Write = true, true },
		"negative length":    func(s *Snapshot) { s.Profile[0].Off, s.Profile[0].Len = 1<<63-1, 1 },
		"network":            func(s *Snapshot) { socket(s).Network = "netlink" },
		"no port":            func(s *Snapshot) { socket(s).Address = "127.0.0.1:0" },
		"no address":         func(s *Snapshot) { socket(s).Address = "localhost:80" },
		"one interface":      func(s *Snapshot) { socket(s).Address = "[fe80::1%eth0]:80" },
		"IPv4 for IPv6":      func(s *Snapshot) { *socket(s) = Socket{Name: "x", Network: "tcp6", Address: "127.0.0.1:80"} },
		"socket leads out":   func(s *Snapshot) { *socket(s) = Socket{Name: "x", Network: "unix", Address: "/run/../../x"} },
		"socket's path": func(s *Snapshot) {
			*socket(s) = Socket{Name: "x", Network: "unix", Address: "/" + strings.Repeat("x", 107)}
		},
		"socket's name":  func(s *Snapshot) { socket(s).Name = "a:b" },
		"unnamed socket": func(s *Snapshot) { *socket(s) = Socket{Name: "x", Network: "unix", Address: "@"} },
	} {
		s := sampleSnapshot()
		change(s)
		if _, err := s.Encode(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestHasher(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, size := range []int{0, 1, ChunkSize - 1, ChunkSize, ChunkSize + 1, 3 * ChunkSize, 3*ChunkSize + 17} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		h := NewHasher()
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+rng.IntN(2*ChunkSize))
			_, _ = h.Write(rest[:n])
			rest = rest[n:]
		}
		d, n, list := h.Sum()
		if d != Sum(data) || n != int64(size) {
			t.Errorf("%d bytes: digest %v of %d bytes", size, d, n)
		}
		if size <= ChunkSize {
			if list != nil {
				t.Errorf("%d bytes: a chunk list", size)
			}
			continue
		}
		got, err := DecodeChunkList(list.Encode(), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range got {
			if c != Sum(data[i*ChunkSize:min((i+1)*ChunkSize, size)]) {
				t.Errorf("%d bytes: chunk %d differs", size, i)
			}
		}
		if _, err := DecodeChunkList(list.Encode()[1:], int64(size)); !errors.Is(err, ErrInvalid) {
			t.Errorf("cut chunk list: %v", err)
		}
	}
}

func TestParseDigest(t *testing.T) {
	d := Sum([]byte("x"))
	for _, s := range []string{d.String(), d.Hex()} {
		if got, err := ParseDigest(s); err != nil || got != d {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "sha256:", d.Hex()[1:], strings.ToUpper(d.Hex()), "sha512:" + d.Hex(), strings.Repeat("g", 64), "../" + d.Hex()[3:]} {
		if _, err := ParseDigest(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzDecodePage(f *testing.F) {
	p := newPages()
	_, _ = EncodeDirectory(sample(), p.put)
	_, _ = EncodeDirectory(manyEntries(1000), p.put)
	for _, b := range p.m {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		pg, err := DecodePage(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("not ErrInvalid: %v", err)
			}
			return
		}
		if got := pg.encode(); !bytes.Equal(got, b) {
			t.Fatalf("a second encoding of one page: %x and %x", b, got)
		}
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	s := sampleSnapshot()
	for _, fresh := range []bool{false, true} {
		s.Profile[1].Fresh = fresh
		b, _ := s.Encode()
		f.Add(b)
	}
	s.Order = Sum([]byte("order"))
	b, _ := s.Encode()
	f.Add(b)
	s.Units[0].Sockets = sampleSockets()
	b, _ = s.Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeSnapshot(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("not ErrInvalid: %v", err)
			}
			return
		}
		got, err := s.Encode()
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("a second encoding of one snapshot (%v): %x and %x", err, b, got)
		}
	})
}

// Reading a page must not leave an object of garbage for each name in it: a walk
// of a large tree would leave millions.
func TestDecodePageAllocates(t *testing.T) {
	leaf := longLeaf(t)
	if n := testing.AllocsPerRun(10, func() { _, _ = DecodePage(leaf) }); n > 10 {
		t.Errorf("a page takes %v allocations", n)
	}
}

// longLeaf returns a page of many entries.
func longLeaf(t testing.TB) []byte {
	p := newPages()
	if _, err := EncodeDirectory(manyEntries(100_000), p.put); err != nil {
		t.Fatal(err)
	}
	var leaf []byte
	for _, body := range p.m {
		if body[0] == leafPage && len(body) > len(leaf) && len(body) < 64<<10 {
			leaf = body
		}
	}
	if page, err := DecodePage(leaf); err != nil || len(page.Entries) < 200 {
		t.Fatalf("%d entries, %v", len(page.Entries), err)
	}
	return leaf
}

func BenchmarkDecodePage(b *testing.B) {
	leaf := longLeaf(b)
	b.SetBytes(int64(len(leaf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodePage(leaf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHasher(b *testing.B) {
	data := make([]byte, 8<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		h := NewHasher()
		_, _ = h.Write(data)
		h.Sum()
	}
}
