package sandbox

import "sync"

// A Helper is a process that waits to become process 1 of a sandbox. To start
// a program costs tens of milliseconds when it is as large as the caller's is:
// whoever knows beforehand that a sandbox will be needed can have that done
// meanwhile.
type Helper struct {
	mu sync.Mutex
	s  *Sandbox
}

// Prepare starts a Helper, for a sandbox that shares the caller's network. The
// caller closes it.
func Prepare() (*Helper, error) {
	s, err := spawn(false)
	if err != nil {
		return nil, err
	}
	return &Helper{s: s}, nil
}

// take returns the process if it is of use; it may be called on nil.
func (h *Helper) take(newNet bool) *Sandbox {
	if h == nil || newNet {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.s
	h.s = nil
	if s == nil {
		return nil
	}
	select {
	case <-s.done: // something has ended it
		return nil
	default:
		return s
	}
}

// Close ends the process if no sandbox has been made of it, and waits for that.
func (h *Helper) Close() {
	h.mu.Lock()
	s := h.s
	h.s = nil
	h.mu.Unlock()
	if s != nil {
		s.kill()
		<-s.done
	}
}
