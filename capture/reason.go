package capture

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"srvfs/manifest"
)

// A Class says what kind of reason brought a path into a snapshot.
type Class uint8

// The classes, in the order in which one of several is shown for a path.
const (
	ClassUser    Class = iota + 1 // the administrator named it
	ClassTraced                   // the service used it
	ClassLibrary                  // a program or library that is in needs it
	ClassRule                     // a rule asks for it; see rules.go
	ClassPackage                  // it belongs to a package that the service needs
	ClassData                     // it lies in a data folder of the service
)

var classNames = [...]string{ClassUser: "user", ClassTraced: "traced", ClassLibrary: "library", ClassRule: "rule", ClassPackage: "package", ClassData: "data"}

// String returns the class's name: "user", "traced", "library", "rule",
// "package" or "data".
func (c Class) String() string {
	if c.valid() {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

func (c Class) valid() bool { return c >= ClassUser && c <= ClassData }

// ranks says how soon what is in for a reason of a class is wanted.
var ranks = [...]manifest.Rank{
	ClassUser: manifest.RankUsed, ClassTraced: manifest.RankUsed, ClassLibrary: manifest.RankLibrary,
	ClassRule: manifest.RankRule, ClassPackage: manifest.RankPackage, ClassData: manifest.RankData,
}

// rank returns how soon the path is wanted: its best reason counts.
func (it *item) rank() manifest.Rank {
	best := manifest.RankData
	for _, r := range it.reasons {
		best = min(best, ranks[r.Class])
	}
	return best
}

// MarshalText implements [encoding.TextMarshaler] with the form of String.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (c *Class) UnmarshalText(b []byte) error {
	for i, n := range classNames {
		if n != "" && n == string(b) {
			*c = Class(i)
			return nil
		}
	}
	return fmt.Errorf("unknown class %.20q: want %s", b, strings.Join(classNames[1:], ", "))
}

// A Reason is why a path is in a snapshot, as `srvd why` prints it.
type Reason struct {
	Class Class  `json:"class"`
	Text  string `json:"reason"`
}

// String returns "class: text".
func (r Reason) String() string { return r.Class.String() + ": " + r.Text }

// maxReasons bounds what is kept for one path. A libc that a thousand programs
// need is explained well enough by a few.
const maxReasons = 8

// addReason adds r unless it is there already, and keeps the list sorted by
// class. A class that is not there yet always finds room.
func addReason(rs []Reason, r Reason) []Reason {
	class := 0
	for _, have := range rs {
		if have == r {
			return rs
		}
		if have.Class == r.Class {
			class++
		}
	}
	if class >= maxReasons/2 {
		return rs
	}
	i, _ := slices.BinarySearchFunc(rs, r, func(a, b Reason) int {
		if c := cmp.Compare(a.Class, b.Class); c != 0 {
			return c
		}
		return -1 // after the others of its class
	})
	return slices.Insert(rs, i, r)
}
