package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"srvfs/cmd/srvfs/internal/control"
)

// do sends a call to the daemon, which is started if none runs.
func (p *program) do(ctx context.Context, op string, call control.Call, out control.Stream, result any) error {
	for attempt := 0; ; attempt++ {
		err := control.Do(ctx, p.state, op, call, out, result)
		if !errors.Is(err, control.ErrNoDaemon) || attempt == 3 {
			return err
		}
		if err := p.startDaemon(ctx); err != nil {
			return err
		}
	}
}

// startMax is how long a daemon may take until it answers: it cleans up what a
// killed one left, and opens the store.
const startMax = 30 * time.Second

// maxLog is the size in bytes above which daemon.log becomes daemon.log.1 when a
// daemon starts.
const maxLog = 16 << 20

// startDaemon starts a daemon in a session of its own and returns when it
// answers, or when another one does.
func (p *program) startDaemon(ctx context.Context) error {
	if err := os.MkdirAll(p.state, 0o700); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	logFile := filepath.Join(p.state, "daemon.log")
	if info, err := os.Stat(logFile); err == nil && info.Size() > maxLog {
		if err := os.Rename(logFile, logFile+".1"); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// Not CommandContext: the daemon outlives this command.
	cmd := exec.Command(self, "daemon", "--on-demand", "--state", p.state, "--host-root", p.hostRoot, "--deadline", p.deadline.String(), "--reads", p.reads)
	cmd.Args[0] = "srvfs"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(r, 4096)).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	timer := time.NewTimer(startMax)
	defer timer.Stop()
	select {
	case line := <-answer:
		switch line {
		case "ready":
			return cmd.Process.Release()
		case alreadyRunning:
			_ = cmd.Wait()
			return p.awaitSocket(ctx)
		}
		_ = cmd.Wait()
		if line == "" {
			line = "it ended at once"
		}
		return fmt.Errorf("the daemon does not start: %s; see %s", line, logFile)
	case <-timer.C:
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("the daemon does not answer after %v; see %s", startMax, logFile)
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return ctx.Err()
	}
}

// awaitSocket waits for a daemon that another command is starting, or for one
// that is ending to be gone: the caller then tries again.
func (p *program) awaitSocket(ctx context.Context) error {
	deadline := time.After(startMax)
	tick := time.NewTicker(20 * time.Millisecond) // a socket announces itself in no other way
	defer tick.Stop()
	for {
		err := control.Do(ctx, p.state, "status", control.Call{}, nil, nil)
		if !errors.Is(err, control.ErrNoDaemon) {
			return nil
		}
		if free, err := lockIsFree(p.state); err != nil || free {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("the daemon that holds %s does not answer: %w", p.state, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
