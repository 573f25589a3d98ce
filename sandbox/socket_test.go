package sandbox

import (
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// echo answers one connection on each of the stream sockets that were passed, in
// order, and one packet on the others.
const echo = `
$n = $ENV{LISTEN_FDS}; $ENV{LISTEN_PID} == $$ or die "LISTEN_PID=$ENV{LISTEN_PID}, I am $$"; $| = 1;
print "$n $ENV{LISTEN_FDNAMES}\n";
for my $fd (3 .. 2 + $n) {
	open(my $s, "+<&=", $fd) or die "$fd: $!";
	if (unpack("i", getsockopt($s, 1, 30))) { # SO_ACCEPTCONN
		accept(my $c, $s) or die "accept on $fd: $!";
		sysread($c, my $line, 100); syswrite($c, "$fd $line"); close($c);
	} else {
		my $from = recv($s, my $line, 100, 0); send($s, "$fd $line", 0, $from);
	}
}
`

func TestSockets(t *testing.T) {
	c := testRoot(t)
	c.NewNet, c.Anticipate = true, true
	s := begin(t, c)
	sockets := []Socket{
		{Name: "all", Network: "tcp", Address: ":81", Backlog: 5},
		{Name: "four", Network: "tcp", Address: "127.0.0.2:82"},
		{Name: "six", Network: "tcp6", Address: "[::]:83"},
		{Name: "six", Network: "udp", Address: ":84", ReusePort: true},
		{Name: "far", Network: "udp", Address: "192.0.2.1:85", FreeBind: true},
		{Name: "file", Network: "unix", Address: "/tmp/a/b/socket", UID: 33, GID: 34, Mode: 0o620, DirMode: 0o750},
		{Name: "packet", Network: "unixpacket", Address: "@name", PassCred: true},
	}
	for _, traced := range []bool{false, true} {
		p, err := s.Run(limit(t), Command{Argv: []string{"/usr/bin/perl", "-e", echo}, Env: cleanEnv, UID: 33, GID: 34, Sockets: sockets[:4], Traced: traced})
		if err != nil {
			t.Fatal(err)
		}
		if traced {
			// They listen before the program runs, and not before it is released.
			if _, err := s.Dial(limit(t), "tcp4", "127.0.0.1:81"); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("before it is released: %v", err)
			}
			if err := errors.Join(p.Release(), p.Executed(limit(t))); err != nil {
				t.Fatal(err)
			}
		}
		for _, x := range []struct{ network, addr, want string }{
			{"tcp4", "127.0.0.1:81", "3 hello"}, {"tcp4", "127.0.0.2:82", "4 hello"}, {"tcp6", "[::1]:83", "5 hello"}, {"udp6", "[::1]:84", "6 hello"},
		} {
			d, err := s.Dial(limit(t), x.network, x.addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(d, "hello"); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			if n, err := d.Read(b); err != nil || string(b[:n]) != x.want {
				t.Errorf("%s: %q, %v", x.addr, b[:n], err)
			}
			d.Close()
		}
		if st, err := p.Wait(limit(t)); err != nil || !st.Success() {
			t.Error(st, err)
		}
	}
	look := Command{Argv: []string{"/bin/sh", "-c", `env | grep LISTEN_FD; ls /proc/self/fd; stat -c '%F %u %g %a' /tmp/a/b/socket /tmp/a/b /tmp/a; cat /proc/net/udp; grep -c '@name$' /proc/net/unix`}, Env: cleanEnv, Sockets: sockets, Umask: 0o77}
	for range 2 { // the second time the file of the first is still there
		got := output(t, s, look)
		for _, want := range []string{
			"LISTEN_FDS=7\n", "LISTEN_FDNAMES=all:four:six:six:far:file:packet\n", "\n0\n1\n10\n2\n3\n4\n5\n6\n7\n8\n9\nsocket 33 34 620\ndirectory 0 0 750\ndirectory 0 0 750\n",
			"010200C0:0055", "\n1\n",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in %s", want, got)
			}
		}
	}
}

func TestSocketsThatCannotBe(t *testing.T) {
	c := testRoot(t)
	c.NewNet = true
	s := begin(t, c)
	p, err := s.Run(limit(t), Command{Argv: []string{"/bin/sleep", "100"}, Sockets: []Socket{{Name: "x", Network: "tcp", Address: "127.0.0.1:80"}}})
	if err != nil {
		t.Fatal(err)
	}
	output(t, s, shell("echo >/tmp/file"))
	for _, x := range []struct {
		s    Socket
		is   error
		says string
	}{
		{Socket{Network: "tcp", Address: ":80"}, unix.EADDRINUSE, "listen on tcp :80: address already in use: another process listens there"},
		{Socket{Network: "tcp", Address: "192.0.2.1:80"}, unix.EADDRNOTAVAIL, "listen on tcp 192.0.2.1:80"},
		{Socket{Network: "tcp", Address: "nowhere:80"}, nil, "nowhere"},
		{Socket{Network: "unix", Address: "/tmp/file"}, unix.EADDRINUSE, "listen on unix /tmp/file"}, // no socket: it stays
		{Socket{Network: "unix", Address: "/proc/no/where/x"}, unix.ENOENT, "no such file or directory: make folder /proc/no"},
	} {
		_, err := s.Run(limit(t), Command{Argv: []string{"/bin/true"}, Sockets: []Socket{x.s}})
		if err == nil || x.is != nil && !errors.Is(err, x.is) || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s %s: %v", x.s.Network, x.s.Address, err)
		}
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
}
