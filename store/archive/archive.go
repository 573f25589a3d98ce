package archive

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"srvfs/manifest"
)

// OpenOptions say how an archive is reached.
type OpenOptions struct {
	// Identity is the path of a file with age identities, which decrypt an encrypted
	// FILE.tar. Empty: it is not encrypted.
	Identity string
	// Insecure reaches a registry by plain HTTP, or by TLS with a certificate that
	// nobody vouches for. One on this host is reached by HTTP without it.
	Insecure bool
	// Transport carries the requests to web servers and registries; nil: one with
	// deadlines for connecting and for the beginning of an answer.
	Transport http.RoundTripper
}

// An Edition is one snapshot in an archive.
type Edition struct {
	Service  string          `json:"service"`
	Sequence uint64          `json:"sequence"`
	Created  int64           `json:"created"`  // nanoseconds since 1970
	Source   string          `json:"source"`   // the host's name, for people
	Snapshot manifest.Digest `json:"snapshot"` // of its encoding
	Root     manifest.Digest `json:"root"`
}

// An Archive is an open archive. It has all content of the snapshots in it, and
// implements [manifest.Batcher]. It is safe for concurrent use.
type Archive struct {
	ref   string
	shelf shelf

	editions  []Edition // the newest first
	artefacts []descriptor

	// Those that the newest artefact has: of all exports since the last compact one, and
	// so of all snapshots here. The newest first.
	indices []*index

	mu     sync.Mutex
	loaded map[manifest.Digest]*artefact // by digest of their manifest
}

// An artefact is what stands beside an image, decoded.
type artefact struct {
	desc     descriptor
	manifest *ociManifest
	history  history
}

var _ manifest.Batcher = (*Archive)(nil)

// Open opens an archive: a folder, FILE.tar, http(s)://.../FILE.tar, or
// docker://REGISTRY/REPOSITORY:TAG.
//
// The error wraps ErrNotFound: nothing is there. ErrUnavailable: the server can't be
// reached. ErrDenied: it wants a login, or the file needs another identity.
// ErrInvalid: it is no archive of this program. ErrCorrupt: it is damaged.
func Open(ctx context.Context, ref string, o OpenOptions) (*Archive, error) {
	s, err := openShelf(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	a, err := openOn(ctx, ref, s)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return a, nil
}

func openShelf(ctx context.Context, ref string, o OpenOptions) (shelf, error) {
	k, err := sortOf(ref)
	if err != nil {
		return nil, err
	}
	var f file
	switch k {
	case registryKind:
		return openRegistry(ctx, ref, o)
	case folderKind:
		if o.Identity != "" {
			return nil, fmt.Errorf("archive %s: a folder is never encrypted, only FILE.tar: %w", ref, manifest.ErrInvalid)
		}
		return openFolder(ref)
	case webKind:
		f, err = openWeb(ctx, ref, o)
	default:
		f, err = openFile(ref)
	}
	if err != nil {
		return nil, err
	}
	plain, err := unseal(ctx, f, ref, o.Identity)
	if err == nil {
		f = plain
		var t *tarFile
		if t, err = openTar(ctx, f, ref); err == nil {
			return t, nil
		}
	}
	return nil, errors.Join(err, f.close())
}

func openOn(ctx context.Context, ref string, s shelf) (*Archive, error) {
	a := &Archive{ref: ref, shelf: s, loaded: map[manifest.Digest]*artefact{}}
	c, err := s.top(ctx)
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w", ref, err)
	}
	if len(c.artefacts) == 0 {
		what := "an OCI image, but not one of srvfs"
		if len(c.images) == 0 {
			what = "no OCI image is in it"
		}
		return nil, fmt.Errorf("archive %s: %s: no snapshot stands beside it, so it can't be mounted; if it was copied by a tool, have that copy the artefact (%s) too: %w", ref, what, ArtifactType, manifest.ErrInvalid)
	}
	newest := slices.MaxFunc(c.artefacts, func(x, y descriptor) int { return int(sequenceOf(x)) - int(sequenceOf(y)) })
	top, err := a.load(ctx, newest)
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w", ref, err)
	}
	for _, l := range slices.Backward(top.manifest.Layers) {
		if l.MediaType != typePlaces {
			continue
		}
		i, err := a.openIndex(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("archive %s: %w", ref, err)
		}
		a.indices = append(a.indices, i)
	}
	a.editions, a.artefacts = []Edition{top.history.Edition}, []descriptor{newest}
	for _, e := range top.history.Earlier {
		a.editions, a.artefacts = append(a.editions, e.Edition), append(a.artefacts, e.Artefact)
	}
	return a, nil
}

func sequenceOf(d descriptor) uint64 {
	n, err := strconv.ParseUint(d.Annotations[noteSequence], 10, 31)
	if err != nil {
		return 0
	}
	return n
}

// load reads an artefact.
func (a *Archive) load(ctx context.Context, d descriptor) (*artefact, error) {
	a.mu.Lock()
	known := a.loaded[d.Digest]
	a.mu.Unlock()
	if known != nil {
		return known, nil
	}
	b, err := a.shelf.manifest(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("artefact %v: %w", d.Digest, err)
	}
	if err := verify(b, d.Digest, "artefact"); err != nil {
		return nil, err
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, err
	}
	if !m.ours() || len(m.Layers) == 0 || m.Layers[0].MediaType != typeSnapshot {
		return nil, fmt.Errorf("artefact %v: not a snapshot of srvfs, or of a version that this one does not know: %w", d.Digest, manifest.ErrInvalid)
	}
	x := &artefact{desc: d, manifest: m}
	if b, err = a.whole(ctx, m.Config, maxManifest); err != nil {
		return nil, fmt.Errorf("artefact %v: configuration: %w", d.Digest, err)
	}
	if err := parse(b, "configuration of the artefact", &x.history); err != nil {
		return nil, err
	}
	if !manifest.ValidService(x.history.Service) || x.history.Sequence == 0 || len(x.history.Earlier) > maxEarlier {
		return nil, fmt.Errorf("artefact %v: snapshot %d of %.80q: %w", d.Digest, x.history.Sequence, x.history.Service, manifest.ErrCorrupt)
	}
	for _, e := range x.history.Earlier {
		if e.Service != x.history.Service || e.Artefact.Size < 0 {
			return nil, fmt.Errorf("artefact %v: an earlier snapshot of %.80q: %w", d.Digest, e.Service, manifest.ErrCorrupt)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loaded[d.Digest] = x
	return x, nil
}

func verify(b []byte, d manifest.Digest, what string) error {
	if got := manifest.Sum(b); got != d {
		return fmt.Errorf("%s %v: %d bytes with the digest %v: %w", what, d, len(b), got, manifest.ErrCorrupt)
	}
	return nil
}

// whole reads a small blob and verifies it.
func (a *Archive) whole(ctx context.Context, d descriptor, most int64) ([]byte, error) {
	if d.Size > most {
		return nil, fmt.Errorf("blob %v has %d bytes, more than %d: %w", d.Digest, d.Size, most, manifest.ErrCorrupt)
	}
	b, err := a.shelf.read(ctx, d.Digest, 0, d.Size)
	if err != nil {
		return nil, err
	}
	return b, verify(b, d.Digest, "blob")
}

// Snapshots lists what is in the archive, the newest first.
func (a *Archive) Snapshots() []Edition { return slices.Clone(a.editions) }

// Service returns the name of the service whose snapshots these are.
func (a *Archive) Service() string { return a.editions[0].Service }

// Snapshot returns the snapshot that ref names; one without a service is of the
// archive's. The error wraps ErrNotFound and says what there is, or as for Open.
func (a *Archive) Snapshot(ctx context.Context, ref manifest.Ref) (*manifest.Snapshot, error) {
	b, err := a.Encoded(ctx, ref)
	if err != nil {
		return nil, err
	}
	s, err := manifest.DecodeSnapshot(b)
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w", a.ref, err)
	}
	return s, nil
}

// Encoded returns the encoding of the snapshot that ref names.
func (a *Archive) Encoded(ctx context.Context, ref manifest.Ref) ([]byte, error) {
	i := slices.IndexFunc(a.editions, func(e Edition) bool {
		return (ref.Service == "" || ref.Service == e.Service) && ref.Names(e.Sequence, e.Created)
	})
	if i < 0 {
		return nil, fmt.Errorf("archive %s: snapshot %s: %w: it has %s", a.ref, ref, manifest.ErrNotFound, a.describe())
	}
	b, err := a.encoded(ctx, i)
	if err != nil {
		return nil, fmt.Errorf("archive %s: snapshot %d of %s: %w", a.ref, a.editions[i].Sequence, a.editions[i].Service, err)
	}
	return b, nil
}

func (a *Archive) encoded(ctx context.Context, i int) ([]byte, error) {
	x, err := a.load(ctx, a.artefacts[i])
	if err != nil {
		return nil, err
	}
	l := x.manifest.Layers[0]
	frame, err := a.whole(ctx, l, compressed(manifest.MaxSnapshot))
	if err != nil {
		return nil, err
	}
	raw, err := strconv.ParseInt(l.Annotations[noteSnapshot], 10, 64)
	if err != nil || raw < 0 || raw > manifest.MaxSnapshot {
		return nil, fmt.Errorf("annotation %s %.40q: %w", noteSnapshot, l.Annotations[noteSnapshot], manifest.ErrCorrupt)
	}
	b, err := decompress(frame, raw)
	if err == nil {
		err = verify(b, a.editions[i].Snapshot, "snapshot")
	}
	return b, err
}

func (a *Archive) describe() string {
	var numbers []string
	for _, e := range a.editions[:min(len(a.editions), 12)] {
		numbers = append(numbers, strconv.FormatUint(e.Sequence, 10))
	}
	if len(numbers) < len(a.editions) {
		numbers = append(numbers, "...")
	}
	return fmt.Sprintf("%s, snapshots %s", a.Service(), strings.Join(numbers, ", "))
}

// String returns the reference that it was opened by.
func (a *Archive) String() string { return a.ref }

// ID returns a name for the archive that can be a file's, the same each time that it
// is opened by the same reference.
func (a *Archive) ID() string { return RefID(a.ref) }

// RefID returns the ID of the archive that a reference names.
func RefID(ref string) string {
	if k, err := sortOf(ref); err == nil && (k == folderKind || k == fileKind) {
		if abs, err := filepath.Abs(ref); err == nil {
			ref = abs
		}
	}
	return "archive-" + manifest.Sum([]byte(ref)).Hex()[:32]
}

// Close closes the archive. Readings under way fail.
func (a *Archive) Close() error { return a.shelf.close() }
