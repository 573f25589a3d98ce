package cli

import (
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// A Bar shows progress on a terminal: share, bytes, rate, time left, and what is being
// done.
type Bar struct {
	bars *mpb.Progress
	bar  *mpb.Bar
	last time.Time

	mu    sync.Mutex // the bar is drawn by a goroutine of its own
	stage string
}

// NewBar returns a bar if standard error is a terminal, else nil, which shows nothing.
func NewBar() *Bar {
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	return &Bar{}
}

// Show draws it with n of total bytes done.
func (b *Bar) Show(n, total int64, stage string) {
	if b == nil {
		return
	}
	now := time.Now()
	b.mu.Lock()
	b.stage = stage
	b.mu.Unlock()
	if b.bar == nil {
		b.bars = mpb.New(mpb.WithWidth(40), mpb.WithOutput(os.Stderr))
		b.bar = b.bars.New(total, mpb.BarStyle(),
			mpb.PrependDecorators(decor.CountersKiloByte("% .1f / % .1f")),
			mpb.AppendDecorators(decor.Percentage(), decor.Name("  "), decor.EwmaSpeed(decor.SizeB1000(0), "% .1f", 30), decor.Name("  left "), decor.EwmaETA(decor.ET_STYLE_GO, 30),
				decor.Any(func(decor.Statistics) string {
					b.mu.Lock()
					defer b.mu.Unlock()
					return "  " + b.stage
				})))
		b.last = now
	}
	b.bar.SetTotal(total, false)
	b.bar.EwmaSetCurrent(n, now.Sub(b.last))
	b.last = now
}

// End takes it away.
func (b *Bar) End() {
	if b == nil || b.bar == nil {
		return
	}
	b.bar.Abort(false)
	b.bars.Wait()
}
