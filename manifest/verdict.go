package manifest

import "fmt"

// A Verdict is what a source says of a path that a service on a standby looked
// for in vain.
type Verdict uint8

// The verdicts.
const (
	// VerdictAbsent: the source does not have it either. Of what is outside of the
	// service a standby is told the same.
	VerdictAbsent Verdict = iota
	// VerdictNoted: it will be in the next snapshot.
	VerdictNoted
	// VerdictOutside: it exists, outside of the service's packages and folders.
	VerdictOutside
	// VerdictDenied: it exists and stays out: a secret, a log, or excluded.
	VerdictDenied
	verdicts
)

// MaxMisses bounds the paths in one report.
const MaxMisses = 1024

// String returns "absent", "noted", "outside" or "denied".
func (v Verdict) String() string {
	if v < verdicts {
		return [...]string{"absent", "noted", "outside", "denied"}[v]
	}
	return fmt.Sprintf("verdict(%d)", uint8(v))
}

// Valid reports whether v is one of the verdicts.
func (v Verdict) Valid() bool { return v < verdicts }
