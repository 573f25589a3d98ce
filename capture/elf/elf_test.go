package elf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"srvfs/capture/rootfs"
)

// made says what an ELF file contains.
type made struct {
	class   elf.Class
	machine elf.Machine
	interp  string
	tags    []tag
}

type tag struct {
	tag elf.DynTag
	val string
}

func needs(names ...string) []tag {
	var tags []tag
	for _, n := range names {
		tags = append(tags, tag{elf.DT_NEEDED, n})
	}
	return tags
}

// bytes returns a file with a header, one PT_LOAD over everything, PT_DYNAMIC
// and PT_INTERP, and no section headers.
func (m made) bytes() []byte {
	if m.class == 0 {
		m.class, m.machine = elf.ELFCLASS64, elf.EM_X86_64
	}
	wide := m.class == elf.ELFCLASS64
	o := binary.LittleEndian
	strs, dyn := []byte{0}, []byte{}
	word := func(b []byte, v uint64) []byte {
		if wide {
			return o.AppendUint64(b, v)
		}
		return o.AppendUint32(b, uint32(v))
	}
	for _, t := range m.tags {
		dyn = word(word(dyn, uint64(t.tag)), uint64(len(strs)))
		strs = append(append(strs, t.val...), 0)
	}
	hsize, psize, entry := 64, 56, 16
	if !wide {
		hsize, psize, entry = 52, 32, 8
	}
	const base = 0x400000
	at := uint64(hsize + 3*psize)
	interpAt := at
	strAt := interpAt + uint64(len(m.interp)) + 1
	dynAt := strAt + uint64(len(strs))
	dyn = word(word(dyn, uint64(elf.DT_STRTAB)), base+strAt)
	dyn = word(word(dyn, uint64(elf.DT_STRSZ)), uint64(len(strs)))
	dyn = append(dyn, make([]byte, entry)...)
	size := dynAt + uint64(len(dyn))

	b := append([]byte(elf.ELFMAG), byte(m.class), 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = o.AppendUint16(b, uint16(elf.ET_DYN))
	b = o.AppendUint16(b, uint16(m.machine))
	b = o.AppendUint32(b, 1)
	b = word(word(word(b, 0), uint64(hsize)), 0) // entry, phoff, shoff
	b = o.AppendUint32(b, 0)
	for _, v := range []int{hsize, psize, 3, 0, 0, 0} {
		b = o.AppendUint16(b, uint16(v))
	}
	ph := func(kind elf.ProgType, off, vaddr, n uint64) {
		if m.interp == "" && kind == elf.PT_INTERP {
			kind = elf.PT_NULL
		}
		b = o.AppendUint32(b, uint32(kind))
		if wide {
			b = o.AppendUint32(b, 5)
		}
		b = word(word(word(b, off), vaddr), vaddr)
		b = word(word(b, n), n)
		if !wide {
			b = o.AppendUint32(b, 5)
		}
		b = word(b, 1)
	}
	ph(elf.PT_LOAD, 0, base, size)
	ph(elf.PT_INTERP, interpAt, base+interpAt, uint64(len(m.interp))+1)
	ph(elf.PT_DYNAMIC, dynAt, base+dynAt, uint64(len(dyn)))
	b = append(append(b, m.interp...), 0)
	return append(append(b, strs...), dyn...)
}

const ld = "/lib64/ld-linux-x86-64.so.2"

// world writes files (text, or made ELF files; "-> target" is a link) and
// returns a Linker for them.
func world(t testing.TB, files map[string]any) *Linker {
	t.Helper()
	dir := t.TempDir()
	for name, v := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var b []byte
		switch v := v.(type) {
		case made:
			b = v.bytes()
		case []byte:
			b = v
		case string:
			if target, ok := strings.CutPrefix(v, "-> "); ok {
				if err := os.Symlink(target, p); err != nil {
					t.Fatal(err)
				}
				continue
			}
			b = []byte(v)
		}
		if err := os.WriteFile(p, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := rootfs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return New(root)
}

func TestSearchOrder(t *testing.T) {
	lib := made{}
	wrong := made{class: elf.ELFCLASS32, machine: elf.EM_386}
	prog := func(tags ...tag) made { return made{interp: ld, tags: tags} }
	need := tag{elf.DT_NEEDED, "liba.so"}
	for name, c := range map[string]struct {
		files   map[string]any
		env     []string
		want    []string // without the interpreter
		missing []string
	}{
		"default folders": {files: map[string]any{"p": prog(need), "usr/lib/liba.so": lib, "lib/x86_64-linux-gnu/liba.so": lib}, want: []string{"/lib/x86_64-linux-gnu/liba.so"}},
		"lib64":           {files: map[string]any{"p": prog(need), "usr/lib64/liba.so": lib, "lib/liba.so": lib}, want: []string{"/usr/lib64/liba.so"}},
		"other class is passed over": {files: map[string]any{"p": prog(need), "lib/x86_64-linux-gnu/liba.so": wrong, "usr/lib/liba.so": lib},
			want: []string{"/usr/lib/liba.so"}},
		"damaged is passed over": {files: map[string]any{"p": prog(need), "lib64/liba.so": "\x7fELF", "lib/liba.so": lib}, want: []string{"/lib/liba.so"}},
		"only of another class":  {files: map[string]any{"p": prog(need), "lib/liba.so": wrong}, missing: []string{"liba.so, needed by /p"}},
		"rpath before library path": {files: map[string]any{"p": prog(need, tag{elf.DT_RPATH, "/r"}), "r/liba.so": lib, "l/liba.so": lib},
			env: []string{"LD_LIBRARY_PATH=/l"}, want: []string{"/r/liba.so"}},
		"library path before runpath": {files: map[string]any{"p": prog(need, tag{elf.DT_RUNPATH, "/r"}), "r/liba.so": lib, "l/liba.so": lib},
			env: []string{"LD_LIBRARY_PATH=/none:/l"}, want: []string{"/l/liba.so"}},
		"runpath hides rpath": {files: map[string]any{"p": prog(need, tag{elf.DT_RPATH, "/r"}, tag{elf.DT_RUNPATH, "/none"}), "r/liba.so": lib}, missing: []string{"liba.so, needed by /p"}},
		"rpath is inherited": {files: map[string]any{"p": prog(need, tag{elf.DT_RPATH, "/r"}), "r/liba.so": made{tags: needs("libb.so")}, "r/libb.so": lib},
			want: []string{"/r/liba.so", "/r/libb.so"}},
		"runpath is not": {files: map[string]any{"p": prog(need, tag{elf.DT_RUNPATH, "/r"}), "r/liba.so": made{tags: needs("libb.so")}, "r/libb.so": lib},
			want: []string{"/r/liba.so"}, missing: []string{"libb.so, needed by /r/liba.so"}},
		"a file with runpath inherits nothing": {files: map[string]any{"p": prog(need, tag{elf.DT_RPATH, "/r"}), "r/liba.so": made{tags: append(needs("libb.so"), tag{elf.DT_RUNPATH, "/none"})}, "r/libb.so": lib},
			want: []string{"/r/liba.so"}, missing: []string{"libb.so, needed by /r/liba.so"}},
		"origin is the real folder": {files: map[string]any{"p": "-> /opt/x/bin/prog", "opt/x/bin/prog": prog(need, tag{elf.DT_RUNPATH, "$ORIGIN/../lib"}), "opt/x/lib/liba.so": lib},
			want: []string{"/opt/x/lib/liba.so"}},
		"origin of a library":   {files: map[string]any{"p": prog(need), "lib/liba.so": made{tags: append(needs("libb.so"), tag{elf.DT_RUNPATH, "${ORIGIN}/priv"})}, "lib/priv/libb.so": lib}, want: []string{"/lib/liba.so", "/lib/priv/libb.so"}},
		"origin can't leave":    {files: map[string]any{"p": prog(need, tag{elf.DT_RPATH, "$ORIGIN/../../.."}), "liba.so": lib}, want: []string{"/liba.so"}},
		"lib and platform":      {files: map[string]any{"p": prog(need, tag{elf.DT_RUNPATH, "/o/$LIB/${PLATFORM}"}), "o/lib64/x86_64/liba.so": lib}, want: []string{"/o/lib64/x86_64/liba.so"}},
		"a relative folder":     {files: map[string]any{"p": prog(need, tag{elf.DT_RUNPATH, "r:"}), "r/liba.so": lib, "liba.so": lib}, missing: []string{"liba.so, needed by /p"}},
		"a name with a slash":   {files: map[string]any{"p": prog(tag{elf.DT_NEEDED, "/x/liba.so"}), "x/liba.so": lib}, want: []string{"/x/liba.so"}},
		"soname is loaded once": {files: map[string]any{"p": prog(needs("liba.so", "libb.so", "liba.so.1")...), "lib/liba.so": made{tags: []tag{{elf.DT_SONAME, "liba.so.1"}}}, "lib/libb.so": lib, "lib/liba.so.1": lib}, want: []string{"/lib/liba.so", "/lib/libb.so"}},
		"links to one file":     {files: map[string]any{"p": prog(needs("liba.so", "libb.so")...), "lib/liba.so": lib, "lib/libb.so": "-> liba.so"}, want: []string{"/lib/liba.so"}},
		"a cycle":               {files: map[string]any{"p": prog(need), "lib/liba.so": made{tags: needs("libb.so")}, "lib/libb.so": made{tags: needs("liba.so")}}, want: []string{"/lib/liba.so", "/lib/libb.so"}},
		"breadth first":         {files: map[string]any{"p": prog(needs("liba.so", "libb.so")...), "lib/liba.so": made{tags: needs("libc.so")}, "lib/libb.so": lib, "lib/libc.so": lib}, want: []string{"/lib/liba.so", "/lib/libb.so", "/lib/libc.so"}},
		"preload": {files: map[string]any{"p": prog(need), "lib/liba.so": lib, "x/pre.so": lib, "lib/env.so": lib, "etc/ld.so.preload": "# first\n/x/pre.so\n"},
			env: []string{"LD_PRELOAD=env.so"}, want: []string{"/lib/env.so", "/x/pre.so", "/lib/liba.so"}},
		"ld.so.conf without a cache": {files: map[string]any{"p": prog(needs("liba.so", "libb.so")...), "etc/ld.so.conf": "include ld.so.conf.d/*.conf # all\n/c1\n", "etc/ld.so.conf.d/x.conf": "/c2:/c3\n", "c1/liba.so": lib, "c3/libb.so": lib},
			want: []string{"/c1/liba.so", "/c3/libb.so"}},
		"ld.so.conf includes itself": {files: map[string]any{"p": prog(), "etc/ld.so.conf": "include /etc/ld.so.conf\n"}},
		"cache": {files: map[string]any{"p": prog(need), "etc/ld.so.cache": makeCache(entry{"liba.so", "/c32/liba.so", ""}, entry{"liba.so", "/c/liba.so", ""}), "c32/liba.so": wrong, "c/liba.so": lib, "lib/liba.so": lib},
			want: []string{"/c/liba.so"}},
		"cache is out of date": {files: map[string]any{"p": prog(need), "etc/ld.so.cache": makeCache(entry{"liba.so", "/gone/liba.so", ""}), "lib/liba.so": lib}, want: []string{"/lib/liba.so"}},
		"cache is damaged":     {files: map[string]any{"p": prog(need), "etc/ld.so.cache": "rubbish", "etc/ld.so.conf": "/c\n", "c/liba.so": lib}, want: []string{"/c/liba.so"}},
		"musl": {files: map[string]any{"p": made{interp: "/lib/ld-musl-x86_64.so.1", tags: needs("liba.so", "libc.musl-x86_64.so.1")}, "lib/ld-musl-x86_64.so.1": lib,
			"etc/ld-musl-x86_64.path": "/m1\n/m2:/m3\n", "m3/liba.so": made{tags: needs("libb.so", "libpthread.so.0")}, "m1/libb.so": lib, "lib/liba.so": lib}, want: []string{"/m3/liba.so", "/m1/libb.so"}},
		"musl inherits runpath": {files: map[string]any{"p": made{interp: "/lib/ld-musl-x86_64.so.1", tags: append(needs("liba.so"), tag{elf.DT_RUNPATH, "/r"})}, "lib/ld-musl-x86_64.so.1": lib,
			"r/liba.so": made{tags: needs("libb.so")}, "r/libb.so": lib}, want: []string{"/r/liba.so", "/r/libb.so"}},
		"32 bits": {files: map[string]any{"p": made{class: elf.ELFCLASS32, machine: elf.EM_386, tags: needs("liba.so")}, "lib/x86_64-linux-gnu/liba.so": lib, "lib/i386-linux-gnu/liba.so": wrong}, want: []string{"/lib/i386-linux-gnu/liba.so"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.files["lib64/ld-linux-x86-64.so.2"] = lib
			l := world(t, c.files)
			libs, missing, err := l.Needed("/p", c.env)
			if err != nil {
				t.Fatal(err)
			}
			var got, gone []string
			for _, n := range libs {
				if !strings.HasPrefix(n.Reason, "ELF interpreter") {
					got = append(got, n.Path)
				}
			}
			for _, m := range missing {
				gone = append(gone, m.String())
			}
			if !slices.Equal(got, c.want) || !slices.Equal(gone, c.missing) {
				t.Errorf("found %q, missing %q; want %q, %q", got, gone, c.want, c.missing)
			}
		})
	}
}

func TestVariants(t *testing.T) {
	lib := made{}
	l := world(t, map[string]any{
		"p": made{interp: ld, tags: needs("liba.so", "libb.so", "libv.so")}, "lib64/ld-linux-x86-64.so.2": lib,
		"lib/liba.so": lib, "lib/glibc-hwcaps/x86-64-v2/liba.so": lib, "lib/glibc-hwcaps/x86-64-v4/liba.so": made{tags: needs("libonly4.so")},
		"etc/ld.so.cache": makeCache(entry{"libb.so", "/c/b2", "x86-64-v2"}, entry{"libb.so", "/c/b", ""}), "c/b2": lib, "c/b": lib, "lib/libv.so": lib,
	})
	libs, _, err := l.Needed("/p", nil)
	if err != nil {
		t.Fatal(err)
	}
	chosen, all := map[string]string{}, map[string]bool{}
	for _, n := range libs {
		all[n.Path] = true
		if !n.Variant {
			if chosen[n.Name] != "" {
				t.Errorf("%s is both %s and %s", n.Name, chosen[n.Name], n.Path)
			}
			chosen[n.Name] = n.Path
		}
	}
	for _, p := range []string{"/lib/liba.so", "/lib/glibc-hwcaps/x86-64-v2/liba.so", "/lib/glibc-hwcaps/x86-64-v4/liba.so", "/c/b2", "/c/b"} {
		if !all[p] {
			t.Errorf("%s is not among %v", p, libs)
		}
	}
	level := 3
	for i := range 3 {
		if supported(elf.EM_X86_64, i) {
			level = i
			break
		}
	}
	wantA := []string{"/lib/glibc-hwcaps/x86-64-v4/liba.so", "/lib/glibc-hwcaps/x86-64-v2/liba.so", "/lib/glibc-hwcaps/x86-64-v2/liba.so", "/lib/liba.so"}[level]
	if chosen["liba.so"] != wantA || chosen["libv.so"] != "/lib/libv.so" {
		t.Errorf("chosen %v, want %s", chosen, wantA)
	}
}

func TestNeededErrors(t *testing.T) {
	l := world(t, map[string]any{"static": made{}, "text": "#!/bin/sh\n", "noterp": made{interp: "/none", tags: needs("x")}, "empty": "", "dir/x": ""})
	for p, want := range map[string]error{"/text": ErrNotELF, "/none": fs.ErrNotExist, "/empty": ErrNotELF, "/dir": ErrNotELF} {
		for range 2 { // the second time from memory
			if _, _, err := l.Needed(p, nil); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", p, err, want)
			}
		}
	}
	if libs, missing, err := l.Needed("/static", nil); len(libs)+len(missing) > 0 || err != nil {
		t.Errorf("static: %v %v %v", libs, missing, err)
	}
	if _, missing, err := l.Needed("/noterp", nil); len(missing) != 2 || missing[0].Name != "/none" || err != nil {
		t.Errorf("no interpreter: %v %v", missing, err)
	}
	if !l.IsELF("/static") || l.IsELF("/text") {
		t.Error("IsELF")
	}
}

func TestInterpreters(t *testing.T) {
	l := world(t, map[string]any{
		"usr/bin/sh": made{}, "bin": "-> usr/bin", "usr/bin/env": made{}, "usr/bin/python3": "-> /opt/py", "opt/py": "#!/bin/sh -e\n",
		"a": "#! /bin/sh -x\n", "b": "#!/usr/bin/env -S python3 -u\n", "c": "#!/usr/bin/env A=1 nosuch\n", "plain": "echo\n", "gone": "#!/bin/bash\n", "self": "#!/self\n", "cut": "#!/" + strings.Repeat("x", 300) + "\n",
	})
	for p, c := range map[string]struct {
		want []string
		err  error
	}{
		"/a": {[]string{"/bin/sh"}, nil}, "/b": {[]string{"/usr/bin/env", "/usr/bin/python3", "/bin/sh"}, nil}, "/c": {[]string{"/usr/bin/env"}, nil},
		"/plain": {nil, nil}, "/usr/bin/sh": {nil, nil}, "/gone": {[]string{"/bin/bash"}, fs.ErrNotExist}, "/cut": {nil, ErrScript},
		"/self": {slices.Repeat([]string{"/self"}, maxScripts), ErrScript}, "/opt": {nil, fs.ErrPermission},
	} {
		if got, err := Interpreters(l.root, p); !slices.Equal(got, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%s: %q %v, want %q %v", p, got, err, c.want, c.err)
		}
	}
}

type entry struct{ name, path, hwcap string }

// makeCache writes ld.so.cache as ldconfig does.
func makeCache(entries ...entry) []byte {
	o := binary.LittleEndian
	b := make([]byte, 48+24*len(entries))
	copy(b, cacheMagic)
	o.PutUint32(b[20:], uint32(len(entries)))
	text := func(s string) uint32 {
		b = append(append(b, s...), 0)
		return uint32(len(b) - len(s) - 1)
	}
	var hwcaps []uint32
	for i, e := range entries {
		at := 48 + 24*i
		key, value := text(e.name), text(e.path)
		o.PutUint32(b[at:], 0x303)
		o.PutUint32(b[at+4:], key)
		o.PutUint32(b[at+8:], value)
		if e.hwcap != "" {
			o.PutUint64(b[at+16:], hwcapExtension|uint64(len(hwcaps)))
			hwcaps = append(hwcaps, text(e.hwcap))
		}
	}
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	o.PutUint32(b[32:], uint32(len(b)))
	b = o.AppendUint32(b, extensionMagic)
	b = o.AppendUint32(b, 1)
	for _, v := range []uint32{tagHwcaps, 0, uint32(len(b)) + 16, uint32(4 * len(hwcaps))} {
		b = o.AppendUint32(b, v)
	}
	for _, h := range hwcaps {
		b = o.AppendUint32(b, h)
	}
	return b
}

func TestCacheOfHost(t *testing.T) {
	b, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Fatal(err)
	}
	names, err := parseCache(b)
	if err != nil || len(names["libc.so.6"]) == 0 {
		t.Errorf("%d names, libc.so.6 %v, %v", len(names), names["libc.so.6"], err)
	}
	old := append([]byte("ld.so-1.7.0\x00\x01\x00\x00\x00"), make([]byte, 12+4)...) // one entry of the older form before it
	if both, err := parseCache(append(old, b...)); err != nil || len(both) != len(names) {
		t.Errorf("after the older form: %d names, %v", len(both), err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(made{interp: ld, tags: append(needs("liba.so", "libb.so"), tag{elf.DT_RUNPATH, "$ORIGIN"}, tag{elf.DT_SONAME, "x"})}.bytes())
	f.Add(made{class: elf.ELFCLASS32, machine: elf.EM_386, tags: needs("liba.so")}.bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := parse(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, ErrNotELF) {
				t.Fatal(err)
			}
			return
		}
		for _, n := range g.needed {
			if n == "" || len(n) >= maxString {
				t.Fatalf("%q", n)
			}
		}
	})
}

func FuzzCache(f *testing.F) {
	f.Add(makeCache(entry{"liba.so", "/c/liba.so", ""}, entry{"liba.so", "/c/v3/liba.so", "x86-64-v3"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		names, err := parseCache(b)
		if err != nil && !errors.Is(err, errCache) {
			t.Fatal(err)
		}
		for _, cs := range names {
			for _, c := range cs {
				if !filepath.IsAbs(c.path) {
					t.Fatal(c)
				}
			}
		}
	})
}

func FuzzShebang(f *testing.F) {
	f.Add([]byte("#! /bin/sh -e\n"))
	f.Add([]byte("#!/usr/bin/env"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxShebang {
			b = b[:maxShebang]
		}
		interp, arg, ok, err := parseShebang(b)
		if ok && err == nil && (interp == "" || strings.ContainsAny(interp+arg, "\n\x00")) {
			t.Fatalf("%q %q", interp, arg)
		}
	})
}
