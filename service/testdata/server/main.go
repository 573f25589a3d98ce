// Server is what the tests run in a root: one static program that is a server
// of each kind, and its own client.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Report says as what the server runs.
type Report struct {
	UID, GID, PID int
	Groups        []int
	Umask         int
	Dir, Host     string
	Env           []string
	Null          string // what went wrong with /dev/null
}

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func run(verb string, args []string) error {
	switch verb {
	case "serve": // SOCKET
		return serve(args[0], nil)
	case "stubborn": // SOCKET: it does not end when it is asked to
		signal.Ignore(syscall.SIGTERM)
		return serve(args[0], nil)
	case "notify": // SOCKET
		return serve(args[0], func() error { return notify("READY=1\nSTATUS=at your service\n") })
	case "handover": // SOCKET: says that its child is the main process, and ends
		pid, err := spawn("serve", args[0])
		if err != nil {
			return err
		}
		return notify(fmt.Sprintf("MAINPID=%d\nREADY=1\n", pid))
	case "daemon": // SOCKET PIDFILE
		pid, err := spawn("serve", args[0])
		if err != nil || args[1] == "" {
			return err
		}
		return os.WriteFile(args[1], []byte(strconv.Itoa(pid)+"\n"), 0o644)
	case "guard": // SOCKET PIDFILE: leaves a guard behind, and the guard's child is the server
		if _, err := spawn("guarded", args...); err != nil {
			return err
		}
		return await(args[1])
	case "guarded":
		c := exec.Command(os.Args[0], "serve", args[0])
		if err := c.Start(); err != nil {
			return err
		}
		if err := await(args[0]); err != nil {
			return err
		}
		if err := os.WriteFile(args[1], []byte(strconv.Itoa(c.Process.Pid)), 0o644); err != nil {
			return err
		}
		return c.Wait()
	case "listen": // ADDRESS
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			return err
		}
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			_ = c.Close()
		}
	case "ask": // SOCKET
		_, err := ask(args[0])
		return err
	case "die": // SOCKET: tells the server to end
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		_, err = io.WriteString(c, "die\n")
		return err
	case "fail": // STATUS WORDS
		fmt.Println(strings.Join(args[1:], " "))
		code, _ := strconv.Atoi(args[0])
		os.Exit(code)
	case "write": // FILE WORDS
		return os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")), 0o644)
	case "append": // FILE WORDS
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		_, err = io.WriteString(f, strings.Join(args[1:], " ")+"\n")
		return err
	case "same": // FILE WORDS
		b, err := os.ReadFile(args[0])
		if want := strings.Join(args[1:], " "); err == nil && string(b) != want {
			err = fmt.Errorf("%s holds %q, not %q", args[0], b, want)
		}
		return err
	case "sleep":
		time.Sleep(time.Hour)
	}
	return nil
}

// spawn starts this program in a session of its own and waits for its socket.
func spawn(verb string, args ...string) (int, error) {
	c := exec.Command(os.Args[0], append([]string{verb}, args...)...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return 0, err
	}
	return c.Process.Pid, await(args[0])
}

// await waits until a file is there.
func await(name string) error {
	for range 1000 {
		if _, err := os.Stat(name); err == nil {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("%s does not come", name)
}

func notify(message string) error {
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	_, err = io.WriteString(c, message)
	return err
}

func ask(socket string) (string, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "report\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func serve(socket string, ready func() error) error {
	_ = os.Remove(socket)
	hidden := filepath.Join(filepath.Dir(socket), "."+filepath.Base(socket))
	l, err := net.Listen("unix", hidden)
	if err != nil {
		return err
	}
	if err := os.Chmod(hidden, 0o777); err != nil {
		return err
	}
	if err := os.Rename(hidden, socket); err != nil { // whoever sees it can connect
		return err
	}
	fmt.Println("serving", socket)
	if ready != nil {
		if err := ready(); err != nil {
			return err
		}
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		var b [16]byte
		n, _ := c.Read(b[:])
		if string(b[:n]) == "die\n" {
			fmt.Println("I was told to die")
			os.Exit(3)
		}
		if err := json.NewEncoder(c).Encode(report()); err != nil {
			return err
		}
		_ = c.Close()
	}
}

func report() Report {
	r := Report{UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid(), Env: os.Environ()}
	r.Groups, _ = os.Getgroups()
	r.Umask = syscall.Umask(0)
	syscall.Umask(r.Umask)
	r.Dir, _ = os.Getwd()
	r.Host, _ = os.Hostname()
	if err := os.WriteFile("/dev/null", []byte("gone"), 0); err != nil {
		r.Null = err.Error()
	}
	return r
}
