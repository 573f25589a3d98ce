package rpc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"srvfs/manifest"
)

// What a start needs is asked for again and again, by each standby and each time
// with someone waiting. So the server keeps it packed: the contents of the
// snapshots' profiles, cut as a standby asks for them.
const (
	maxPack  = 32 << 20  // bytes that are kept for one snapshot
	maxPacks = 128 << 20 // and for all; of those used longest ago nothing is kept then
)

// packing compresses better than what is sent while someone waits, and takes
// three times as long.
var packing = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
})

// A frame is a piece of a content: a zstd frame of raw bytes, or if raw is 0 the
// bytes themselves.
type frame struct {
	data []byte
	raw  uint32
}

// packs are the packed profiles of services.
type packs struct {
	mu sync.Mutex
	of map[string]*pack
}

// A pack is never changed but for used.
type pack struct {
	snapshot manifest.Digest
	frames   map[manifest.Range]frame
	size     int64     // bytes
	used     time.Time // when it was last looked into
}

// find returns for each range the frames that make it up, of services that the
// caller may read, and whose they are; or nil, where it is not kept.
func (p *packs) find(may func(service string) bool, want []manifest.Range) (out [][]frame, whose []string) {
	out, whose = make([][]frame, len(want)), make([]string, len(want))
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for service, k := range p.of {
		if !may(service) {
			continue
		}
		for i, r := range want {
			if out[i] == nil {
				if out[i] = k.find(r); out[i] != nil {
					k.used, whose[i] = now, service
				}
			}
		}
	}
	return out, whose
}

func (k *pack) find(r manifest.Range) []frame {
	var out []frame
	for left := (piecesOf{r}); left.Len > 0; {
		f, ok := k.frames[left.next()]
		if !ok {
			return nil
		}
		out = append(out, f)
	}
	return out
}

// piecesOf are the pieces that a range is sent in.
type piecesOf struct{ manifest.Range }

func (p *piecesOf) next() manifest.Range {
	r := manifest.Range{Digest: p.Digest, Off: p.Off, Len: min(p.Len, pieceSize)}
	p.Off += r.Len
	p.Len -= r.Len
	return r
}

// put replaces a service's pack.
func (p *packs) put(service string, k *pack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of == nil {
		p.of = map[string]*pack{}
	}
	p.of[service] = k
	for {
		total, oldest := int64(0), ""
		for name, k := range p.of {
			total += k.size
			if name != service && (oldest == "" || k.used.Before(p.of[oldest].used)) {
				oldest = name
			}
		}
		if total <= maxPacks || oldest == "" {
			return
		}
		delete(p.of, oldest)
	}
}

func (p *packs) get(service string) *pack {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of[service]
}

// retain forgets the packs of services that are not offered any more.
func (p *packs) retain(offered map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.of {
		if !offered[name] {
			delete(p.of, name)
		}
	}
}

// Pack prepares for standbys that start one of the services offered: it packs the
// contents that the newest snapshots' profiles name. It is to be called when the
// server starts and when a snapshot was published. What it can't read is sent, or
// refused, when it is asked for.
func (s *Server) Pack(ctx context.Context) error {
	infos, err := s.provider.Services(ctx)
	if err != nil {
		return err
	}
	offered := map[string]bool{}
	for _, v := range infos {
		offered[v.Name] = true
		old := s.packs.get(v.Name)
		if old != nil && old.snapshot == v.Digest {
			continue
		}
		k, err := s.pack(ctx, v, old)
		if err != nil {
			return fmt.Errorf("service %s: pack what its start needs: %w", v.Name, err)
		}
		s.packs.put(v.Name, k)
	}
	s.packs.retain(offered)
	return nil
}

func (s *Server) pack(ctx context.Context, of ServiceInfo, old *pack) (*pack, error) {
	b, err := s.provider.Snapshot(ctx, manifest.Ref{Service: of.Name, Sequence: of.Sequence})
	if err != nil {
		return nil, err
	}
	snap, err := manifest.DecodeSnapshot(b)
	if err != nil {
		return nil, err
	}
	k := &pack{snapshot: of.Digest, frames: map[manifest.Range]frame{}, used: time.Now()}
	var missing []manifest.Range
	seen := map[manifest.Range]bool{}
	total := int64(0)
	for _, t := range snap.Profile {
		for left := (piecesOf{manifest.Range{Digest: t.Content, Off: t.Off, Len: t.Len}}); left.Len > 0; {
			r := left.next()
			if seen[r] {
				continue
			}
			seen[r] = true
			if total += r.Len; total > maxPack {
				break // of the rest a start needs little at a time
			}
			if old == nil {
				missing = append(missing, r)
			} else if f, ok := old.frames[r]; ok {
				k.keep(r, f)
			} else {
				missing = append(missing, r)
			}
		}
	}
	origin := s.provider.Origin(func(service string) bool { return service == of.Name })
	for len(missing) > 0 {
		some := missing[:min(len(missing), manifest.MaxBatch)]
		missing = missing[len(some):]
		err := origin.FetchBatch(ctx, some, func(i int, data []byte, err error) error {
			if err == nil {
				k.keep(some[i], packed(data))
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return k, nil
}

func (k *pack) keep(r manifest.Range, f frame) {
	k.frames[r] = f
	k.size += int64(len(f.data))
}

// packed packs a piece if that pays.
func packed(data []byte) frame {
	if len(data) >= minPacked {
		if b := packing().EncodeAll(data, nil); pays(len(b), len(data)) {
			return frame{append([]byte{}, b...), uint32(len(data))} // of its size
		}
	}
	return frame{append([]byte{}, data...), 0}
}
