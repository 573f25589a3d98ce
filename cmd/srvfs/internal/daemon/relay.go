package daemon

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"srvfs/manifest"
	"srvfs/rpc"
	"srvfs/store"
)

// A relay offers other standbys what is stored here: the snapshots, and of their content
// what is whole in the store. It asks no origin for them, so that standbys that serve
// each other make no circles.
type relay struct {
	*daemon
	source string // the ID of the source whose services are meant; empty: of whichever
}

var _ rpc.Relay = relay{}

// Of implements [rpc.Relay].
func (r relay) Of(source string) (rpc.Provider, error) {
	r.source = source
	return r, nil
}

// stock returns the numbers of the snapshots of each source's services that are offered,
// rising.
func (r relay) stock() (map[[2]string][]uint64, error) {
	refs, err := r.store.Snapshots()
	if err != nil {
		return nil, err
	}
	all := map[[2]string][]uint64{}
	for _, v := range refs {
		if r.source == "" || v.Source == r.source {
			k := [2]string{v.Source, v.Service}
			all[k] = append(all[k], v.Sequence)
		}
	}
	// Of what is followed here only what has come as a whole.
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.follows {
		k := [2]string{f.Key, f.Service}
		if have := f.state.Sequence; have > 0 {
			all[k] = slices.DeleteFunc(all[k], func(n uint64) bool { return n > have })
		}
		if len(all[k]) == 0 {
			delete(all, k)
		}
	}
	return all, nil
}

// of returns the source that has the service, and the numbers of its snapshots.
func (r relay) of(service string) (key string, numbers []uint64, err error) {
	stock, err := r.stock()
	if err != nil {
		return "", nil, err
	}
	for k, n := range stock {
		if k[1] != service {
			continue
		}
		if key != "" {
			return "", nil, fmt.Errorf("this standby has services %s of several sources; name it by its source: HOST/%s: %w", service, service, manifest.ErrInvalid)
		}
		key, numbers = k[0], n
	}
	if key == "" {
		return "", nil, fmt.Errorf("this standby has no snapshot of service %s: %w", service, manifest.ErrNotFound)
	}
	return key, numbers, nil
}

func (r relay) describe(key, service string, number uint64) (rpc.ServiceInfo, error) {
	s, err := r.store.LoadSnapshotAt(key, service, number)
	if err != nil {
		return rpc.ServiceInfo{}, err
	}
	digest, err := s.Digest()
	return rpc.ServiceInfo{
		Name: service, Sequence: s.Sequence, Created: time.Unix(0, s.Created), Digest: digest, Totals: s.Totals,
		Source: key, SourceName: s.Source,
	}, err
}

// Services implements [rpc.Provider].
func (r relay) Services(context.Context) ([]rpc.ServiceInfo, error) {
	stock, err := r.stock()
	if err != nil {
		return nil, err
	}
	all := []rpc.ServiceInfo{}
	for k, numbers := range stock {
		v, err := r.describe(k[0], k[1], numbers[len(numbers)-1])
		if err != nil {
			r.Log.Warn("what is offered to other standbys", "service", k[1], "error", err)
			continue
		}
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b rpc.ServiceInfo) int {
		return slices.Compare([]string{a.Name, a.Source}, []string{b.Name, b.Source})
	})
	return all, nil
}

// History implements [rpc.Provider].
func (r relay) History(_ context.Context, service string) ([]rpc.ServiceInfo, error) {
	key, numbers, err := r.of(service)
	if err != nil {
		return nil, err
	}
	var all []rpc.ServiceInfo
	for _, n := range slices.Backward(numbers) {
		v, err := r.describe(key, service, n)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// relayLook is how often it is looked whether there is a new snapshot.
const relayLook = 250 * time.Millisecond

// Await implements [rpc.Provider].
func (r relay) Await(ctx context.Context, service string, have manifest.Digest) (v rpc.ServiceInfo, err error) {
	for {
		key, numbers, err := r.of(service)
		if err != nil {
			return rpc.ServiceInfo{}, err
		}
		if newest := numbers[len(numbers)-1]; v.Sequence != newest {
			if v, err = r.describe(key, service, newest); err != nil {
				return rpc.ServiceInfo{}, err
			}
		}
		if v.Digest != have || !pause(ctx, relayLook) {
			return v, nil
		}
	}
}

// Snapshot implements [rpc.Provider].
func (r relay) Snapshot(_ context.Context, ref manifest.Ref) ([]byte, error) {
	key, numbers, err := r.of(ref.Service)
	if err != nil {
		return nil, err
	}
	for _, n := range slices.Backward(numbers) {
		if ref.Sequence != 0 && n != ref.Sequence {
			continue
		}
		s, err := r.store.LoadSnapshotAt(key, ref.Service, n)
		if err != nil {
			return nil, err
		}
		if ref.Names(s.Sequence, s.Created) {
			return s.Encode()
		}
	}
	return nil, fmt.Errorf("snapshot %s is not on this standby: %w", ref, manifest.ErrNotFound)
}

// Origin implements [rpc.Provider]. The store does not know which service a content
// belongs to, so that it is all or nothing: for whom a service is not allowed, nothing.
func (r relay) Origin(allowed func(service string) bool) manifest.Batcher {
	return whole{r.store, allowed}
}

// A whole is the store for those who may read all of it.
type whole struct {
	*store.Store
	allowed func(service string) bool
}

func (w whole) permit() error {
	if !w.allowed("") { // only who may read every service may read one without a name
		return fmt.Errorf("a standby's content is for hosts that were paired for all services: %w", manifest.ErrNotFound)
	}
	return nil
}

// Fetch implements [manifest.Origin].
func (w whole) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	if err := w.permit(); err != nil {
		return nil, err
	}
	return w.Store.Fetch(ctx, d, off, n)
}

// FetchBatch implements [manifest.Batcher].
func (w whole) FetchBatch(ctx context.Context, want []manifest.Range, yield func(i int, data []byte, err error) error) error {
	if err := w.permit(); err != nil {
		return err
	}
	return w.Store.FetchBatch(ctx, want, yield)
}

// Missed implements [rpc.Provider]: this host is not the one to learn from it.
func (r relay) Missed(_ context.Context, _, _ string, paths []string) ([]manifest.Verdict, error) {
	return make([]manifest.Verdict, len(paths)), nil
}
