package world

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A link carries Ethernet frames between two TAP devices, ARP and all, as a wire
// of some length and speed does: each direction sends one frame after the other
// at its rate, keeps what waits in a queue of limited length, drops what does
// not fit, and delivers every frame half a round trip after its last bit was
// sent. TCP meets slow start and loss on it as on a real wire.
//
// The kernel hands over frames of up to 64 KB that a real card would cut into
// packets (TSO). They pass whole, which is what makes 1 Gbit/s cheap, but take
// the time of the packets that they stand for.
type link struct {
	ways [2]*way
	stop int // an eventfd
	work sync.WaitGroup
}

// queueMin is the shortest queue, in time at the wire's rate; it is never
// shorter than one round trip's worth.
const queueMin = 50 * time.Millisecond

// newLink joins two TAP descriptors, which it then owns.
func newLink(a, b int, w Wire) (*link, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), unix.Close(b))
	}
	l := &link{stop: stop, ways: [2]*way{{from: a, to: b}, {from: b, to: a}}}
	l.set(w)
	for _, d := range l.ways {
		l.work.Go(func() { d.run(stop) })
	}
	return l, nil
}

func (l *link) set(w Wire) {
	for _, d := range l.ways {
		d.wire.Store(&w)
	}
}

// close ends the link; both devices vanish with their descriptors.
func (l *link) close() error {
	_, err := unix.Write(l.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	l.work.Wait()
	return errors.Join(err, unix.Close(l.ways[0].from), unix.Close(l.ways[1].from), unix.Close(l.stop))
}

const (
	vnetHeader = 10         // bytes of struct virtio_net_hdr before each frame
	frameMax   = 96 << 10   // no frame is longer
	arenaSize  = 64 << 20   // holds 50 ms of queue and 25 ms of flight at more than 5 Gbit/s
	gap        = 8 + 4 + 12 // preamble, checksum and inter-frame gap of a packet on a wire
	frameMin   = 60         // a shorter packet is padded
	burst      = 32         // frames read before those that are due are looked after
)

// A way is one direction of a link. Only its own thread touches it, but for wire.
type way struct {
	from, to int
	wire     atomic.Pointer[Wire]

	arena  []byte  // frames in flight, each in one piece, first come first served
	head   int     // where the next frame goes
	flight []frame // oldest first
	free   int64   // when the sender has sent what it has, in monotonic nanoseconds
}

type frame struct {
	at, end int   // in the arena
	due     int64 // when it arrives
}

// run carries frames until stop is readable.
func (d *way) run(stop int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A wait must end when it is due, not up to 50 us later.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	d.arena = make([]byte, arenaSize+frameMax) // the last piece is for what is dropped
	fds := []unix.PollFd{{Fd: int32(d.from), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		var wait *unix.Timespec
		if len(d.flight) > 0 {
			t := unix.NsecToTimespec(max(0, d.flight[0].due-now()))
			wait = &t
		}
		if _, err := unix.Ppoll(fds, wait, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		for range burst {
			if !d.take() {
				break
			}
		}
		d.deliver()
	}
}

// take reads one frame, if there is one, and queues or drops it.
func (d *way) take() bool {
	room, free := d.room()
	n, err := unix.Read(d.from, d.arena[room:room+frameMax])
	if err != nil || n < vnetHeader {
		return false
	}
	w, t := d.wire.Load(), now()
	sent := t
	if w.Rate > 0 {
		sent = max(t, d.free)
		if time.Duration(sent-t) > max(queueMin, w.RTT) {
			return true // the queue is full
		}
		sent += onWire(d.arena[room:room+n]) * 8 * int64(time.Second) / w.Rate
	}
	if !free {
		return true
	}
	d.free = sent
	due := sent + int64(w.RTT/2)
	if len(d.flight) > 0 { // a wire that was made shorter keeps the order too
		due = max(due, d.flight[len(d.flight)-1].due)
	}
	d.flight = append(d.flight, frame{room, room + n, due})
	d.head = room + n
	return true
}

// room returns where in the arena the next frame is to be read to, and whether
// it can stay there. While nothing is in flight that is the arena's beginning,
// which is then in the processor's cache.
func (d *way) room() (at int, free bool) {
	if len(d.flight) == 0 {
		return 0, true
	}
	tail := d.flight[0].at
	switch {
	case d.head > tail && d.head+frameMax <= arenaSize:
		return d.head, true
	case d.head > tail && frameMax <= tail:
		return 0, true
	case d.head <= tail && d.head+frameMax <= tail:
		return d.head, true
	}
	return arenaSize, false
}

// deliver writes the frames that have arrived.
func (d *way) deliver() {
	t := now()
	sent := 0
	for ; sent < len(d.flight) && d.flight[sent].due <= t; sent++ {
		f := d.flight[sent]
		// An interface that is down takes nothing: the frame is lost, as on a wire.
		_, _ = unix.Write(d.to, d.arena[f.at:f.end])
	}
	if d.flight = d.flight[sent:]; len(d.flight) == 0 {
		d.flight = nil
	}
}

// onWire returns the bytes that a frame with its virtio header takes on a wire.
func onWire(b []byte) int64 {
	n := len(b) - vnetHeader
	size := int(binary.LittleEndian.Uint16(b[4:]))
	transport := int(binary.LittleEndian.Uint16(b[6:])) // where the checksum starts
	if b[1] == unix.VIRTIO_NET_HDR_GSO_NONE || size == 0 || n < transport+13 {
		return int64(max(n, frameMin) + gap)
	}
	headers := transport + int(b[vnetHeader+transport+12]>>4)*4
	packets := (n - headers + size - 1) / size
	return int64(n + (packets-1)*headers + packets*gap)
}

func now() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}

// openTAP makes a TAP device on a host. It is gone when the descriptor is closed.
func openTAP(h *Host, name string) (fd int, err error) {
	err = h.in(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("open /dev/net/tun", err)
		}
		ifr, err := unix.NewIfreq(name)
		if err == nil {
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err == nil {
			err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_TSO_ECN)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("make the TAP device %s: %w", name, err), unix.Close(fd))
		}
		return nil
	})
	return fd, err
}
