package manifest

import (
	"errors"
	"testing"
	"time"
)

func TestParseRef(t *testing.T) {
	at := func(h, m, s, ns int) int64 { return time.Date(2026, 1, 31, h, m, s, ns, time.Local).UnixNano() }
	for in, want := range map[string]Ref{
		"web":                      {Service: "web"},
		"web@12":                   {Service: "web", Sequence: 12},
		"web@2026-01-31":           {Service: "web", By: at(23, 59, 59, 999999999)},
		"web@2026-01-31T12:00":     {Service: "web", By: at(12, 0, 0, 0)},
		"web@2026-01-31 12:00:05":  {Service: "web", By: at(12, 0, 5, 0)},
		"web@2026-01-31T12:00:05Z": {Service: "web", By: time.Date(2026, 1, 31, 12, 0, 5, 0, time.UTC).UnixNano()},
	} {
		got, err := ParseRef(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", in, got, err, want)
		}
		if again, err := ParseRef(got.String()); err != nil || again != got {
			t.Errorf("%s: %s is %+v, %v", in, got, again, err)
		}
	}
	for _, in := range []string{"", "@1", "web@", "web@0", "web@-1", "web@1@2", "../x@1", "web@yesterday", "web@0001-01-01", "web@9999-01-01", "web@99999999999999999999"} {
		if r, err := ParseRef(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %+v, %v", in, r, err)
		}
	}
}

func TestRefNames(t *testing.T) {
	for _, x := range []struct {
		ref  Ref
		want string
	}{
		{Ref{}, "543"}, {Ref{Sequence: 4}, "4"}, {Ref{By: 40}, "43"}, {Ref{By: 39}, "3"}, {Ref{By: 1}, ""}, {Ref{Sequence: 5, By: 40}, ""},
	} {
		got := ""
		for _, s := range "543" {
			if n := uint64(s - '0'); x.ref.Names(n, int64(10*n)) {
				got += string(s)
			}
		}
		if got != x.want || x.ref.Newest() != (x.want == "543") {
			t.Errorf("%+v names %q", x.ref, got)
		}
	}
}
