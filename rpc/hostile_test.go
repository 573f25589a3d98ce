package rpc

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// A liar is a source that answers what the test tells it, and then the last
// message for ever if it is endless.
type liar struct {
	srvfspb.UnimplementedSrvfsServer
	list    *srvfspb.ListResponse
	pieces  []*srvfspb.Piece
	batches []*srvfspb.Batch
	endless bool
	silent  bool // after the last piece of a snapshot or measurement, which does not end
}

func (l *liar) List(context.Context, *srvfspb.ListRequest) (*srvfspb.ListResponse, error) {
	return l.list, nil
}

func (l *liar) Snapshot(_ *srvfspb.SnapshotRequest, s srvfspb.Srvfs_SnapshotServer) error {
	return l.send(s)
}

func (l *liar) Measure(_ *srvfspb.MeasureRequest, s srvfspb.Srvfs_MeasureServer) error {
	return l.send(s)
}

// send sends the pieces, and does not end if the liar is to be silent.
func (l *liar) send(s grpc.ServerStreamingServer[srvfspb.Piece]) error {
	if err := sendAll(s.Send, l.pieces, l.endless); err != nil || !l.silent {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

func (l *liar) Fetch(_ *srvfspb.FetchRequest, s srvfspb.Srvfs_FetchServer) error {
	return sendAll(s.Send, l.pieces, l.endless)
}

func (l *liar) FetchBatch(_ *srvfspb.FetchBatchRequest, s srvfspb.Srvfs_FetchBatchServer) error {
	return sendAll(s.Send, l.batches, l.endless)
}

func sendAll[M any](send func(M) error, all []M, endless bool) error {
	for _, m := range all {
		if err := send(m); err != nil {
			return err
		}
	}
	for endless && len(all) > 0 {
		if err := send(all[len(all)-1]); err != nil {
			return err
		}
	}
	return nil
}

// believe returns a client that is connected to the liar.
func believe(t *testing.T, l *liar, opts ...ClientOptions) *Client {
	opts = append(opts, ClientOptions{})
	id := newTestIdentity(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(id.serverTLS())), grpc.WaitForHandlers(true))
	srvfspb.RegisterSrvfsServer(g, l)
	ended := make(chan error, 1)
	go func() { ended <- g.Serve(lis) }()
	c, err := Dial(&Source{Name: "liar", Addresses: []string{lis.Addr().String()}, Fingerprint: id.Fingerprint()}, newTestIdentity(t), opts[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); g.Stop(); <-ended })
	return c
}

// bomb is a frame of a few hundred bytes that would fill 64 MiB.
func bomb() []byte { return encoders().EncodeAll(make([]byte, 64<<20), nil) }

func TestHostileFetch(t *testing.T) {
	full := &srvfspb.Piece{Data: make([]byte, pieceSize)}
	for name, tt := range map[string]struct {
		l    liar
		n    int64
		want error
	}{
		"too short":          {liar{pieces: []*srvfspb.Piece{{Data: []byte("abc")}}}, 4, manifest.ErrCorrupt},
		"nothing":            {liar{}, 4, manifest.ErrCorrupt},
		"too long":           {liar{pieces: []*srvfspb.Piece{{Data: []byte("abcde")}}}, 4, manifest.ErrCorrupt},
		"too much":           {liar{pieces: []*srvfspb.Piece{{Data: []byte("abcd")}, {Data: []byte("e")}}}, 4, manifest.ErrCorrupt},
		"something for none": {liar{pieces: []*srvfspb.Piece{{Data: []byte("e")}}}, 0, manifest.ErrCorrupt},
		"empty pieces":       {liar{pieces: []*srvfspb.Piece{{}}, endless: true}, 4, manifest.ErrInvalid},
		"endless":            {liar{pieces: []*srvfspb.Piece{full}, endless: true}, -1, manifest.ErrCorrupt},
		"large piece":        {liar{pieces: []*srvfspb.Piece{{Data: make([]byte, pieceSize+1)}}}, -1, manifest.ErrCorrupt},
		"large message":      {liar{pieces: []*srvfspb.Piece{{Data: make([]byte, maxMessage+1)}}}, -1, manifest.ErrInvalid},
		"bomb":               {liar{pieces: []*srvfspb.Piece{{Raw: pieceSize, Data: bomb()}}}, -1, manifest.ErrInvalid},
		"honest bomb":        {liar{pieces: []*srvfspb.Piece{{Raw: 64 << 20, Data: bomb()}}}, -1, manifest.ErrCorrupt},
		"frame too short":    {liar{pieces: []*srvfspb.Piece{{Raw: 9, Data: encoders().EncodeAll([]byte("abcdefgh"), nil)}}}, 9, manifest.ErrInvalid},
		"frame too long":     {liar{pieces: []*srvfspb.Piece{{Raw: 7, Data: encoders().EncodeAll([]byte("abcdefgh"), nil)}}}, 7, manifest.ErrInvalid},
		"no frame":           {liar{pieces: []*srvfspb.Piece{{Raw: 7, Data: []byte("abcdefgh")}}}, 7, manifest.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := readAll(believe(t, &tt.l).Fetch(testContext(t), manifest.EmptyDigest, 0, tt.n))
			wantErr(t, err, tt.want, "liar", manifest.EmptyDigest.String())
			if limit := max(tt.n, 0); tt.n >= 0 && int64(len(b)) > limit || len(b) > manifest.MaxMeta {
				t.Errorf("%d bytes were handed out, asked were %d", len(b), tt.n)
			}
		})
	}
}

func TestHostileBatch(t *testing.T) {
	for name, tt := range batchLies() {
		t.Run(name, func(t *testing.T) {
			err := believe(t, &liar{batches: tt.batches, endless: tt.endless}).FetchBatch(testContext(t), tt.want, func(i int, data []byte, err error) error {
				return checkItem(tt.want, i, data)
			})
			wantErr(t, err, tt.err, "liar", "batch of")
		})
	}
}

type batchLie struct {
	want    []manifest.Range
	batches []*srvfspb.Batch
	endless bool
	err     error
}

func batchOf(items ...*srvfspb.Item) []*srvfspb.Batch { return []*srvfspb.Batch{{Items: items}} }

// unknownOnly is a message that has something in it, but no item.
func unknownOnly() []*srvfspb.Batch {
	b := &srvfspb.Batch{}
	b.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1))
	return []*srvfspb.Batch{b}
}

func batchLies() map[string]batchLie {
	two := []manifest.Range{{Len: 2}, {Len: 2}}
	ok := func(i uint32) *srvfspb.Item { return &srvfspb.Item{Index: i, Data: []byte("ab")} }
	meta := []manifest.Range{{Len: -1}}
	return map[string]batchLie{
		"nothing":          {two, nil, false, manifest.ErrCorrupt},
		"cut short":        {two, batchOf(ok(0)), false, manifest.ErrCorrupt},
		"out of order":     {two, batchOf(ok(1), ok(0)), false, manifest.ErrInvalid},
		"twice":            {two, batchOf(ok(0), ok(0)), false, manifest.ErrInvalid},
		"too many":         {two, batchOf(ok(0), ok(1), ok(2)), false, manifest.ErrInvalid},
		"far index":        {two, batchOf(ok(1<<32 - 1)), false, manifest.ErrInvalid},
		"empty message":    {two, []*srvfspb.Batch{{}}, true, manifest.ErrInvalid},
		"unknown fields":   {two, unknownOnly(), true, manifest.ErrInvalid},
		"short item":       {two, batchOf(&srvfspb.Item{Data: []byte("a")}), false, manifest.ErrCorrupt},
		"empty item":       {two, batchOf(&srvfspb.Item{}), false, manifest.ErrCorrupt},
		"long item":        {two, batchOf(&srvfspb.Item{Data: []byte("abc")}), false, manifest.ErrCorrupt},
		"long in pieces":   {two, batchOf(&srvfspb.Item{Data: []byte("ab"), More: true}, &srvfspb.Item{Data: []byte("c")}), false, manifest.ErrCorrupt},
		"never ends":       {two, batchOf(&srvfspb.Item{More: true}), true, manifest.ErrInvalid},
		"ends in a piece":  {two, batchOf(&srvfspb.Item{More: true, Data: []byte("a")}), false, manifest.ErrCorrupt},
		"error with bytes": {two, batchOf(&srvfspb.Item{Code: 5, Data: []byte("ab")}), false, manifest.ErrInvalid},
		"error with more":  {two, batchOf(&srvfspb.Item{Code: 5, More: true}), true, manifest.ErrInvalid},
		"bomb":             {meta, batchOf(&srvfspb.Item{Raw: pieceSize, Data: bomb()}), false, manifest.ErrInvalid},
		"endless page":     {meta, batchOf(&srvfspb.Item{More: true, Data: make([]byte, pieceSize)}), true, manifest.ErrCorrupt},
	}
}

// checkItem says whether an item that was handed out may have been.
func checkItem(want []manifest.Range, i int, data []byte) error {
	if want[i].Len >= 0 && len(data) > 0 && int64(len(data)) != want[i].Len || len(data) > manifest.MaxMeta {
		return errors.New("handed out an item of a length that nobody asked for")
	}
	return nil
}

func TestHostileListAndSnapshot(t *testing.T) {
	d := manifest.EmptyDigest
	good := &srvfspb.Service{Name: "web", Sequence: 1, Digest: d[:]}
	for name, services := range map[string][]*srvfspb.Service{
		"path for a name": {{Name: "../web", Sequence: 1, Digest: d[:]}},
		"no digest":       {{Name: "web", Sequence: 1}},
		"no sequence":     {{Name: "web", Digest: d[:]}},
		"too many":        slices.Repeat([]*srvfspb.Service{good}, maxServices+1),
	} {
		_, err := believe(t, &liar{list: &srvfspb.ListResponse{Services: services}}).List(testContext(t))
		if !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("list, %s: %v", name, err)
		}
	}
	piecesOf := func(b []byte) (all []*srvfspb.Piece) {
		for c := range slices.Chunk(b, pieceSize) {
			all = append(all, &srvfspb.Piece{Data: c})
		}
		return all
	}
	other := encodedSnapshot(t, "mail", 1)
	for name, l := range map[string]*liar{
		"nothing":      {},
		"no snapshot":  {pieces: piecesOf([]byte("hello"))},
		"another":      {pieces: piecesOf(other)},
		"another time": {pieces: piecesOf(encodedSnapshot(t, "web", 2))},
		"cut short":    {pieces: piecesOf(other[:len(other)-1])},
		"endless":      {pieces: piecesOf(make([]byte, pieceSize)), endless: true},
	} {
		_, _, err := snapshot(testContext(t), believe(t, l), "web", 1)
		if !errors.Is(err, manifest.ErrInvalid) && !errors.Is(err, manifest.ErrCorrupt) {
			t.Errorf("snapshot, %s: %v", name, err)
		}
	}
}

// FuzzAssembler gives messages of any content to the reassembly of a batch.
func FuzzAssembler(f *testing.F) {
	for _, lie := range batchLies() {
		if lie.endless {
			continue
		}
		for _, b := range lie.batches {
			raw, err := proto.Marshal(b)
			if err != nil {
				f.Fatal(err)
			}
			if len(raw) < 4096 {
				f.Add(raw)
			}
		}
	}
	packed := encoders().EncodeAll(bytes.Repeat([]byte("ab"), 500), nil)
	raw, err := proto.Marshal(&srvfspb.Batch{Items: []*srvfspb.Item{
		{Data: []byte("ab")}, {Index: 1, Code: 5, Text: "gone"}, {Index: 2, More: true, Raw: 1000, Data: packed}, {Index: 2, Data: []byte("tail")},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	want := []manifest.Range{{Len: 2}, {Len: 0}, {Len: -1}, {Len: 1000}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		next := 0
		a := assembler{want: want, yield: func(i int, data []byte, err error) error {
			if i != next || err != nil && data != nil {
				t.Fatalf("item %d after %d", i, next-1)
			}
			next++
			if err := checkItem(want, i, data); err != nil {
				t.Fatal(err)
			}
			if err == nil && want[i].Len >= 0 && int64(len(data)) != want[i].Len {
				t.Fatalf("item %d has %d bytes", i, len(data))
			}
			return nil
		}}
		for range 2 { // the second finds it in the middle
			if err := a.add(raw); err != nil {
				if !errors.Is(err, manifest.ErrInvalid) && !errors.Is(err, manifest.ErrCorrupt) {
					t.Fatalf("no sentinel: %v", err)
				}
				return
			}
		}
		if err := a.end(); (err == nil) != (next == len(want)) {
			t.Fatalf("%d items and %v", next, err)
		}
	})
}
