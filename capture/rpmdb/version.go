package rpmdb

import (
	"cmp"
	"strings"

	"srvfs/capture/pkgdb"
)

// Compare compares two versions as RPM does: negative if a is the earlier one, 0
// if they are equal, positive if a is the later one. A version is
// "epoch:version-release"; the epoch is 0 if it is not said, and releases are
// compared if both have one.
func Compare(a, b string) int {
	ea, va, ra := splitVersion(a)
	eb, vb, rb := splitVersion(b)
	if c := pkgdb.CompareDigits(ea, eb); c != 0 {
		return c
	}
	if c := compareSegments(va, vb); c != 0 || ra == "" || rb == "" {
		return c
	}
	return compareSegments(ra, rb)
}

func splitVersion(s string) (epoch, version, release string) {
	if e, rest, ok := strings.Cut(s, ":"); ok && strings.Trim(e, "0123456789") == "" {
		epoch, s = e, rest
	}
	if i := strings.LastIndexByte(s, '-'); i >= 0 {
		return epoch, s[:i], s[i+1:]
	}
	return epoch, s, ""
}

// compareSegments is rpmvercmp: runs of letters and of digits are compared in
// turn, what stands between them does not count. "~" comes before the end, "^"
// after it and before anything else.
func compareSegments(a, b string) int {
	for a != "" || b != "" {
		a, b = strings.TrimLeftFunc(a, isSeparator), strings.TrimLeftFunc(b, isSeparator)
		ta, tb := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~")
		if ta || tb {
			if ta != tb {
				return cmp.Compare(btoi(tb), btoi(ta))
			}
			a, b = a[1:], b[1:]
			continue
		}
		ca, cb := strings.HasPrefix(a, "^"), strings.HasPrefix(b, "^")
		if ca || cb {
			switch {
			case ca && cb:
				a, b = a[1:], b[1:]
				continue
			case ca && b == "", cb && a != "":
				return 1
			default:
				return -1
			}
		}
		if a == "" || b == "" {
			break
		}
		of := isLetter
		if isDigit(a[0]) {
			of = isDigit
		}
		var sa, sb string
		sa, a = cut(a, of)
		sb, b = cut(b, of)
		if sb == "" { // digits are later than letters
			if isDigit(sa[0]) {
				return 1
			}
			return -1
		}
		c := strings.Compare(sa, sb)
		if isDigit(sa[0]) {
			c = pkgdb.CompareDigits(sa, sb)
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

func isSeparator(c rune) bool {
	return c > 127 || !isDigit(byte(c)) && !isLetter(byte(c)) && c != '~' && c != '^'
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// cut cuts what of s belongs to a class off its front.
func cut(s string, of func(byte) bool) (front, rest string) {
	n := 0
	for n < len(s) && of(s[n]) {
		n++
	}
	return s[:n], s[n:]
}

// meets reports whether something provided as "op version" can be what "op
// version" asks for: whether the two ranges overlap. Without a version, on
// either side, any does.
func meets(providedOp, provided, op, wanted string) bool {
	if providedOp == "" || op == "" {
		return true
	}
	less := func(op string) bool { return op[0] == '<' }
	greater := func(op string) bool { return op[0] == '>' }
	equal := func(op string) bool { return strings.HasSuffix(op, "=") }
	switch c := Compare(provided, wanted); {
	case c < 0:
		return greater(providedOp) || less(op)
	case c > 0:
		return less(providedOp) || greater(op)
	}
	return equal(providedOp) && equal(op) || less(providedOp) && less(op) || greater(providedOp) && greater(op)
}

// Bits of a dependency's flags: RPM's lib/rpmds.h.
const (
	senseLess      = 1 << 1
	senseGreater   = 1 << 2
	senseEqual     = 1 << 3
	senseMissingOK = 1 << 19
	senseRPMLib    = 1 << 24
)

// operator returns the operator of a dependency as pkgdb writes it.
func operator(sense uint64) string {
	switch sense & (senseLess | senseGreater | senseEqual) {
	case senseLess:
		return "<<"
	case senseLess | senseEqual:
		return "<="
	case senseEqual:
		return "="
	case senseGreater | senseEqual:
		return ">="
	case senseGreater:
		return ">>"
	}
	return ""
}
