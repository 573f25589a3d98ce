package unit

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	defaultTimeout = int64(90 * time.Second) // systemd's, of starting and of stopping
	forever        = math.MaxInt64
)

var errSpan = errors.New("not a time span")

// spanUnits are those of systemd.time(7), in nanoseconds.
var spanUnits = map[string]float64{
	"": 1e9, "s": 1e9, "sec": 1e9, "second": 1e9, "seconds": 1e9,
	"ns": 1, "nsec": 1,
	"us": 1e3, "usec": 1e3, "µs": 1e3, "μs": 1e3,
	"ms": 1e6, "msec": 1e6,
	"m": 60e9, "min": 60e9, "minute": 60e9, "minutes": 60e9,
	"h": 3600e9, "hr": 3600e9, "hour": 3600e9, "hours": 3600e9,
	"d": 86400e9, "day": 86400e9, "days": 86400e9,
	"w": 7 * 86400e9, "week": 7 * 86400e9, "weeks": 7 * 86400e9,
	"M": 2629800e9, "month": 2629800e9, "months": 2629800e9,
	"y": 31557600e9, "year": 31557600e9, "years": 31557600e9,
}

// parseSpan reads "1min 30s", "90", "1.5h", "infinity". 0 means for ever too,
// as it does for every timeout of a service.
func parseSpan(s string) (int64, error) {
	s = strings.TrimSpace(s)
	if s == "infinity" {
		return forever, nil
	}
	if s == "" {
		return 0, errSpan
	}
	total := 0.0
	for s != "" {
		n := 0
		for n < len(s) && (s[n] >= '0' && s[n] <= '9' || s[n] == '.') {
			n++
		}
		v, err := strconv.ParseFloat(s[:n], 64)
		if err != nil {
			return 0, errSpan
		}
		s = strings.TrimLeft(s[n:], space)
		n = strings.IndexAny(s, "0123456789. \t")
		if n < 0 {
			n = len(s)
		}
		unit, ok := spanUnits[s[:n]]
		if !ok {
			return 0, errSpan
		}
		s = strings.TrimLeft(s[n:], space)
		total += v * unit
	}
	if total == 0 || total >= forever {
		return forever, nil
	}
	return int64(total), nil
}
