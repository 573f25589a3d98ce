package fs

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// deathPoll is how often a process that was interrupted while it waits is looked
// at. The kernel sends one INTERRUPT for an operation, at the first signal,
// whichever that is; a later SIGKILL is not announced.
const deathPoll = 50 * time.Millisecond

// awaitDeath returns when the thread caller, whose operation was interrupted, is
// dying, when its connection is gone, or when ctx ends.
//
// A signal that the process handles, such as SIGCHLD, does not interrupt a read
// from a disk. Programs rely on that: few retry open(2) after EINTR. So it does
// not interrupt ours, while death by any signal does.
func (v *View) awaitDeath(ctx context.Context, caller uint32) {
	tick := time.NewTicker(deathPoll)
	defer tick.Stop()
	for !dying(caller) && !hungUp(v.device) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// hungUp reports whether the kernel has closed the connection: it was aborted,
// or the last mount of it is gone.
func hungUp(device int) bool {
	p := []unix.PollFd{{Fd: int32(device)}}
	n, err := unix.Poll(p, 0)
	return err != nil && err != unix.EINTR || n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
}

// dying reports whether a signal that ends the process waits for the thread.
// A thread that can't be seen, as from another PID namespace, counts as dying.
func dying(thread uint32) bool {
	if thread == 0 {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return true
	}
	return fatalPending(string(b))
}

// fatalPending reads the signal masks of /proc/PID/status.
func fatalPending(status string) bool {
	masks := map[string]uint64{}
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt":
			m, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return true
			}
			masks[key] = m
		}
	}
	bit := func(s unix.Signal) uint64 { return 1 << (s - 1) }
	harmless := bit(unix.SIGCHLD) | bit(unix.SIGCONT) | bit(unix.SIGURG) | bit(unix.SIGWINCH) |
		bit(unix.SIGSTOP) | bit(unix.SIGTSTP) | bit(unix.SIGTTIN) | bit(unix.SIGTTOU)
	pending := masks["SigPnd"] | masks["ShdPnd"]
	return pending&bit(unix.SIGKILL) != 0 || pending&^(masks["SigBlk"]|masks["SigIgn"]|masks["SigCgt"]|harmless) != 0
}
