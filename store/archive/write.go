package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"srvfs/manifest"
)

// Options say how an export is written.
type Options struct {
	// Compact writes one new layer with all that the snapshot has, instead of one more
	// with what has changed. Earlier snapshots are in the archive no more.
	Compact bool
	// Recipients, as "age1...", are who can decrypt a FILE.tar; none: it is not encrypted.
	Recipients []string
	// Identity is the path of a file with age identities, which an encrypted FILE.tar that
	// is added to needs.
	Identity string
	// Insecure is as in OpenOptions.
	Insecure bool
	// Temp is where layers are kept on their way to a registry; empty: the system's.
	Temp string
	// Progress is told how far the export is, from time to time.
	Progress func(Progress)
}

// Progress tells how far an export is.
type Progress struct {
	Bytes, TotalBytes int64 // of files
	Stage             string
}

// Written says what an export did.
type Written struct {
	Edition
	Dest string `json:"dest"`
	// Unchanged: the archive had this state already, and nothing was written.
	Unchanged bool            `json:"unchanged"`
	Image     manifest.Digest `json:"image"`
	Layers    int             `json:"layers"`  // of the image
	Members   int             `json:"members"` // of the new layer; 0: there is none
	Bytes     int64           `json:"bytes"`   // of files in the new layer
	Added     int64           `json:"added"`   // bytes of new blobs
}

// Write exports a snapshot to a folder, a FILE.tar or a registry. If an archive of the
// service is there, a layer with what has changed is added to it; if nothing has, nothing
// is written.
//
// The error wraps ErrInvalid: the destination is of no known kind, or holds something
// else. ErrStale, ErrNotFound, ErrUnavailable, ErrCorrupt: as the source says; ErrDenied: the
// registry wants a login. ErrNoSpace. Whatever it is, the archive is what it was.
func Write(ctx context.Context, dest string, snap *manifest.Snapshot, src Source, o Options) (_ *Written, err error) {
	t, err := targetOf(dest, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	old, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	if old != nil {
		defer func() { err = errors.Join(err, old.Close()) }()
		if old.Service() != snap.Service {
			return nil, fmt.Errorf("%s holds an archive of the service %s, not of %s: choose another place: %w", dest, old.Service(), snap.Service, manifest.ErrInvalid)
		}
	}
	s, err := t.stage(ctx)
	if err != nil {
		return nil, err
	}
	e := &export{dest: dest, options: o, snap: snap, src: src, stage: s, old: old}
	if e.encoded, err = snap.Encode(); err != nil {
		return nil, err
	}
	w, err := e.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("export snapshot %d of %s to %s: %w", snap.Sequence, snap.Service, dest, err)
	}
	if w.Unchanged {
		return w, nil
	}
	if err := t.publish(ctx, s, e.publication); err != nil {
		return nil, fmt.Errorf("export snapshot %d of %s to %s: %w", snap.Sequence, snap.Service, dest, err)
	}
	return w, nil
}

func targetOf(dest string, o Options) (target, error) {
	k, err := sortOf(dest)
	if err != nil {
		return nil, err
	}
	if len(o.Recipients) > 0 && k != fileKind {
		return nil, fmt.Errorf("%s: only a FILE.tar can be encrypted: %w", dest, manifest.ErrInvalid)
	}
	switch k {
	case fileKind:
		return newFileTarget(dest, o)
	case registryKind:
		return newRegistryTarget(dest, o)
	case webKind:
		return nil, fmt.Errorf("%s: nothing can be written to a web server: export to a FILE.tar, and put that there: %w", dest, manifest.ErrInvalid)
	}
	return &folderTarget{dir: dest}, nil
}

// An export is one under way.
type export struct {
	dest    string
	options Options
	snap    *manifest.Snapshot
	encoded []byte
	src     Source
	stage   *stage
	old     *Archive

	base        *oldImage // what the image is built on; nil: nothing
	publication *publication
}

// An oldImage is the newest image of an archive.
type oldImage struct {
	snap     *manifest.Snapshot
	artefact *artefact
	manifest *ociManifest
	config   *imageConfig
}

func (e *export) run(ctx context.Context) (*Written, error) {
	w := &Written{Dest: e.dest, Edition: Edition{
		Service: e.snap.Service, Sequence: e.snap.Sequence, Created: e.snap.Created, Source: e.snap.Source,
		Snapshot: manifest.Sum(e.encoded), Root: e.snap.Root.Digest,
	}}
	if e.old != nil {
		base, err := e.old.newest(ctx)
		if err != nil {
			return nil, err
		}
		equal, err := alike(base.snap, e.snap)
		if err != nil {
			return nil, err
		}
		if equal && (!e.options.Compact || len(base.manifest.Layers) == 1) {
			w.Edition, w.Unchanged, w.Image, w.Layers = e.old.editions[0], true, base.artefact.manifest.Subject.Digest, len(base.manifest.Layers)
			return w, nil
		}
		if e.snap.Sequence <= base.snap.Sequence && !e.options.Compact {
			return nil, fmt.Errorf("the archive has snapshot %d, which is newer: name a newer one, or another place: %w", base.snap.Sequence, manifest.ErrInvalid)
		}
		if !e.options.Compact {
			e.base = base
		}
	}
	layer, diff, places, err := e.layer(ctx, w)
	if err != nil {
		return nil, err
	}
	image, err := e.image(ctx, layer, diff)
	if err != nil {
		return nil, err
	}
	w.Image = image.Digest
	beside, err := e.beside(ctx, w.Edition, image, layer, places)
	if err != nil {
		return nil, err
	}
	if err := e.list(w.Edition, image, beside); err != nil {
		return nil, err
	}
	w.Layers = e.layers(layer)
	w.Added = e.stage.size()
	return w, nil
}

func (e *export) layers(layer *descriptor) (n int) {
	if e.base != nil {
		n = len(e.base.manifest.Layers)
	}
	if layer != nil {
		n++
	}
	return n
}

// alike reports whether two snapshots differ in nothing but when they were made.
func alike(a, b *manifest.Snapshot) (bool, error) {
	x, y := *a, *b
	x.Sequence, x.Created = y.Sequence, y.Created
	one, err := x.Encode()
	if err != nil {
		return false, err
	}
	two, err := y.Encode()
	return bytes.Equal(one, two), err
}

// newest returns the newest image of an archive, and its snapshot.
func (a *Archive) newest(ctx context.Context) (*oldImage, error) {
	x, err := a.load(ctx, a.artefacts[0])
	if err != nil {
		return nil, err
	}
	i := &oldImage{artefact: x, config: &imageConfig{}}
	if i.snap, err = a.Snapshot(ctx, manifest.Ref{}); err != nil {
		return nil, err
	}
	if x.manifest.Subject == nil {
		return nil, fmt.Errorf("artefact %v names no image: %w", x.desc.Digest, manifest.ErrCorrupt)
	}
	b, err := a.shelf.manifest(ctx, *x.manifest.Subject)
	if err == nil {
		err = verify(b, x.manifest.Subject.Digest, "image")
	}
	if err != nil {
		return nil, err
	}
	if i.manifest, err = parseManifest(b); err != nil {
		return nil, err
	}
	if b, err = a.whole(ctx, i.manifest.Config, maxManifest); err != nil {
		return nil, err
	}
	if err := parse(b, "image configuration", i.config); err != nil {
		return nil, err
	}
	if len(i.config.RootFS.DiffIDs) != len(i.manifest.Layers) {
		return nil, fmt.Errorf("image %v: %d layers with %d digests: %w", x.manifest.Subject.Digest, len(i.manifest.Layers), len(i.config.RootFS.DiffIDs), manifest.ErrCorrupt)
	}
	return i, nil
}

// layer writes what has changed. Without changes there is no layer.
func (e *export) layer(ctx context.Context, w *Written) (*descriptor, manifest.Digest, map[manifest.Digest]place, error) {
	var none manifest.Digest
	var before *manifest.Snapshot
	var beforeSrc manifest.MetaSource
	total := int64(e.snap.Totals.Bytes)
	if e.base != nil {
		before, beforeSrc = e.base.snap, e.old
		if len(e.base.manifest.Layers) >= maxLayers {
			return nil, none, nil, fmt.Errorf("the image has %d layers, and could not be run with more: write it anew with --compact: %w", len(e.base.manifest.Layers), manifest.ErrInvalid)
		}
		if before.Root.Equal(&e.snap.Root) {
			return nil, none, nil, nil
		}
		total = 0
		if err := changes(ctx, beforeSrc, e.src, before, e.snap, func(c change) error {
			if c.entry != nil {
				total += c.entry.Size
			}
			return nil
		}); err != nil {
			return nil, none, nil, err
		}
	}
	blob, err := e.stage.create()
	if err != nil {
		return nil, none, nil, err
	}
	defer blob.discard()
	l, err := newLayerWriter(blob)
	if err != nil {
		return nil, none, nil, err
	}
	read := func(c manifest.Content) (io.ReadCloser, error) { return e.src.Read(ctx, c) }
	err = changes(ctx, beforeSrc, e.src, before, e.snap, func(c change) error {
		if err := l.add(c, read); err != nil {
			return err
		}
		if c.entry != nil && c.entry.Type == manifest.File {
			w.Bytes += c.entry.Size
			e.progress(min(w.Bytes, total), total, "layer")
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, none, nil, err
	}
	diff, notes, err := l.finish(ctx)
	if err != nil {
		return nil, none, nil, err
	}
	d, err := blob.finish(typeLayer, notes)
	if err != nil {
		return nil, none, nil, err
	}
	w.Members = l.members
	return &d, diff, l.added, nil
}

func (e *export) progress(n, total int64, stage string) {
	if e.options.Progress != nil {
		e.options.Progress(Progress{Bytes: n, TotalBytes: total, Stage: stage})
	}
}

// image writes the image's configuration and manifest.
func (e *export) image(ctx context.Context, layer *descriptor, diff manifest.Digest) (descriptor, error) {
	e.publication = &publication{old: e.old}
	var config *imageConfig
	m := ociManifest{SchemaVersion: 2, MediaType: typeManifest}
	var err error
	if config, err = e.configure(ctx); err != nil {
		return descriptor{}, err
	}
	if e.base != nil {
		m.Layers = slices.Clone(e.base.manifest.Layers)
		config.RootFS.DiffIDs = slices.Clone(e.base.config.RootFS.DiffIDs)
		config.History = slices.Clone(e.base.config.History)
	}
	if layer != nil {
		m.Layers = append(m.Layers, *layer)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
		config.History = append(config.History, imageHistory{Created: stamp(e.snap), By: fmt.Sprintf("srvfs snapshot %d of %s", e.snap.Sequence, e.snap.Service)})
	}
	b, err := encode(config)
	if err != nil {
		return descriptor{}, err
	}
	if m.Config, err = e.stage.put(b, typeConfig, nil); err != nil {
		return descriptor{}, err
	}
	m.Annotations = map[string]string{
		noteService: e.snap.Service, noteSequence: strconv.FormatUint(e.snap.Sequence, 10),
		"org.opencontainers.image.created": stamp(e.snap), "org.opencontainers.image.title": e.snap.Service,
	}
	if b, err = encode(&m); err != nil {
		return descriptor{}, err
	}
	d, err := e.stage.put(b, typeManifest, nil)
	if err != nil {
		return descriptor{}, err
	}
	d.Platform = &platform{Architecture: config.Architecture, OS: config.OS}
	e.publication.all = append(e.publication.all, d, m.Config)
	e.publication.all = append(e.publication.all, m.Layers...)
	return d, nil
}

// beside writes the artefact.
func (e *export) beside(ctx context.Context, edition Edition, image descriptor, layer *descriptor, added map[manifest.Digest]place) (descriptor, error) {
	snapshot, err := compress(nil, e.encoded)
	if err != nil {
		return descriptor{}, err
	}
	m := ociManifest{SchemaVersion: 2, MediaType: typeManifest, ArtifactType: ArtifactType}
	d, err := e.stage.put(snapshot, typeSnapshot, map[string]string{noteSnapshot: strconv.Itoa(len(e.encoded))})
	if err != nil {
		return d, err
	}
	m.Layers = append(m.Layers, d)
	h := history{Edition: edition}
	if e.base != nil {
		m.Layers = append(m.Layers, e.base.artefact.manifest.Layers[1:]...)
		h.Earlier = append(h.Earlier, past{e.old.editions[0], e.old.artefacts[0]})
		h.Earlier[0].Artefact.Annotations = nil
		h.Earlier = append(h.Earlier, e.base.artefact.history.Earlier...)
		h.Earlier = h.Earlier[:min(len(h.Earlier), maxEarlier)]
	}
	fresh, err := e.index(ctx, layer, added)
	if err != nil {
		return d, err
	}
	m.Layers = append(m.Layers, fresh...)
	b, err := encode(&h)
	if err != nil {
		return d, err
	}
	if m.Config, err = e.stage.put(b, typeHistory, nil); err != nil {
		return d, err
	}
	m.Subject = &descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size}
	m.Annotations = map[string]string{noteService: edition.Service, noteSequence: strconv.FormatUint(edition.Sequence, 10)}
	if b, err = encode(&m); err != nil {
		return d, err
	}
	if d, err = e.stage.put(b, typeManifest, nil); err != nil {
		return d, err
	}
	d.ArtifactType = ArtifactType
	e.publication.all = append(e.publication.all, d, m.Config)
	e.publication.all = append(e.publication.all, m.Layers...)
	return d, nil
}

// index writes the metadata that the archive does not have into a pack, and where that
// and new content is into an index.
func (e *export) index(ctx context.Context, layer *descriptor, added map[manifest.Digest]place) ([]descriptor, error) {
	w, err := e.stage.create()
	if err != nil {
		return nil, err
	}
	defer w.discard()
	has := func([]manifest.Digest) (map[manifest.Digest]bool, error) { return nil, nil }
	if e.base != nil {
		has = func(digests []manifest.Digest) (map[manifest.Digest]bool, error) {
			found, err := e.old.locate(ctx, digests)
			known := make(map[manifest.Digest]bool, len(found))
			for d := range found {
				known[d] = true
			}
			return known, err
		}
	}
	p := newPackWriter(w)
	if err := newMeta(ctx, e.src, e.snap, has, p.put); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if err := p.cut(); err != nil {
		return nil, err
	}
	places := map[manifest.Digest]place{}
	var blobs []blobRef
	var out []descriptor
	if len(added) > 0 {
		digests := make([]manifest.Digest, 0, len(added))
		for d := range added {
			digests = append(digests, d)
		}
		known, err := has(digests)
		if err != nil {
			return nil, err
		}
		for d, at := range added {
			if !known[d] {
				places[d] = at
			}
		}
		blobs = append(blobs, blobRef{digest: layer.Digest, size: layer.Size})
	}
	if p.off > 0 {
		d, err := w.finish(typePack, nil)
		if err != nil {
			return nil, err
		}
		for digest, at := range p.added {
			at.blob = len(blobs)
			places[digest] = at
		}
		blobs = append(blobs, blobRef{digest: d.Digest, size: d.Size, pack: true})
		out = append(out, d)
	}
	if len(places) == 0 {
		return out, nil
	}
	b, head, err := encodeIndex(blobs, places)
	if err != nil {
		return nil, err
	}
	d, err := e.stage.put(b, typePlaces, map[string]string{noteHead: headNote(head, manifest.Sum(b[:head]))})
	return append(out, d), err
}

// list makes the index.json of a layout, and the list of all blobs in it.
func (e *export) list(edition Edition, image, beside descriptor) error {
	p := e.publication
	p.edition, p.image, p.beside = edition, image, beside
	number := strconv.FormatUint(edition.Sequence, 10)
	index := ociIndex{SchemaVersion: 2, MediaType: typeIndex}
	if e.base != nil {
		kept, all, err := e.old.kept()
		if err != nil {
			return err
		}
		index.Manifests, p.all = kept, append(p.all, all...)
	}
	name := func(d descriptor, name string) descriptor {
		d.Annotations = map[string]string{noteName: name, noteService: edition.Service, noteSequence: number}
		return d
	}
	index.Manifests = append(index.Manifests, name(image, number), name(beside, number+besideIt), name(image, latest), name(beside, latest+besideIt))
	var err error
	p.index, err = encode(&index)
	return err
}
