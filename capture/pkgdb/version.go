package pkgdb

import (
	"cmp"
	"strings"
)

// CompareDigits compares two numbers of any length, written in decimal: what dpkg
// and RPM do alike with the runs of digits in versions.
func CompareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}
