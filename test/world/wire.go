package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A Wire is what lies between a host and the bridge. The zero Wire is a pair of
// virtual cards: no delay but the kernel's own, and as fast as the machine.
type Wire struct {
	RTT  time.Duration // there and back, as ping shows it
	Rate int64         // bits per second in each direction, headers and gaps included; 0 is no limit
}

// String returns the wire as a table has it: "10 ms RTT, 1 Gbit/s".
func (w Wire) String() string {
	s := fmt.Sprintf("%d ms RTT", w.RTT.Milliseconds())
	switch {
	case w.Rate >= 1e9:
		s += fmt.Sprintf(", %.3g Gbit/s", float64(w.Rate)/1e9)
	case w.Rate > 0:
		s += fmt.Sprintf(", %.3g Mbit/s", float64(w.Rate)/1e6)
	}
	return s
}

// SetWire gives the host another wire. The host keeps its addresses, also that
// of its card, and with them its connections; what is on the old wire is lost.
// What TCP has learnt of the old one is forgotten.
func (h *Host) SetWire(ctx context.Context, w Wire) error {
	if h.link != nil && w != (Wire{}) {
		return h.link.set(w)
	}
	if err := h.unplug(ctx); err != nil {
		return err
	}
	return h.plug(ctx, w)
}

// plug gives the host its card, eth0, and the bridge the other end.
func (h *Host) plug(ctx context.Context, w Wire) error {
	port := "port" + strconv.Itoa(h.number)
	card := fmt.Sprintf("02:77:00:00:00:%02x", h.number)
	if w == (Wire{}) {
		if err := h.bridge.ip(ctx, fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %d", port, card, h.anchor.Pid())); err != nil {
			return err
		}
	} else {
		inner, err := openTAP(h, "eth0")
		if err != nil {
			return err
		}
		outer, err := openTAP(h.bridge, port)
		if err != nil {
			return errors.Join(err, inner.Close())
		}
		if h.link, err = newLink(inner, outer, w); err != nil {
			return err
		}
		if err := h.ip(ctx, "link set eth0 address "+card); err != nil {
			return err
		}
	}
	if err := h.bridge.ip(ctx, fmt.Sprintf("link set %s master br0 up", port)); err != nil {
		return err
	}
	if err := h.ip(ctx, "addr add "+h.Addr+"/24 dev eth0"); err != nil {
		return err
	}
	if err := h.ip(ctx, "link set eth0 up"); err != nil {
		return err
	}
	return h.ip(ctx, "route replace 10.77.0.0/24 dev eth0 src "+h.Addr+" congctl cubic") // Debian's; see tune
}

// unplug takes both ends away.
func (h *Host) unplug(ctx context.Context) error {
	if h.link != nil {
		err := h.link.close()
		h.link = nil
		return err
	}
	return h.ip(ctx, "link del eth0")
}

// in runs f on a thread that is in the host's network namespace. What f opens
// stays there: sockets and network devices belong to the namespace in which they
// were made.
func (h *Host) in(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.anchor.Pid()))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	return nil
}

// tune gives the host's TCP what Debian gives it, whatever this machine is tuned
// to, so that figures from two machines can be compared. What it learns of one
// connection it does not use for the next: each is the first, as on the day when
// it matters.
func (h *Host) tune() error {
	return h.in(func() error {
		var errs []error
		for _, s := range [][2]string{
			{"tcp_rmem", "4096 131072 6291456"}, {"tcp_wmem", "4096 16384 4194304"}, {"tcp_no_metrics_save", "1"},
		} {
			errs = append(errs, os.WriteFile("/proc/sys/net/ipv4/"+s[0], []byte(s[1]), 0o644))
		}
		return errors.Join(errs...)
	})
}

// Listen listens as a program on this host does. Network is tcp or a kind of it.
func (h *Host) Listen(ctx context.Context, network, addr string) (l net.Listener, err error) {
	err = h.in(func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, addr)
		return err
	})
	return l, err
}

// ip runs ip(8) of this machine in the host's network namespace.
func (h *Host) ip(ctx context.Context, args string) error {
	argv := []string{"-t", strconv.Itoa(h.anchor.Pid()), "-n", "sh", "-c", "exec ip " + args}
	if out, err := exec.CommandContext(ctx, "nsenter", argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("host %s: ip %s: %w: %s", h.Name, args, err, bytes.TrimSpace(out))
	}
	return nil
}
