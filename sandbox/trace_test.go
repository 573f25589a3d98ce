package sandbox

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onOpen is a filter that stops for the tracer at each openat and execve and lets all
// else pass. It looks at the number of the call only: enough for a test.
func onOpen() []unix.SockFilter {
	const load, equal, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	return []unix.SockFilter{
		{Code: load, K: 0},
		{Code: equal, K: unix.SYS_OPENAT, Jt: 2},
		{Code: equal, K: unix.SYS_EXECVE, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: ret, K: unix.SECCOMP_RET_TRACE},
	}
}

// A tracer attaches before the first instruction, sees what the program opens,
// and a setuid program keeps its power although a filter is installed.
func TestTraced(t *testing.T) {
	c := testRoot(t)
	c.Mounts[0].Flags = 0 // without nosuid
	s := begin(t, c)
	output(t, s, shell("cp /usr/bin/id /id && chmod 4755 /id"))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := Command{Argv: []string{"/bin/sh", "-c", "/id -u; exit 7"}, Env: cleanEnv, UID: 33, GID: 33, Stdout: w, Stderr: w, Traced: true, Seccomp: onOpen()}
	p, err := s.Run(limit(t), cmd)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	const options = unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACECLONE
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(p.Pid()), 0, options, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	if exe, _ := os.Readlink("/proc/self/exe"); true {
		if theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.Pid())); theirs != exe {
			t.Errorf("before release process %d is %s, %v", p.Pid(), theirs, err)
		}
	}
	if err := p.Release(); err != nil {
		t.Fatal(err)
	}
	execs, calls := 0, map[uint64]int{}
	live := map[int]bool{p.Pid(): true}
	for len(live) > 0 {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WALL|unix.WNOTHREAD, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if st.Exited() || st.Signaled() {
			delete(live, pid)
			continue
		}
		live[pid] = true
		deliver := 0
		switch st.TrapCause() {
		case unix.PTRACE_EVENT_EXEC:
			execs++
		case unix.PTRACE_EVENT_SECCOMP:
			var regs unix.PtraceRegs
			if err := unix.PtraceGetRegs(pid, &regs); err != nil {
				t.Fatal(err)
			}
			calls[callNumber(&regs)]++
		default:
			if sig := st.StopSignal(); int(st)>>16 == 0 && sig != unix.SIGTRAP {
				deliver = int(sig)
			}
		}
		if err := unix.PtraceCont(pid, deliver); err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
	}
	if st, err := p.Wait(limit(t)); st.Code != 7 || err != nil {
		t.Errorf("%v, %v", st, err)
	}
	b := make([]byte, 100)
	if n, _ := r.Read(b); string(b[:n]) != "0\n" {
		t.Errorf("setuid program under a filter says uid %q", b[:n])
	}
	if execs != 2 || calls[unix.SYS_EXECVE] != 2 || calls[unix.SYS_OPENAT] < 4 {
		t.Errorf("%d programs executed, calls %v", execs, calls)
	}
}

// What can't be executed is reported by Wait and Executed.
func TestTracedFails(t *testing.T) {
	s := begin(t, testRoot(t))
	for name, c := range map[string]Command{
		"execute /no/such: no such file": {Argv: []string{"/no/such"}, Traced: true},
		"none is attached":               {Argv: []string{"/bin/true"}, Traced: true, Seccomp: onOpen()},
	} {
		p, err := s.Run(limit(t), c)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Release(); err != nil {
			t.Error(err)
		}
		if err := p.Executed(limit(t)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if st, err := p.Wait(limit(t)); err == nil || st.Code != 127 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	p, err := s.Run(limit(t), Command{Argv: []string{"/bin/true"}, Traced: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGKILL); err != nil { // instead of Release
		t.Error(err)
	}
	if st, _ := p.Wait(limit(t)); st.Signal != unix.SIGKILL {
		t.Error(st)
	}
	if err := p.Release(); err == nil {
		t.Error("released after its end")
	}
}

// A command whose stage was anticipated is what any other is; one with files of its
// own, and one whose spare has died, get a stage as without.
func TestAnticipated(t *testing.T) {
	c := testRoot(t)
	c.Anticipate = true
	s := begin(t, c)
	allow := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
	run := func(files ...*os.File) string {
		t.Helper()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd := Command{
			Argv: []string{"/bin/sh", "-c", "id -u; id -G; umask; pwd; ls /proc/self/fd | tr '\\n' ' '; exit 7"}, Env: cleanEnv,
			UID: 33, GID: 34, Groups: []uint32{35}, Umask: 0o27, Dir: "/tmp", Stdout: w, Stderr: w, Seccomp: allow, Files: files,
		}
		p, err := s.Run(limit(t), cmd)
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		status, err := p.Wait(limit(t))
		if err != nil || status.Code != 7 {
			t.Fatalf("%v, %v", status, err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	stages := func() (pids []int) {
		all, err := s.Pids()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range all {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.HasPrefix(string(b), stageName) {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	await := func(n int) []int {
		t.Helper()
		ctx := limit(t)
		for {
			if pids := stages(); len(pids) == n {
				return pids
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%d stages, want %d", len(stages()), n)
			case <-time.After(time.Millisecond):
			}
		}
	}
	await(1)
	first := run()
	if n := len(stages()); n != 0 {
		t.Errorf("%d stages are left: the spare did not become the command", n)
	}
	if second := run(); second != first || !strings.HasPrefix(first, "33\n34 35\n0027\n/tmp\n0 1 2 3 ") {
		t.Errorf("anticipated %q, else %q", first, second)
	}
	s.Anticipate()
	s.Anticipate() // one is enough
	await(1)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if with := run(null); !strings.Contains(with, "0 1 2 3 4") {
		t.Errorf("with a file of its own: %q", with)
	}
	spare := await(1)[0]
	if err := unix.Kill(spare, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for ctx := limit(t); unix.Kill(spare, 0) == nil; { // until it was reaped
		select {
		case <-ctx.Done():
			t.Fatal("the spare that was killed is still there")
		case <-time.After(time.Millisecond):
		}
	}
	if after := run(); after != first {
		t.Errorf("when the spare has died: %q", after)
	}
}
