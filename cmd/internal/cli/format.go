package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ParseBytes reads a size: a number, and one of the letters K, M, G, T for powers of
// 1,024, or none.
func ParseBytes(s string) (int64, error) {
	shift := 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGT", s[n-1]); i >= 0 {
			s, shift = s[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return 0, fmt.Errorf("size %q: want a number, and perhaps K, M, G or T", s)
	}
	return n << shift, nil
}

// Bytes formats a number of bytes for people: "512 B", "12.5 MB". Decimal
// units, as disks and networks are sold.
func Bytes[T ~int64 | ~uint64 | ~int](n T) string {
	v := float64(n)
	if v < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	for _, unit := range []string{"kB", "MB", "GB", "TB"} {
		v /= 1000
		if v < 999.5 {
			if v < 9.95 {
				return fmt.Sprintf("%.1f %s", v, unit)
			}
			return fmt.Sprintf("%.0f %s", v, unit)
		}
	}
	return fmt.Sprintf("%.0f PB", v/1000)
}

// Took formats a duration with three digits or so: "0.8 ms", "12 ms", "3.42 s".
func Took(d time.Duration) string {
	switch ms := float64(d) / float64(time.Millisecond); {
	case ms < 9.95:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	case d < 100*time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// Count formats a number with its noun: "1 file", "2,345 files".
func Count[T ~int | ~int64 | ~uint64](n T, noun string) string {
	s := fmt.Sprintf("%d", n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if n == 1 {
		return s + " " + noun
	}
	if noun[len(noun)-1] == 'y' {
		return s + " " + noun[:len(noun)-1] + "ies"
	}
	return s + " " + noun + "s"
}
