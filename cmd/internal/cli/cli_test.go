package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"srvfs/manifest"
)

func TestErrorsKeepTheirKindAcrossTheSocket(t *testing.T) {
	for _, sentinel := range []error{manifest.ErrNotFound, manifest.ErrCorrupt, manifest.ErrStale, manifest.ErrUnavailable, manifest.ErrNoSpace, manifest.ErrDenied, manifest.ErrInvalid, manifest.ErrUnhealthy, ErrRoot, context.Canceled} {
		err := fmt.Errorf("file /x: %w", sentinel)
		got := Remote(Name(err), err.Error())
		if !errors.Is(got, sentinel) || got.Error() != err.Error() {
			t.Errorf("%v arrives as %v", err, got)
		}
		if a, _ := Code(err); a == OK || a == Failed && !errors.Is(sentinel, manifest.ErrInvalid) {
			t.Errorf("%v has exit code %d", err, a)
		}
	}
	if got := Remote(Name(errors.New("x")), "x"); got.Error() != "x" {
		t.Errorf("plain error arrives as %v", got)
	}
}

func TestPrint(t *testing.T) {
	var b strings.Builder
	err := fmt.Errorf("source 10.0.0.1: %w", manifest.ErrUnavailable)
	_, hint := Code(err)
	Print(&b, "srvfs", err, hint)
	if want := "srvfs: source 10.0.0.1: no origin answers\nsrvfs: hint: is that host up, and what should answer there running (`srvd serve`, `srvfs serve` on a standby, a registry)?\n"; b.String() != want {
		t.Errorf("got %q", b.String())
	}
}

func TestFormat(t *testing.T) {
	for got, want := range map[string]string{
		Bytes(0): "0 B", Bytes(999): "999 B", Bytes(1234): "1.2 kB", Bytes(12_500_000): "12 MB", Bytes(999_999_999): "1.0 GB",
		Took(800 * time.Microsecond): "0.8 ms", Took(12 * time.Millisecond): "12 ms", Took(3420 * time.Millisecond): "3.42 s", Took(5 * time.Minute): "5m0s",
		Count(1, "file"): "1 file", Count(2345, "file"): "2,345 files", Count(0, "entry"): "0 entries",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "512": 512, "3K": 3 << 10, "512M": 512 << 20, "8G": 8 << 30, "1T": 1 << 40} {
		if got, err := ParseBytes(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "M", "-1", "1.5G", "8 G", "9999999T", "8g"} {
		if got, err := ParseBytes(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}
