package manifest

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Ref names a snapshot of a service: the newest, the one with a number, or the
// newest of those that were made by a moment.
type Ref struct {
	Service  string `json:"service,omitempty"`
	Sequence uint64 `json:"sequence,omitempty"` // 0: whatever its number is
	By       int64  `json:"by,omitempty"`       // nanoseconds since 1970; 0: whenever it was made
}

// moments are the ways to write one, of which those without a zone are local time.
var moments = []string{"2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02 15:04:05", time.RFC3339Nano}

// ParseRef reads SERVICE, SERVICE@12, SERVICE@2026-01-31T12:00 or SERVICE@2026-01-31,
// which is the end of that day. The error wraps ErrInvalid.
func ParseRef(s string) (Ref, error) {
	name, at, given := strings.Cut(s, "@")
	r := Ref{Service: name}
	if !ValidService(name) {
		return Ref{}, fmt.Errorf("%.80q is not a service name: %w", name, ErrInvalid)
	}
	if !given {
		return r, nil
	}
	if n, err := strconv.ParseUint(at, 10, 64); err == nil && n > 0 {
		r.Sequence = n
		return r, nil
	}
	if day, err := time.ParseInLocation(time.DateOnly, at, time.Local); err == nil {
		return r.by(day.AddDate(0, 0, 1).Add(-1), at)
	}
	for _, layout := range moments {
		if t, err := time.ParseInLocation(layout, at, time.Local); err == nil {
			return r.by(t, at)
		}
	}
	return Ref{}, fmt.Errorf("%.150q: after the @ there is the number of a snapshot, or a moment such as 2026-01-31T12:00: %w", s, ErrInvalid)
}

func (r Ref) by(t time.Time, text string) (Ref, error) {
	// What a nanosecond counter can't tell, and its zero, which has another meaning.
	if t.Year() < 1971 || t.Year() > 2261 {
		return Ref{}, fmt.Errorf("%.150q: no snapshot is from that year: %w", r.Service+"@"+text, ErrInvalid)
	}
	r.By = t.UnixNano()
	return r, nil
}

// Of the snapshots of a service the last Kept are kept; the last one of each of the
// newest KeptDays days that have any; and, of the newest two of those days, the last one
// of each of the newest KeptHours hours: a service that is followed has ten new ones in
// a second, and what was deleted by mistake should be in one still.
const (
	Kept      = 10
	KeptHours = 24
	KeptDays  = 7
)

// Keep says which snapshots of one service are kept, given when they were made, in
// nanoseconds since 1970, the latest first. Days are those of local time. What counts is
// their order and how they differ, not what the clock says now: one that jumps a year
// ahead makes no snapshot old.
func Keep(created []int64) []bool {
	kept := make([]bool, len(created))
	var hours, days int // that were met
	seen := map[string]bool{}
	for i, ns := range created {
		made := time.Unix(0, ns)
		hour, day := made.Format("2006-01-02T15"), made.Format(time.DateOnly)
		kept[i] = i < Kept
		if !seen[day] {
			days++
			kept[i] = kept[i] || days <= KeptDays
		}
		if !seen[hour] {
			hours++
			kept[i] = kept[i] || hours <= KeptHours && days <= 2
		}
		seen[hour], seen[day] = true, true
	}
	return kept
}

// String returns it as ParseRef reads it.
func (r Ref) String() string {
	switch {
	case r.Sequence != 0:
		return r.Service + "@" + strconv.FormatUint(r.Sequence, 10)
	case r.By != 0:
		return r.Service + "@" + time.Unix(0, r.By).Format(time.RFC3339Nano)
	}
	return r.Service
}

// Newest reports whether it names the newest snapshot, whatever that is.
func (r Ref) Newest() bool { return r.Sequence == 0 && r.By == 0 }

// Names reports whether a snapshot of its service may be the one that it names: of
// several the newest is.
func (r Ref) Names(sequence uint64, created int64) bool {
	return (r.Sequence == 0 || sequence == r.Sequence) && (r.By == 0 || created <= r.By)
}
