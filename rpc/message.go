package rpc

import (
	"fmt"
	"math/bits"
	"sync"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"srvfs/manifest"
)

// The messages that carry content, Piece and Batch, are written into the memory
// that is sent and read where they were received: the generated code copies each
// byte once more on both sides, and makes new memory for it, which on a small
// machine is a tenth of a start. On the wire they are what srvfs.proto says.

// A message is an encoded message. It holds its memory until it is sent or freed.
type message struct{ mem mem.Buffer }

func (m *message) body() []byte {
	if m.mem == nil {
		return nil
	}
	return m.mem.ReadOnlyData()
}

func (m *message) free() {
	if m.mem != nil {
		m.mem.Free()
		m.mem = nil
	}
}

// codec is grpc's for protobuf, but that a message is encoded already.
type codec struct{ encoding.CodecV2 }

var wireCodec = codec{encoding.GetCodecV2(proto.Name)}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*message); ok {
		b := mem.BufferSlice{m.mem}
		m.mem = nil // grpc's now
		return b, nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*message); ok {
		m.mem = data.MaterializeToBuffer(memory)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// memory is what messages and frames lie in. Unlike grpc's own it is not cleared
// each time: whoever takes some writes it before it is read.
var memory = &bufferPool{}

const (
	minBuffer = 10 // bits of the smallest length that is kept
	maxBuffer = 20
)

// A bufferPool is a [mem.BufferPool] of powers of two.
type bufferPool struct{ tiers [maxBuffer + 1]sync.Pool }

// Get returns n bytes of any content.
func (p *bufferPool) Get(n int) *[]byte {
	tier := max(minBuffer, bits.Len(uint(max(n, 1)-1)))
	if tier > maxBuffer {
		b := make([]byte, n)
		return &b
	}
	if b, _ := p.tiers[tier].Get().(*[]byte); b != nil {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, 1<<tier)
	return &b
}

// Put takes a buffer back.
func (p *bufferPool) Put(b *[]byte) {
	if tier := bits.Len(uint(cap(*b))) - 1; tier >= minBuffer && tier <= maxBuffer {
		p.tiers[tier].Put(b)
	}
}

// The fields of the messages in srvfs.proto.
const (
	batchItems protowire.Number = 1

	itemIndex protowire.Number = 1
	itemMore  protowire.Number = 2
	itemRaw   protowire.Number = 3
	itemCode  protowire.Number = 4
	itemText  protowire.Number = 5
	itemData  protowire.Number = 6

	pieceRaw  protowire.Number = 1
	pieceData protowire.Number = 2
)

// maxHead bounds what an item needs beside its text and data, in bytes.
const maxHead = 48

// An item is srvfspb.Item.
type item struct {
	index, raw, code uint32
	more             bool
	text             string
	data             []byte
}

// append appends the item to an encoded Batch.
func (v *item) append(b []byte) []byte {
	varint := func(n protowire.Number, v uint32) int {
		if v == 0 {
			return 0
		}
		return protowire.SizeTag(n) + protowire.SizeVarint(uint64(v))
	}
	length := func(n protowire.Number, size int) int {
		if size == 0 {
			return 0
		}
		return protowire.SizeTag(n) + protowire.SizeBytes(size)
	}
	more := uint32(0)
	if v.more {
		more = 1
	}
	size := varint(itemIndex, v.index) + varint(itemMore, more) + varint(itemRaw, v.raw) + varint(itemCode, v.code) +
		length(itemText, len(v.text)) + length(itemData, len(v.data))
	b = protowire.AppendVarint(protowire.AppendTag(b, batchItems, protowire.BytesType), uint64(size))
	for _, f := range [...]struct {
		n protowire.Number
		v uint32
	}{{itemIndex, v.index}, {itemMore, more}, {itemRaw, v.raw}, {itemCode, v.code}} {
		if f.v != 0 {
			b = protowire.AppendVarint(protowire.AppendTag(b, f.n, protowire.VarintType), uint64(f.v))
		}
	}
	if v.text != "" {
		b = protowire.AppendString(protowire.AppendTag(b, itemText, protowire.BytesType), v.text)
	}
	if len(v.data) > 0 {
		b = protowire.AppendBytes(protowire.AppendTag(b, itemData, protowire.BytesType), v.data)
	}
	return b
}

// A field is one field of an encoded message.
type field struct {
	number protowire.Number
	varint uint64
	bytes  []byte // of the message's memory
}

// fields calls f with each field of an encoded message that a message of ours may
// have, in order. The error wraps ErrInvalid.
func fields(b []byte, f func(field) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed(n)
		}
		b = b[n:]
		v := field{number: number}
		switch kind {
		case protowire.VarintType:
			v.varint, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(b)
		default: // of a later version
			if n = protowire.ConsumeFieldValue(number, kind, b); n >= 0 {
				b = b[n:]
				continue
			}
		}
		if n < 0 {
			return malformed(n)
		}
		b = b[n:]
		if err := f(v); err != nil {
			return err
		}
	}
	return nil
}

func malformed(n int) error {
	return fmt.Errorf("malformed message: %s: %w", protowire.ParseError(n).Error(), manifest.ErrInvalid)
}

// items calls f with each item of an encoded Batch. The item's data is of the
// message's memory.
func items(b []byte, f func(*item) error) error {
	var v item
	return fields(b, func(outer field) error {
		if outer.number != batchItems {
			return nil
		}
		v = item{}
		err := fields(outer.bytes, func(inner field) error {
			switch inner.number {
			case itemIndex:
				v.index = uint32(inner.varint)
			case itemMore:
				v.more = inner.varint != 0
			case itemRaw:
				v.raw = uint32(inner.varint)
			case itemCode:
				v.code = uint32(inner.varint)
			case itemText:
				v.text = string(inner.bytes)
				if !utf8.ValidString(v.text) {
					return fmt.Errorf("malformed message: text that is not UTF-8: %w", manifest.ErrInvalid)
				}
			case itemData:
				v.data = inner.bytes
			}
			return nil
		})
		if err != nil {
			return err
		}
		return f(&v)
	})
}

// pieceHead is the room that a Piece needs before its data, in bytes.
const pieceHead = 16

// putPieceHead writes what precedes n bytes of a Piece's data right before at,
// which is at least pieceHead, and returns where it begins.
func putPieceHead(b []byte, at, n int) int {
	var head [pieceHead]byte
	h := protowire.AppendVarint(protowire.AppendTag(head[:0], pieceData, protowire.BytesType), uint64(n))
	copy(b[at-len(h):at], h)
	return at - len(h)
}

// appendPackedPiece appends an encoded Piece of a frame that holds raw bytes.
func appendPackedPiece(b, frame []byte, raw uint32) []byte {
	b = protowire.AppendVarint(protowire.AppendTag(b, pieceRaw, protowire.VarintType), uint64(raw))
	return protowire.AppendBytes(protowire.AppendTag(b, pieceData, protowire.BytesType), frame)
}

// parsePiece reads an encoded Piece, whose data is of the message's memory.
func parsePiece(b []byte) (raw uint32, data []byte, err error) {
	err = fields(b, func(f field) error {
		switch f.number {
		case pieceRaw:
			raw = uint32(f.varint)
		case pieceData:
			data = f.bytes
		}
		return nil
	})
	return raw, data, err
}
