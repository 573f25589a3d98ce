package sandbox

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNetwork(t *testing.T) {
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	c := testRoot(t)
	c.NewNet = true
	s := begin(t, c)
	if conn, err := s.Dial(limit(t), "tcp", host.Addr().String()); err == nil {
		conn.Close()
		t.Error("the host's listener can be reached from inside")
	} else if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("loopback inside: %v", err)
	}
	if got := output(t, s, shell("ls /proc/self/net >/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1")); strings.TrimSpace(got) != "lo" {
		t.Errorf("interfaces inside: %q", got)
	}
	// A listener inside, on a port that the host has taken, answers.
	port := host.Addr().(*net.TCPAddr).Port
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = s.Run(limit(t), Command{Argv: []string{"/usr/bin/perl", "-MIO::Socket::INET", "-e",
		`$s = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1", LocalPort => $ARGV[0]) or die $!; $| = 1; print "up\n";
		while ($c = $s->accept) { print $c "inside\n"; close $c }`, strconv.Itoa(port)}, Env: cleanEnv, Stdout: w, Stderr: os.Stderr})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "up\n" {
		t.Fatal(line, err)
	}
	for _, name := range []string{"127.0.0.1", "localhost"} {
		conn, err := s.Dial(limit(t), "tcp", net.JoinHostPort(name, strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(conn); string(b) != "inside\n" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		conn.Close()
	}
	for network, addr := range map[string]string{"tcp": "example.org:80", "unix": "/run/x", "tcp4": "127.0.0.1"} {
		if conn, err := s.Dial(limit(t), network, addr); err == nil {
			conn.Close()
			t.Errorf("dialled %s %s", network, addr)
		}
	}
	// This thread, and all others, are at home still.
	if conn, err := net.Dial("tcp", host.Addr().String()); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
}

func TestSharedNetwork(t *testing.T) {
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	s := begin(t, testRoot(t))
	conn, err := s.Dial(limit(t), "tcp", host.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// A service can listen on addresses of its host, and is reached there.
func TestAddresses(t *testing.T) {
	c := testRoot(t)
	c.NewNet = true
	c.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("2001:db8::7")}
	s := begin(t, c)
	for i, a := range c.Addresses {
		addr := netip.AddrPortFrom(a, 80).String()
		p, err := s.Run(limit(t), Command{Argv: []string{"/usr/bin/perl", "-e", `open(S, "+<&=", 3); accept(my $c, S) or die`}, Sockets: []Socket{{Name: "x", Network: "tcp", Address: addr}}})
		if err != nil {
			t.Fatal(i, err)
		}
		d, err := s.Dial(limit(t), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		if st, err := p.Wait(limit(t)); err != nil || !st.Success() {
			t.Error(st, err)
		}
	}
	// Each is one address, not a network.
	if d, err := s.Dial(limit(t), "tcp", "10.1.2.4:80"); err == nil {
		d.Close()
		t.Error("a neighbour was reached")
	} else if !errors.Is(err, unix.ENETUNREACH) {
		t.Error(err)
	}
}
