package fs

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

func TestFatalPending(t *testing.T) {
	const nothing = "SigQ:\t1/2\nSigPnd:\t%s\nShdPnd:\t%s\nSigBlk:\t%s\nSigIgn:\t%s\nSigCgt:\t%s\n"
	mask := func(sigs ...unix.Signal) string {
		var m uint64
		for _, s := range sigs {
			m |= 1 << (s - 1)
		}
		return fmt.Sprintf("%016x", m)
	}
	none := mask()
	for what, c := range map[string]struct {
		status string
		want   bool
	}{
		"nothing":   {fmt.Sprintf(nothing, none, none, none, none, none), false},
		"killed":    {fmt.Sprintf(nothing, mask(unix.SIGKILL), none, none, none, none), true},
		"by all":    {fmt.Sprintf(nothing, none, mask(unix.SIGKILL), mask(unix.SIGKILL), none, none), true},
		"handled":   {fmt.Sprintf(nothing, none, mask(unix.SIGTERM), none, none, mask(unix.SIGTERM)), false},
		"ignored":   {fmt.Sprintf(nothing, none, mask(unix.SIGHUP), none, mask(unix.SIGHUP), none), false},
		"blocked":   {fmt.Sprintf(nothing, mask(unix.SIGTERM), none, mask(unix.SIGTERM), none, none), false},
		"default":   {fmt.Sprintf(nothing, none, mask(unix.SIGQUIT), none, none, none), true},
		"a child":   {fmt.Sprintf(nothing, none, mask(unix.SIGCHLD, unix.SIGWINCH), none, none, none), false},
		"stopped":   {fmt.Sprintf(nothing, none, mask(unix.SIGTSTP), none, none, none), false},
		"malformed": {"SigPnd:\tzz\n", true},
	} {
		if got := fatalPending(c.status); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add("36 35 98:7 /mnt1 /mnt\\0402 rw,noatime master:1 - fuse.srvfs host/web rw\n")
	f.Add("1 2 0:x / / rw - - -\n\\999 - \n36 35 0:44 /tree /a\\134b ro shared:1 - fuse.srvfs h\\040w ro")
	f.Fuzz(func(t *testing.T, s string) {
		for _, m := range parseMountinfo(strings.NewReader(s)) {
			if len(m.Mountpoint)+len(m.Name)+len(m.fstype) > len(s) {
				t.Errorf("%+v from %q", m, s)
			}
		}
	})
}

func TestMountinfo(t *testing.T) {
	got := parseMountinfo(strings.NewReader("36 35 0:44 /tree /a\\040b\\134 ro,relatime shared:1 master:2 - fuse.srvfs host/web\\040two ro\nnonsense\n"))
	want := Mounted{Mountpoint: `/a b\`, Name: "host/web two", Connection: 44, fstype: Type}
	if len(got) != 1 || got[0] != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestKernelDevice(t *testing.T) {
	for _, d := range [][2]uint32{{0, 0}, {1, 3}, {8, 300}, {4095, 1048575}, {259, 65536}} {
		got, err := kernelDevice(unix.Mkdev(d[0], d[1]))
		if want := d[1]&0xff | d[0]<<8 | d[1]&^0xff<<12; err != nil || got != want {
			t.Errorf("%v: %x, %v; want %x", d, got, err, want)
		}
	}
	for _, d := range [][2]uint32{{4096, 0}, {0, 1 << 20}, {1<<32 - 1, 1<<32 - 1}} {
		if _, err := kernelDevice(unix.Mkdev(d[0], d[1])); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%v: %v", d, err)
		}
	}
}

// What goes into the table comes out of it, whatever pages say.
func FuzzTable(f *testing.F) {
	put := func(entries ...manifest.Entry) {
		_, err := manifest.EncodeDirectory(entries, func(_ manifest.Digest, b []byte) error { f.Add(b); return nil })
		if err != nil {
			f.Fatal(err)
		}
	}
	file := manifest.Entry{Name: "b", Type: manifest.File, Mode: 0o4755, UID: 7, Links: 2, Link: 9, Size: 1 << 40, Digest: manifest.Sum([]byte("x")), Chunks: manifest.Sum([]byte("y"))}
	again := file
	again.Name = "c"
	put(manifest.Entry{Name: "a", Type: manifest.Symlink, Mode: 0o777, Links: 1, Target: "b", Xattrs: []manifest.Xattr{{Name: "trusted.x", Value: "\x00"}, {Name: "user.y"}}}, file, again,
		manifest.Entry{Name: "d", Type: manifest.CharDevice, Links: 1, Rdev: 259, Mtime: manifest.Time{Sec: -1, Nsec: 5}})
	put()
	f.Fuzz(func(t *testing.T, page []byte) {
		p, err := manifest.DecodePage(page)
		if err != nil || p.Children != nil {
			return
		}
		tab := newTable(1 + uint64(len(p.Entries)))
		defer tab.release()
		if _, err := tab.add(0, []manifest.Entry{{Type: manifest.Dir, Links: 2}}); err != nil {
			t.Fatal(err)
		}
		first, err := tab.add(0, p.Entries)
		if err != nil {
			if !errors.Is(err, manifest.ErrInvalid) || tab.len() != 1 {
				t.Fatalf("%v, and %d slots", err, tab.len())
			}
			return
		}
		tab.publish(tab.at(0), first)
		for _, e := range p.Entries {
			s, found := tab.find(tab.at(0), e.Name)
			if !found {
				t.Fatalf("%q is not found", e.Name)
			}
			n := tab.at(tab.resolve(s))
			c, r := tab.class(n), tab.record(n)
			r.name()
			links, chunks, target := r.links(), r.chunks(), string(r.target())
			if links != e.Links || chunks != e.Chunks || target != e.Target || n.digest != e.Digest || c.mode != typeBits[e.Type]|e.Mode || c.uid != e.UID || c.gid != e.GID || n.sec != e.Mtime.Sec || n.nsec != e.Mtime.Nsec {
				t.Fatalf("%+v became %+v %+v %d %v %q", e, n, c, links, chunks, target)
			}
			i := 0
			r.xattrs(func(name, value []byte) bool {
				if string(name) != e.Xattrs[i].Name || string(value) != e.Xattrs[i].Value {
					t.Fatalf("%q: attribute %d is %q=%q", e.Name, i, name, value)
				}
				i++
				return true
			})
			if i != len(e.Xattrs) {
				t.Fatalf("%q: %d attributes, want %d", e.Name, i, len(e.Xattrs))
			}
		}
	})
}

// What it costs to take a directory of 256 names into the table, and to find one.
func BenchmarkTable(b *testing.B) {
	entries := make([]manifest.Entry, 256)
	for i := range entries {
		entries[i] = manifest.Entry{Name: fmt.Sprintf("file-%05d.txt", i), Type: manifest.File, Mode: 0o644, Links: 1, Size: 5, Digest: manifest.Sum([]byte{byte(i)})}
	}
	b.Run("add", func(b *testing.B) {
		b.ReportAllocs()
		tab := newTable(maxNodes)
		defer func() { tab.release() }()
		for b.Loop() {
			if tab.used > 4<<20 {
				tab.release()
				tab = newTable(maxNodes)
			}
			if _, err := tab.add(0, entries); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("find", func(b *testing.B) {
		b.ReportAllocs()
		tab := newTable(1 << 20)
		defer tab.release()
		if _, err := tab.add(0, []manifest.Entry{{Type: manifest.Dir, Links: 2}}); err != nil {
			b.Fatal(err)
		}
		first, err := tab.add(0, entries)
		if err != nil {
			b.Fatal(err)
		}
		tab.publish(tab.at(0), first)
		i := 0
		for b.Loop() {
			if _, found := tab.find(tab.at(0), entries[i&255].Name); !found {
				b.Fatal("not found")
			}
			i++
		}
	})
}
