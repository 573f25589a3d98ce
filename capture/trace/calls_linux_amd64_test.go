package trace

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// kernelCalls returns the system calls that x/sys knows for amd64, by name.
func kernelCalls(t *testing.T) map[string]int {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatalf("find golang.org/x/sys: %v", err)
	}
	file := filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_amd64.go")
	tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	ast.Inspect(tree, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
			return true
		}
		name, isCall := strings.CutPrefix(spec.Names[0].Name, "SYS_")
		value, isLit := spec.Values[0].(*ast.BasicLit)
		if isCall && isLit {
			nr, err := strconv.Atoi(value.Value)
			if err != nil {
				t.Fatal(err)
			}
			found[strings.ToLower(name)] = nr
		}
		return true
	})
	if len(found) < 380 {
		t.Fatalf("only %d system calls in %s", len(found), file)
	}
	return found
}

// Every system call that the toolchain knows has been looked at, and stands in
// the table once, under its own name.
func TestTableIsComplete(t *testing.T) {
	named := tracedCalls()
	seen := make(map[int]string)
	for name, nr := range kernelCalls(t) {
		if nr >= maxCalls || !knownCalls[nr] {
			t.Errorf("system call %s (%d) is not in the table: does it take a path?", name, nr)
			continue
		}
		if c, ok := named[nr]; ok && c.name != name {
			t.Errorf("system call %d is %s, in the table %s", nr, name, c.name)
		}
		seen[nr] = name
	}
	count := make(map[int]int)
	for nr := range named {
		count[nr]++
	}
	for _, nr := range append(append([]int(nil), refusedCalls...), pathlessCalls...) {
		count[nr]++
	}
	for nr, n := range count {
		if n != 1 {
			t.Errorf("system call %d (%s) is in %d lists", nr, seen[nr], n)
		}
		if seen[nr] == "" {
			t.Errorf("system call %d is in the table, but there is none", nr)
		}
	}
}

// Every system call of the installed kernel headers is known too.
func TestTableKnowsHeaders(t *testing.T) {
	define := regexp.MustCompile(`^#define __NR_(\w+) (\d+)$`)
	for _, name := range []string{"/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"} {
		f, err := os.Open(name)
		if err != nil {
			continue // a machine without a C compiler
		}
		defer func() { _ = f.Close() }()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if m := define.FindStringSubmatch(lines.Text()); m != nil {
				if nr, _ := strconv.Atoi(m[2]); nr >= maxCalls || !knownCalls[nr] {
					t.Errorf("%s: system call %s (%d) is not in the table", name, m[1], nr)
				}
			}
		}
	}
}

// Names that only path calls have must not be in the list of those that pass.
func TestTableSuspects(t *testing.T) {
	path := regexp.MustCompile(`^(open|creat|l?stat|statx|newfstatat|access|readlink|exec|ch(dir|root|mod|own)|lchown|` +
		`mk(dir|nod)|rmdir|(un)?link|symlink|rename|u?mount|truncate|swapo|l?(set|get|list|remove)xattr|bind|connect)|at2?$|file_[gs]etattr`)
	passes := map[string]bool{
		"open_by_handle_at": true,                    // by handle
		"statmount":         true,                    // by mount id
		"fstat":             true, "cachestat": true, // by descriptor
		"ustat": true, "shmat": true, "create_module": true,
	}
	for name, nr := range kernelCalls(t) {
		if path.MatchString(name) && calls[nr] == nil && !passes[name] {
			t.Errorf("%s passes untraced", name)
		}
	}
}

// machine loads the filter into an interpreter, which reads big-endian words
// where the kernel reads its own.
func machine(t *testing.T) func(arch uint32, nr uint32, args [6]uint64) verdict {
	t.Helper()
	var raw []bpf.RawInstruction
	for _, f := range filter(false, false) {
		raw = append(raw, bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K})
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter has instructions that are not in BPF")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return func(arch, nr uint32, args [6]uint64) verdict {
		var data []byte
		word := func(v uint32) { data = append(data, byte(v>>24), byte(v>>16), byte(v>>8), byte(v)) }
		word(nr)
		word(arch)
		word(0)
		word(0)
		for _, a := range args {
			word(uint32(a))
			word(uint32(a >> 32))
		}
		v, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		return verdict(uint32(v))
	}
}

func TestFilterRules(t *testing.T) {
	run := machine(t)
	for nr := range uint32(2 * maxCalls) {
		want := ruling(int(nr), false)
		if want == unlessUnaddressed {
			want = pass
		}
		if got := run(unix.AUDIT_ARCH_X86_64, nr, [6]uint64{}); got != want {
			t.Errorf("call %d: %#x, want %#x", nr, got, want)
		}
		if got := run(unix.AUDIT_ARCH_I386, nr, [6]uint64{}); got != stop {
			t.Errorf("i386 call %d: %#x, want a stop", nr, got)
		}
		if got := run(unix.AUDIT_ARCH_X86_64, nr|x32Bit, [6]uint64{}); got != stop {
			t.Errorf("x32 call %d: %#x, want a stop", nr, got)
		}
	}
	for _, test := range []struct {
		nr   uint32
		args [6]uint64
		want verdict
	}{
		{unix.SYS_READ, [6]uint64{}, pass},
		{unix.SYS_OPENAT, [6]uint64{}, stop},
		{unix.SYS_IO_URING_SETUP, [6]uint64{}, refuse},
		{unix.SYS_SENDTO, [6]uint64{5: 0}, pass},
		{unix.SYS_SENDTO, [6]uint64{5: 16}, stop},
		{0xffffffff, [6]uint64{}, refuse},
		{0x7fffffff, [6]uint64{}, stop},
	} {
		if got := run(unix.AUDIT_ARCH_X86_64, test.nr, test.args); got != test.want {
			t.Errorf("call %#x %v: %#x, want %#x", test.nr, test.args, got, test.want)
		}
	}
}

// Jumps of more than 255 instructions take another form.
func TestFilterLongJumps(t *testing.T) {
	var spans []span
	for i := range uint32(2000) {
		spans = append(spans, span{i, pass + verdict(i)&1})
	}
	var raw []bpf.RawInstruction
	raw = append(raw, bpf.RawInstruction{Op: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS})
	for _, f := range search(spans) {
		raw = append(raw, bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K})
	}
	if len(raw) > unix.BPF_MAXINSNS+1 {
		t.Fatalf("%d instructions", len(raw))
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("not BPF")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		v, err := vm.Run([]byte{0, 0, byte(i >> 8), byte(i)})
		if err != nil || verdict(uint32(v)) != spans[i].do {
			t.Fatalf("%d: %#x, %v", i, v, err)
		}
	}
}
