package rpc

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"

	"srvfs/manifest"
)

// A packedWorld is a source whose server can be asked what it keeps.
type packedWorld struct {
	*world
	server *Server
}

// newPackedWorld returns a source whose server the caller may ask to pack, and that
// serves the same.
func newPackedWorld(t *testing.T) *packedWorld {
	w := newWorld(t, ServerOptions{})
	return &packedWorld{w, NewServer(w.source, w.peers, w.lib, ServerOptions{Log: slog.New(slog.DiscardHandler)})}
}

// publish gives web a snapshot with this number, whose profile has the contents,
// each with a touch of all of it.
func (w *packedWorld) publish(t *testing.T, sequence uint64, contents ...[]byte) (want []manifest.Range) {
	t.Helper()
	s := manifest.Snapshot{
		Service: "web", Sequence: sequence, Created: 1, Source: "here", Totals: manifest.Totals{Dirs: 1},
		Root: manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: manifest.Sum([]byte{0, 0})},
	}
	for i, b := range contents {
		s.Profile = append(s.Profile, manifest.Touch{Path: fmt.Sprintf("/lib/%d", i), Content: w.lib.add("web", b), Len: int64(len(b))})
		want = append(want, manifest.Range{Digest: manifest.Sum(b), Len: int64(len(b))})
	}
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	w.lib.mu.Lock()
	defer w.lib.mu.Unlock()
	w.lib.snapshot["web"] = b
	w.lib.content["web"][manifest.Sum(b)] = b
	return want
}

// unpacked returns what the frames that are kept for a range hold.
func (w *packedWorld) unpacked(t *testing.T, r manifest.Range, service string) []byte {
	t.Helper()
	all, whose := w.server.packs.find(func(s string) bool { return s == service }, []manifest.Range{r})
	if all[0] == nil {
		return nil
	}
	if whose[0] != service {
		t.Errorf("what is of %s is said to be of %q", service, whose[0])
	}
	var out []byte
	for _, f := range all[0] {
		var err error
		if out, err = unpack(out, f.data, f.raw); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestPacked(t *testing.T) {
	w := newPackedWorld(t)
	random := make([]byte, pieceSize+1000)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(random)
	contents := [][]byte{bytes.Repeat([]byte("text "), pieceSize), random, []byte("tiny"), {}}
	want := w.publish(t, 7, contents...)
	if err := w.server.Pack(w.ctx()); err != nil {
		t.Fatal(err)
	}
	for i, r := range want {
		if got := w.unpacked(t, r, "web"); !bytes.Equal(got, contents[i]) {
			t.Errorf("content %d: %d bytes instead of %d", i, len(got), len(contents[i]))
		}
		if len(contents[i]) > 0 && w.unpacked(t, r, "mail") != nil {
			t.Errorf("content %d of web is given to one who may read mail", i)
		}
	}
	// Chunks, as a large file is asked for; what is not kept whole is not there.
	if got := w.unpacked(t, manifest.Range{Digest: want[0].Digest, Off: pieceSize, Len: 2 * pieceSize}, "web"); !bytes.Equal(got, contents[0][pieceSize:3*pieceSize]) {
		t.Errorf("%d bytes of chunks", len(got))
	}
	for _, r := range []manifest.Range{{Digest: want[0].Digest, Len: -1}, {Digest: want[0].Digest, Off: 1, Len: pieceSize}, {Digest: want[0].Digest, Len: want[0].Len + 1}, {Digest: manifest.EmptyDigest, Len: 5}} {
		if w.unpacked(t, r, "web") != nil {
			t.Errorf("%v is kept", r)
		}
	}
	if k := w.server.packs.get("web"); k.size > int64(len(random)+pieceSize/10) {
		t.Errorf("%d bytes are kept of text, and of %d that do not pack", k.size, len(random))
	}
}

// Nothing is packed twice, what is not needed any more is let go of, and a peer's
// rights are asked for each time.
func TestPackedAgain(t *testing.T) {
	w := newPackedWorld(t)
	first, second, third := []byte("the first of all"), []byte("the second"), []byte("the third")
	want := w.publish(t, 7, first, second)
	pack := func() (requests int64) {
		before := w.lib.batches.Load()
		if err := w.server.Pack(w.ctx()); err != nil {
			t.Fatal(err)
		}
		return w.lib.batches.Load() - before
	}
	both := pack()
	if n := pack(); n != 0 || both < 1 {
		t.Errorf("%d requests for what is packed, %d before", n, both)
	}
	kept := w.server.packs.get("web").frames[want[1]].data
	next := w.publish(t, 8, second, third)
	w.lib.mu.Lock()
	w.lib.sequence = 8
	w.lib.mu.Unlock()
	if n := pack(); n != 1 {
		t.Errorf("%d requests for a new snapshot", n)
	}
	if now := w.server.packs.get("web").frames[next[0]].data; &now[0] != &kept[0] {
		t.Error("packed again")
	}
	if w.unpacked(t, want[0], "web") != nil || !bytes.Equal(w.unpacked(t, next[1], "web"), third) {
		t.Error("the old snapshot's content is kept, or the new one's is not")
	}
	w.lib.mu.Lock()
	delete(w.lib.snapshot, "web")
	w.lib.mu.Unlock()
	pack()
	if w.server.packs.get("web") != nil {
		t.Error("kept for a service that is not offered")
	}
}

func TestPacksAreBounded(t *testing.T) {
	var p packs
	for i := range 10 {
		p.put(fmt.Sprint(i), &pack{size: maxPacks / 4, frames: map[manifest.Range]frame{}})
	}
	if len(p.of) != 4 || p.get("9") == nil {
		t.Errorf("%d packs are kept", len(p.of))
	}
	w := newPackedWorld(t)
	var contents [][]byte
	for i := range maxPack/pieceSize + 10 {
		b := make([]byte, pieceSize)
		_, _ = rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), 1}).Read(b)
		contents = append(contents, b)
	}
	w.publish(t, 7, contents...)
	if err := w.server.Pack(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if k := w.server.packs.get("web"); k.size != maxPack {
		t.Errorf("%d bytes are kept, want %d", k.size, maxPack)
	}
}

// What comes over the wire is the same whether it was packed before or not, also
// when the one alternates with the other.
func TestPackedOnTheWire(t *testing.T) {
	w := newPackedWorld(t)
	some, other := bytes.Repeat([]byte("some "), 100_000), []byte("not of the profile")
	want := w.publish(t, 7, some, []byte("small"))
	late := w.lib.add("web", other)
	var got [2][][]byte
	ask := []manifest.Range{{Digest: late, Len: int64(len(other))}, want[0], {Digest: late, Len: -1}, want[1], {Digest: manifest.Sum([]byte("nowhere")), Len: 1}, want[0]}
	take := func(k int, c manifest.Batcher) int64 {
		before := w.lib.batches.Load()
		err := c.FetchBatch(w.ctx(), ask, func(i int, data []byte, err error) error {
			if (err != nil) != (i == 4) {
				t.Errorf("item %d: %v", i, err)
			}
			got[k] = append(got[k], bytes.Clone(data))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return w.lib.batches.Load() - before
	}
	take(0, w.pair(ClientOptions{}))
	w.stop()
	w.packing = true
	w.serve(w.addr, ServerOptions{})
	c := w.pair(ClientOptions{})
	if n := take(1, c); n != 3 {
		t.Errorf("%d requests to the provider, want 3", n)
	}
	if len(got[0]) != len(ask) || !slices.EqualFunc(got[0], got[1], bytes.Equal) {
		t.Error("another content when it was packed before")
	}
}
