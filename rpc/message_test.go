package rpc

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// What is written by hand is what srvfs.proto says: the generated code reads and
// writes the same.
func TestMessagesAreThoseOfTheProto(t *testing.T) {
	all := []item{
		{}, {index: 1, data: []byte("abc")}, {index: math.MaxUint32, more: true, raw: 70_000, data: bytes.Repeat([]byte{7}, 70_000)},
		{index: 3, code: 5, text: "gone"},
	}
	want := &srvfspb.Batch{}
	var ours []byte
	for _, v := range all {
		before := len(ours)
		ours = v.append(ours)
		if head := len(ours) - before - len(v.text) - len(v.data); head > maxHead {
			t.Errorf("item %d has a head of %d bytes", v.index, head)
		}
		want.Items = append(want.Items, &srvfspb.Item{Index: v.index, More: v.more, Raw: v.raw, Code: v.code, Text: v.text, Data: v.data})
	}
	got := &srvfspb.Batch{}
	if err := proto.Unmarshal(ours, got); err != nil || !proto.Equal(got, want) {
		t.Errorf("%d items that differ, %v", len(got.GetItems()), err)
	}
	theirs, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = items(theirs, func(v *item) error {
		w := all[n]
		if v.index != w.index || v.more != w.more || v.raw != w.raw || v.code != w.code || v.text != w.text || !bytes.Equal(v.data, w.data) {
			t.Errorf("item %d: %d %v %d %d %q and %d bytes", n, v.index, v.more, v.raw, v.code, v.text, len(v.data))
		}
		n++
		return nil
	})
	if err != nil || n != len(all) {
		t.Errorf("%d items, %v", n, err)
	}
	for _, size := range []int{1, 127, 128, pieceSize} {
		body := bytes.Repeat([]byte{'x'}, size)
		// Once as it is, and once as a piece that compresses.
		for _, pk := range []*packer{{wire: 1, work: 2}, {}} {
			m, got, err := readPiece(bytes.NewReader(body), size, pk)
			if err != nil || got != size {
				t.Fatalf("%d of %d bytes, %v", got, size, err)
			}
			p := &srvfspb.Piece{}
			if err := proto.Unmarshal(m.body(), p); err != nil {
				t.Fatal(err)
			}
			if b, err := appendPiece(nil, p.GetRaw(), p.GetData(), pieceSize); err != nil || !bytes.Equal(b, body) {
				t.Errorf("a piece of %d bytes has %d: %v", size, len(b), err)
			}
			m.free()
		}
	}
}

func TestMemory(t *testing.T) {
	for _, n := range []int{0, 1, 1 << minBuffer, 1<<minBuffer + 1, messageSize, 1 << maxBuffer, 1<<maxBuffer + 1} {
		b := memory.Get(n)
		if len(*b) != n {
			t.Errorf("%d bytes instead of %d", len(*b), n)
		}
		*b = (*b)[:0] // as it comes back
		memory.Put(b)
		if again := memory.Get(n); len(*again) != n {
			t.Errorf("%d bytes instead of %d at second use", len(*again), n)
		}
	}
	if b := memory.Get(messageSize); cap(*b) != messageSize {
		t.Errorf("a message takes %d bytes of memory, want %d", cap(*b), messageSize)
	}
}

// FuzzPiece gives the decoder of pieces anything.
func FuzzPiece(f *testing.F) {
	for _, p := range []*srvfspb.Piece{{}, {Data: []byte("abc")}, {Raw: 7, Data: encoders().EncodeAll([]byte("abcdefg"), nil)}, {Raw: math.MaxUint32, Data: []byte("x"), Metadata: true}} {
		b, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, data, err := parsePiece(b)
		if err == nil {
			var out []byte
			if out, err = appendPiece(nil, raw, data, 1000); len(out) > 1000 || err == nil && len(out) == 0 {
				t.Fatalf("%d bytes where 1 to 1,000 were allowed", len(out))
			}
		}
		if err != nil && !errors.Is(err, manifest.ErrInvalid) && !errors.Is(err, manifest.ErrCorrupt) {
			t.Fatalf("no sentinel: %v", err)
		}
	})
}
