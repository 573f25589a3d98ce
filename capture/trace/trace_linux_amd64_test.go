package trace

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestShell(t *testing.T) {
	w := newWorld(t)
	all, tr := w.trace(shell("cd /etc && cat hosts >/dev/null; cat ../etc/passwd > /tmp/x"))
	w.noGaps(tr)
	w.want(all, "exec /bin/sh", "dir /etc", "exec /usr/bin/cat", "open /etc/hosts", "open /etc/passwd",
		"open write /tmp/x", "stat /usr/sbin/cat" /* not there: failed look-ups count */)
	pids := make(map[int]bool)
	for i, a := range all {
		if a.Seq != i {
			t.Errorf("access %d has number %d", i, a.Seq)
		}
		pids[a.Pid] = true
	}
	if len(pids) != 3 {
		t.Errorf("processes %v, want the shell and two cats", pids)
	}
}

// Every call of the table is stopped, and its paths are found, whether absolute
// or relative.
func TestEveryCall(t *testing.T) {
	w := newWorld(t)
	for prefix, found := range map[string]string{"/probe/": "/probe/", "probe/": "/probe/", "../etc/./": "/etc/"} {
		c := w.actor("calls", prefix)
		all, tr := w.trace(c)
		w.noGaps(tr)
		var lines []string
		for nr, call := range tracedCalls() {
			for i, a := range call.args {
				l := call.op.String()
				if a.write {
					l += " write"
				}
				if a.last == keeps || a.last == onlyIf {
					l += " nofollow"
				}
				lines = append(lines, fmt.Sprintf("%s %s%s/%d", l, found, call.name, i))
			}
			if nr == unix.SYS_SYMLINK {
				for _, a := range all {
					if a.Path == "/target/of/symlink" {
						t.Error("the target of a symbolic link is not a path that was used")
					}
				}
			}
		}
		w.want(all, lines...)
	}
}

func TestSpecialCalls(t *testing.T) {
	w := newWorld(t)
	all, tr := w.trace(w.actor("special"))
	w.want(all,
		"open /sp/open/read", "open write /sp/open/write", "open write nofollow /sp/open/both",
		"open write /sp/open/trunc", "open write nofollow /etc/open/create", "dir /sp/open/dir", "open write /sp/open/tmp",
		"open write /etc/open2", "open /etc/open2/in/root in /etc", "open nofollow /etc/open2/nosym",
		"socket write nofollow /sp/bind", "socket /sp/connect", "socket /sp/relative", "socket /sp/sendmsg", "socket /sp/sendmmsg",
		"other /sp/mount/source", "other /sp/mount/target", "other /sp/bind/source", "other /sp/bind/target",
		"other /sp/word/target", "other /sp/remount", "other /sp/fsconfig", "other /etc/sp/fspath",
		"other /sp/quota/device", "other /sp/quota/file", "other write /sp/bpf/pin", "other /sp/bpf/get",
		"other /etc/from", "other nofollow /etc/to", "change /sp/link/followed", "change write nofollow /etc/new",
		"stat /etc/both", "stat /sp/lstat", "exec /usr/bin/cat", "dir /sp/pivot/new", "dir /sp/pivot/old",
	)
	for _, a := range all {
		for _, bad := range []string{"closed", "socket/", "abstract", "word", "tmpfs", "(deleted)"} {
			if strings.HasSuffix(a.Path, bad) || strings.Contains(a.Path, "in/socket") {
				t.Errorf("not a path of a file: %s", look(a))
			}
		}
	}
	if gaps := tr.Gaps(); len(gaps) != 1 || gaps[0].Kind != Moved {
		t.Errorf("gaps %v, want one for pivot_root", gaps)
	}
}

func TestEdges(t *testing.T) {
	w := newWorld(t)
	all, tr := w.trace(w.actor("edges"))
	w.noGaps(tr)
	w.want(all, "stat /edge/crossing", "stat /edge/last",
		"stat /tmp/odd (deleted)/in-odd ", "stat /tmp/up-odd ",
		"stat /tmp/real (deleted)/deep/in-real", "stat /tmp/real (deleted)/up-real",
		"stat /tmp/new\nline/in-new\n", "stat /tmp/up-new\n", "stat /tmp/gone/in-gone", "stat /tmp/up-gone")
	longest := 0
	for _, a := range all {
		longest = max(longest, len(a.Path))
		if a.Path == "/edge/bad" {
			t.Error("a path without an end was taken")
		}
	}
	if longest != pathMax-1 {
		t.Errorf("the longest path has %d bytes, want %d", longest, pathMax-1)
	}
}

func TestChroot(t *testing.T) {
	w := newWorld(t)
	script := w.script("chroot.pl", `
		mkdir "/tmp/jail"; mkdir "/tmp/jail/etc"; mkdir "/tmp/jail/deep";
		open(F, "<", "/before");
		open(D, "<", "/etc");
		chroot "/tmp/jail" or die; chdir "/" or die;
		open(F, "<", "/etc/hosts"); open(F, "<", "../../rel");
		chdir "deep"; open(F, "<", "../x"); open(F, "<", "../../../y"); open(F, "<", "/l/../../z");
		if (my $child = fork) { waitpid $child, 0 } else { open(F, "<", "/child"); exit 0 }
		my ($o, $p) = ("outside", "../../outer");
		syscall(257, fileno(D), $o, 0); syscall(257, fileno(D), $p, 0); # openat
		chroot "/deep" or die; open(F, "<", "/twice");
		syscall(81, fileno(D)); # fchdir: the classic way out
		chroot "."; open(F, "<", "/out");
	`)
	all, tr := w.trace(command("/usr/bin/perl", script))
	w.noGaps(tr)
	w.want(all, "open /before", "dir /tmp/jail", "dir /tmp/jail in /tmp/jail",
		"open /tmp/jail/etc/hosts in /tmp/jail", "open /tmp/jail/rel in /tmp/jail",
		"dir /tmp/jail/deep in /tmp/jail", "open /tmp/jail/x in /tmp/jail", "open /tmp/jail/y in /tmp/jail",
		"open /tmp/jail/l/../../z in /tmp/jail", "open /tmp/jail/child in /tmp/jail",
		"open /etc/outside in /tmp/jail", "open /outer in /tmp/jail",
		"open /tmp/jail/deep/twice in /tmp/jail/deep", "open /etc/out in /etc")
}

// A setuid program gets its rights under trace.
func TestSetuid(t *testing.T) {
	w := newWorld(t)
	w.run(shell("cp /usr/bin/id /usr/bin/id-of-root && chmod 4755 /usr/bin/id-of-root"))
	r, o, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	c := command("/usr/bin/id-of-root", "-u")
	c.UID, c.GID, c.Stdout = 65534, 65534, o
	all, tr := w.trace(c)
	_ = o.Close()
	w.noGaps(tr)
	w.want(all, "exec /usr/bin/id-of-root")
	b := make([]byte, 100)
	n, _ := r.Read(b)
	if got := string(b[:n]); got != "0\n" {
		t.Errorf("id prints %q, want root's number", got)
	}
}

func TestRefused(t *testing.T) {
	w := newWorld(t)
	_, tr := w.trace(w.actor("refused"))
	var got []string
	for _, g := range tr.Gaps() {
		if g.Program != "/mnt/actor" {
			t.Errorf("gap of %q", g.Program)
		}
		got = append(got, fmt.Sprintln(g.Kind == Unknown, g.Kind == Foreign, g.Call))
	}
	if want := []string{"true false 511\n", "false true x32\n"}; !slices.Equal(got, want) {
		t.Errorf("gaps %q, want %q", got, want)
	}
}

func TestOwnFilter(t *testing.T) {
	w := newWorld(t)
	all, tr := w.trace(w.actor("own-filter"))
	w.noGaps(tr)
	w.want(all, "stat /after/filter")
}

// elf returns a program that consists of code, for the class and machine of
// an ELF header: 1 and 3 for i386, 2 and 62 for x86-64.
func elf(class byte, machine uint16, code []byte) string {
	const base = 0x400000
	var b bytes.Buffer
	le := func(n int, values ...uint64) {
		for _, v := range values {
			for i := range n {
				b.WriteByte(byte(v >> (8 * i)))
			}
		}
	}
	word, head, prog := 4, uint64(52), uint64(32)
	if class == 2 {
		word, head, prog = 8, 64, 56
	}
	b.WriteString("\x7fELF")
	b.Write([]byte{class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	le(2, 2, uint64(machine))
	le(4, 1)
	le(word, base+head+prog, head, 0)
	le(4, 0)
	le(2, head, prog, 1, 0, 0, 0)
	size := head + prog + uint64(len(code))
	le(4, 1)
	if class == 2 {
		le(4, 5)
		le(8, 0, base, base, size, size, 4096)
	} else {
		le(4, 0, base, base, size, size, 5, 4096)
	}
	b.Write(code)
	return b.String()
}

// A 32-bit program, and 32-bit calls of a 64-bit one, fail and are told of.
func TestForeign(t *testing.T) {
	code := []byte{
		0xb8, 20, 0, 0, 0, // mov eax, getpid
		0xcd, 0x80, // int 0x80
		0x89, 0xc3, // mov ebx, eax
		0xf7, 0xdb, // neg ebx
		0xb8, 0xe7, 0, 0, 0, // mov eax, 231 (exit_group of x86-64)
		0x89, 0xdf, // mov edi, ebx
		0x0f, 0x05, // syscall
		0xf4, // hlt: a fault
	}
	w := newWorld(t)
	// A kernel without 32-bit calls refuses such a program, and kills who makes one.
	native := filepath.Join(t.TempDir(), "elf32")
	if err := os.WriteFile(native, []byte(elf(1, 3, code)), 0o755); err != nil {
		t.Fatal(err)
	}
	refused := errors.Is(exec.Command(native).Run(), unix.ENOEXEC)
	for name, program := range map[string]string{"elf32": elf(1, 3, code), "elf64": elf(2, 62, code)} {
		tr := New(w.sb)
		path := w.script(name, program)
		p, err := tr.Start(w.ctx, command(path))
		if refused && name == "elf32" {
			if !errors.Is(err, unix.ENOEXEC) {
				t.Errorf("the kernel refuses %s, and the tracer says %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		status, err := p.Wait(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		// The 64-bit program exits with what getpid failed with.
		if name == "elf64" && !refused && status.Code != int(unix.ENOSYS) || status.Success() {
			t.Errorf("%s ended with %v", name, status)
		}
		if _, err := tr.Finish(w.ctx); err != nil {
			t.Fatal(err)
		}
		gaps := tr.Gaps()
		if refused && len(gaps) == 0 {
			continue // it was killed before it could do anything unseen
		}
		if len(gaps) != 1 || gaps[0].Kind != Foreign || gaps[0].Program != path || gaps[0].Call != "i386" {
			t.Errorf("%s: gaps %v", name, gaps)
		}
	}
}

// The paths are the same if the caller itself is in a chroot.
func TestFromChroot(t *testing.T) {
	if os.Getenv("TRACE_IN_CHROOT") != "" {
		TestShell(t)
		TestChroot(t)
		return
	}
	script := `set -e
		d=$1; mount -t tmpfs none $d; mkdir $d/r $d/none
		mount -t overlay none -o lowerdir=$d/none:/ $d/r; cd $d/r
		for f in proc dev; do mount --rbind /$f $f; done
		mount -t tmpfs none tmp; cp $2 tmp/test
		exec chroot . /tmp/test -test.run '^TestFromChroot$'`
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "sh", "-c", script, "sh", t.TempDir(), program)
	cmd.Env = append(os.Environ(), "TRACE_IN_CHROOT=1", "TMPDIR=/tmp")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestBounded(t *testing.T) {
	r := newRecord()
	r.limit = 3
	for i := range 5 {
		if ok := r.add([]byte(fmt.Sprint("/", i)), "/", Open, arg{}, false, 1); ok != (i < 3) {
			t.Errorf("access %d: room %v", i, ok)
		}
	}
	if !r.add([]byte("/1"), "/", Open, arg{}, false, 2) || len(r.accesses()) != 3 {
		t.Error("what is known needs no room")
	}
	known := []byte("/2")
	if n := testing.AllocsPerRun(100, func() { r.add(known, "/", Open, arg{}, false, 2) }); n != 0 {
		t.Errorf("%v allocations for what is known", n)
	}
	for i := range 2 * maxGaps {
		r.gap(Gap{Kind: Unreadable, Call: strconv.Itoa(i)})
	}
	if n := len(r.allGaps()); n != maxGaps {
		t.Errorf("%d gaps", n)
	}
}

func TestNames(t *testing.T) {
	if s := Op(200).String(); s != "op(200)" || Change.String() != "change" || Exec.String() != "exec" {
		t.Error(s)
	}
	if s := GapKind(99).String(); s != "gap(99)" {
		t.Error(s)
	}
	g := Gap{Kind: Foreign, Program: "/opt/old", Call: "i386", Detail: "x"}
	if s := g.String(); s != "/opt/old: 32-bit programs are not supported: their system calls were refused (i386): x" {
		t.Error(s)
	}
}
