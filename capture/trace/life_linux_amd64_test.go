package trace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/sandbox"
)

func TestThreads(t *testing.T) {
	w := newWorld(t)
	all, tr := w.trace(w.actor("threads"))
	w.noGaps(tr)
	text, err := os.ReadFile(filepath.Join(w.shared, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	process := 0
	for i := range 8 {
		path := fmt.Sprintf("/thread/%d", i)
		n := 0
		for _, a := range all {
			if a.Path != path {
				continue
			}
			n++
			if process == 0 {
				process = a.Pid
			}
			if a.Pid != process {
				t.Errorf("%s by %d, want the process %d, not a thread", path, a.Pid, process)
			}
		}
		if n != 1 {
			t.Errorf("%s is there %d times, want once", path, n)
		}
	}
	if strconv.Itoa(process) == string(text) {
		t.Errorf("pid %d is that of the sandbox, want the caller's", process)
	}

	all, _ = w.trace(w.actor("thread-chroot"))
	w.want(all, "stat /first", "stat /tmp/jail/second in /tmp/jail")
}

func TestThreadExec(t *testing.T) {
	w := newWorld(t)
	for range 10 {
		all, tr := w.trace(w.actor("thread-exec"))
		w.noGaps(tr)
		w.want(all, "exec /bin/cat", "open /etc/hosts")
		for _, a := range all {
			if a.Pid != all[0].Pid {
				t.Errorf("%s by %d, want %d", look(a), a.Pid, all[0].Pid)
			}
		}
	}
}

func TestSpawn(t *testing.T) {
	w := newWorld(t)
	all, tr := w.trace(w.actor("spawn"))
	w.noGaps(tr)
	w.want(all, "exec /bin/cat", "open /etc/hosts")

	all, tr = w.trace(command("/usr/bin/perl", "-e", `
		my $child = syscall(58); # vfork
		if ($child == 0) { open(F, "<", "/vfork/child"); syscall(231, 0) }
		waitpid $child, 0; open(F, "<", "/vfork/parent");`))
	w.noGaps(tr)
	w.want(all, "open /vfork/child", "open /vfork/parent")
}

// A daemon goes on being traced after the first process has ended.
func TestDaemon(t *testing.T) {
	w := newWorld(t)
	if err := unix.Mkfifo(filepath.Join(w.shared, "go"), 0o666); err != nil {
		t.Fatal(err)
	}
	tr := New(w.sb)
	p, err := tr.Start(w.ctx, shell(`(setsid sh -c 'read x < /mnt/go; cd /etc; cat hostname' >/dev/null 2>&1 &) ; exit 3`))
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(w.ctx); err != nil || status.Code != 3 {
		t.Fatalf("%v, %v", status, err)
	}
	w.eventually("the daemon waits", func() bool { return slices.Contains(looks(tr.Accesses()), "open /mnt/go") })
	if slices.Contains(looks(tr.Accesses()), "open /etc/hostname") {
		t.Fatal("the daemon did not wait")
	}
	if err := os.WriteFile(filepath.Join(w.shared, "go"), []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	all, err := tr.Finish(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	w.want(all, "open /etc/hostname")
}

// Commands one after the other, and together, share one list.
func TestSeveralCommands(t *testing.T) {
	w := newWorld(t)
	tr := New(w.sb)
	for i := range 3 {
		p, err := tr.Start(w.ctx, shell(fmt.Sprintf("test -e /first/%d; test -e /same; true", i)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Wait(w.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(w.shared, "hold2"), 0o666); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := tr.Start(w.ctx, shell("read x < /mnt/hold2")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.sb.Stop(w.ctx); err != nil {
		t.Fatal(err)
	}
	all, err := tr.Finish(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	w.want(all, "stat /first/0", "stat /first/1", "stat /first/2", "stat /same")
	have := looks(all)
	slices.Sort(have)
	if len(slices.Compact(have)) != len(all) {
		t.Error("an access is there twice")
	}
	if again, err := tr.Finish(w.ctx); err != nil || len(again) != len(all) {
		t.Errorf("the second time %d accesses, %v", len(again), err)
	}
	if _, err := tr.Start(w.ctx, shell("true")); !errors.Is(err, sandbox.ErrEnded) {
		t.Errorf("start in a stopped sandbox: %v", err)
	}
}

// Job control works as without a tracer: the parent sees its child stopped, and
// it stays so until SIGCONT.
func TestStopAndContinue(t *testing.T) {
	w := newWorld(t)
	script := w.script("stop.pl", `
		use POSIX ":sys_wait_h";
		for my $signal ("STOP", "TSTP", "TTIN") {
			my $child = fork;
			if ($child == 0) { setpgrp; kill $signal, $$; open(F, "<", "/after/$signal"); exit 7 }
			waitpid($child, WUNTRACED) == $child && WIFSTOPPED(${^CHILD_ERROR_NATIVE}) or die "not stopped by $signal";
			open(F, "<", "/while/$signal");
			waitpid($child, WUNTRACED|WNOHANG) == 0 or die "did not stay";
			kill "CONT", $child;
			waitpid($child, 0) == $child && $? >> 8 == 7 or die "status $?";
		}
		$SIG{USR1} = sub { open(F, "<", "/handler") };
		kill "USR1", $$;
		local $SIG{TRAP} = sub { open(F, "<", "/trap") };
		kill "TRAP", $$;
	`)
	c := command("/usr/bin/perl", script)
	all, tr := w.trace(c)
	w.noGaps(tr)
	w.want(all, "open /after/STOP", "open /while/TSTP", "open /after/TTIN", "open /handler", "open /trap")
	place := func(l string) int { return slices.Index(looks(all), l) }
	if place("open /while/STOP") > place("open /after/STOP") {
		t.Error("the stopped process went on before it was told to")
	}
}

// Processes that are killed in whatever state they are leave nothing behind.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	script := w.script("kill.pl", `
		srand 1;
		for (1..30) {
			my @children;
			for (1..8) {
				my $child = fork;
				if ($child == 0) { for (;;) { if (!fork) { exec "/bin/cat", "/etc/hosts" } wait; stat "/x/$_" for 1..20 } }
				push @children, $child;
			}
			select undef, undef, undef, rand 0.01;
			kill "KILL", @children;
			waitpid $_, 0 for @children;
		}
	`)
	c := command("/usr/bin/perl", script)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	c.Stdout = null
	all, tr := w.trace(c)
	w.noGaps(tr)
	w.want(all, "stat /x/1", "open /etc/hosts")
	// Orphans are reaped by the sandbox, after they have been by the tracer.
	w.eventually("all are gone", func() bool { return len(w.ours()) == 0 })
	for _, th := range tr.threads {
		if len(th.tasks) != 0 || th.rootMoves != 0 {
			t.Errorf("%d tasks are left, %d of them in chroot", len(th.tasks), th.rootMoves)
		}
	}
}

// restless is a tree of processes: working, waiting, stopped, a daemon.
const restless = `
	(setsid sh -c 'echo ready > /mnt/ready; sleep 1000' &)
	sh -c 'kill -STOP $$' &
	sh -c 'while :; do cat /etc/hosts > /dev/null; done' &
	read x < /mnt/never`

func (w *world) startRestless(ctx context.Context, tr *Tracer) *sandbox.Process {
	w.Helper()
	if err := unix.Mkfifo(filepath.Join(w.shared, "never"), 0o666); err != nil {
		w.Fatal(err)
	}
	p, err := tr.Start(ctx, shell(restless))
	if err != nil {
		w.Fatal(err)
	}
	w.eventually("all have started", func() bool {
		have := looks(tr.Accesses())
		return slices.Contains(have, "open write /mnt/ready") && slices.Contains(have, "open /etc/hosts") &&
			slices.Contains(have, "open /mnt/never") && slices.ContainsFunc(w.ours(), func(p int) bool { return state(p) == 't' })
	})
	return p
}

func TestContextEnds(t *testing.T) {
	w := newWorld(t)
	tr := New(w.sb)
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	p := w.startRestless(ctx, tr)
	start := time.Now()
	cancel()
	if status, err := p.Wait(w.ctx); err != nil || status.Signal != unix.SIGKILL {
		t.Errorf("%v, %v", status, err)
	}
	if _, err := tr.Finish(w.ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	w.eventually("all are gone", func() bool { return len(w.ours()) == 0 })
}

func TestFinishContextEnds(t *testing.T) {
	w := newWorld(t)
	tr := New(w.sb)
	w.startRestless(w.ctx, tr)
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	all, err := tr.Finish(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	w.want(all, "open /etc/hosts")
	w.eventually("all are gone", func() bool { return len(w.ours()) == 0 })
}

func TestSandboxStops(t *testing.T) {
	w := newWorld(t)
	tr := New(w.sb)
	p := w.startRestless(w.ctx, tr)
	if err := w.sb.Stop(w.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Finish(w.ctx); err != nil {
		t.Error(err)
	}
	if status, _ := p.Wait(w.ctx); status.Success() {
		t.Errorf("%v", status)
	}
}

func TestStartFails(t *testing.T) {
	w := newWorld(t)
	tr := New(w.sb)
	if _, err := tr.Start(w.ctx, command("/no/such/program")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want not exist", err)
	}
	if _, err := tr.Start(w.ctx, command("/etc")); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("error %v, want permission", err)
	}
	c := shell("true")
	c.Dir = "/no/such/folder"
	if _, err := tr.Start(w.ctx, c); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want not exist", err)
	}
	ended, cancel := context.WithCancel(w.ctx)
	cancel()
	if _, err := tr.Start(ended, shell("true")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want cancelled", err)
	}
	all, err := tr.Finish(w.ctx)
	if err != nil {
		t.Error(err)
	}
	// What was looked for in vain is what the caller wants to see.
	w.want(all, "exec /no/such/program", "exec /etc", "dir /no/such/folder")
	w.eventually("all are gone", func() bool { return len(w.ours()) == 0 })
}

// The tracer takes only what is its own from wait: other children of this
// program are seen to end.
func TestOtherChildren(t *testing.T) {
	w := newWorld(t)
	tr := New(w.sb)
	if err := unix.Mkfifo(filepath.Join(w.shared, "never"), 0o666); err != nil {
		t.Fatal(err)
	}
	var started []*exec.Cmd
	for i := range 50 {
		cmd := exec.Command("sh", "-c", "exit "+strconv.Itoa(i%7))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		started = append(started, cmd)
		if i%10 == 0 { // so that threads that have forked become candidates
			if _, err := tr.Start(w.ctx, shell("read x < /mnt/never")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, cmd := range started {
		err := cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = nil
		}
		if err != nil || cmd.ProcessState.ExitCode() != i%7 {
			t.Errorf("child %d: %v, %v", i, cmd.ProcessState, err)
		}
	}
	if err := w.sb.Stop(w.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Finish(w.ctx); err != nil {
		t.Fatal(err)
	}
}
