package store

import (
	"testing"

	"srvfs/manifest/origintest"
)

// A store is an origin for others like any other.
func TestStoreConforms(t *testing.T) {
	o := newOrigin()
	s := openStore(t, Options{Dir: t.TempDir()})
	r := s.Reader(Source{Name: "memory", Origin: o})
	all := origintest.Contents()
	for _, b := range all {
		mustRead(t, r, o.file("/f", b), b)
	}
	origintest.Run(t, origintest.World{Origin: s, Has: all})
}
