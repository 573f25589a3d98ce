package world

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
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
//
// A link is a process of its own, so that neither the work nor the garbage of
// the program that measures delays a frame. It ends with that program, however
// that ends, and both devices with it.
type link struct {
	process *exec.Cmd
	control *os.File // takes Wires, and ends the process when it is closed
}

// linkName is what the process is called.
const linkName = "srvfs-world-link"

// newLink joins two TAP devices, which it then owns.
func newLink(a, b *os.File, w Wire) (*link, error) {
	r, control, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, a.Close(), b.Close())
	}
	l := &link{exec.Command("/proc/self/exe"), control}
	l.process.Args[0] = linkName
	l.process.Stderr = os.Stderr
	l.process.ExtraFiles = []*os.File{a, b, r}
	if err = l.process.Start(); err == nil {
		err = l.set(w)
	}
	if err = errors.Join(err, a.Close(), b.Close(), r.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("start a link: %w", err), control.Close())
	}
	return l, nil
}

func (l *link) set(w Wire) error {
	return binary.Write(l.control, binary.NativeEndian, w)
}

func (l *link) close() error {
	return errors.Join(l.control.Close(), l.process.Wait())
}

// carry is the process: it carries frames between the descriptors 3 and 4 until
// nobody holds the other end of 5.
func carry() {
	runtime.GOMAXPROCS(4) // neither direction waits for the other, nor for this goroutine
	ways := [2]*way{{from: 3, to: 4}, {from: 4, to: 3}}
	control := os.NewFile(5, "control")
	for started := false; ; started = true {
		w := new(Wire)
		if err := binary.Read(control, binary.NativeEndian, w); errors.Is(err, io.EOF) {
			os.Exit(0)
		} else if err != nil {
			fail(fmt.Errorf("read the wire's length and rate: %w", err))
		}
		for _, d := range ways {
			d.wire.Store(w)
			if !started {
				go d.run()
			}
		}
	}
}

// queueMin is the shortest queue, in time at the wire's rate; it is never
// shorter than one round trip's worth.
const queueMin = 50 * time.Millisecond

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

// run carries frames for ever.
func (d *way) run() {
	runtime.LockOSThread() // for ever
	// A wait must end when it is due, not up to 50 us later, and however busy the
	// hosts keep the processors: a wire does not wait for them. Where that is not
	// permitted it is as good as it can be.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	d.arena = make([]byte, arenaSize+frameMax) // the last piece is for what is dropped
	fds := []unix.PollFd{{Fd: int32(d.from), Events: unix.POLLIN}}
	for {
		var wait *unix.Timespec
		if len(d.flight) > 0 {
			t := unix.NsecToTimespec(max(0, d.flight[0].due-now()))
			wait = &t
		}
		if _, err := unix.Ppoll(fds, wait, nil); err != nil && !errors.Is(err, unix.EINTR) {
			fail(os.NewSyscallError("ppoll", err))
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

// openTAP makes a TAP device on a host. It is gone when nobody holds it open.
func openTAP(h *Host, name string) (tap *os.File, err error) {
	err = h.in(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
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
		tap = os.NewFile(uintptr(fd), name)
		return nil
	})
	return tap, err
}
