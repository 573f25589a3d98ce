package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"srvfs/manifest"
)

// A registryTarget is a tag of a repository. What is new is staged in a folder here, and
// pushed: blobs, then manifests, the tag at last.
type registryTarget struct {
	dest    string
	options Options
	tag     name.Tag
	dir     string
	lock    *os.File // of a folder that other exports may use
}

func newRegistryTarget(dest string, o Options) (*registryTarget, error) {
	r, err := parseRegistry(dest, o.Insecure)
	if err != nil {
		return nil, err
	}
	tag, ok := r.(name.Tag)
	if !ok {
		return nil, fmt.Errorf("%s: an export needs a tag, not a digest: %w", dest, manifest.ErrInvalid)
	}
	return &registryTarget{dest: dest, options: o, tag: tag}, nil
}

func (t *registryTarget) open(ctx context.Context) (*Archive, error) {
	a, err := Open(ctx, t.dest, OpenOptions{Insecure: t.options.Insecure})
	if errors.Is(err, manifest.ErrNotFound) {
		return nil, nil
	}
	return a, err
}

func (t *registryTarget) stage(context.Context) (*stage, error) {
	if t.options.Temp == "" {
		dir, err := os.MkdirTemp("", "srvfs-export-")
		if err != nil {
			return nil, fmt.Errorf("folder for new blobs: %w", noSpace(err))
		}
		t.dir = dir
		return openStage(dir)
	}
	// A folder of its own, the same each time, so that what a killed export left goes.
	dir := filepath.Join(t.options.Temp, "export-"+RefID(t.dest))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("folder for new blobs: %w", noSpace(err))
	}
	var err error
	if t.lock, err = lockFolder(dir, t.dest); err != nil {
		return nil, err
	}
	t.dir = dir
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return openStage(dir)
}

func (t *registryTarget) publish(ctx context.Context, s *stage, p *publication) error {
	options := []remote.Option{remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(registryTransport(t.options.Insecure))}
	repo := t.tag.Context()
	failed := func(err error) error { return ofRegistry(ctx, repo.RegistryStr(), err) }
	pusher, err := remote.NewPusher(options...)
	if err != nil {
		return failed(err)
	}
	for _, d := range s.new {
		if d.MediaType == typeManifest {
			continue
		}
		if err := pusher.Upload(ctx, repo, pushed{s, d}); err != nil {
			return fmt.Errorf("push blob %v: %w", d.Digest, failed(err))
		}
	}
	number := t.tag.TagStr() + "-" + strconv.FormatUint(p.edition.Sequence, 10)
	for _, m := range []struct {
		tag string
		d   descriptor
	}{{number, p.image}, {number + besideIt, p.beside}, {t.tag.TagStr() + besideIt, p.beside}, {t.tag.TagStr(), p.image}} {
		if err := pusher.Put(ctx, repo.Tag(m.tag), pushed{s, m.d}); err != nil {
			return fmt.Errorf("push manifest %s: %w", m.tag, failed(err))
		}
	}
	return nil
}

func (t *registryTarget) close() error {
	if t.dir == "" {
		return nil
	}
	err := os.RemoveAll(t.dir)
	if t.lock != nil {
		err = errors.Join(err, t.lock.Close())
	}
	return err
}

// pushed is a staged blob or manifest as the library that pushes it sees it.
type pushed struct {
	s *stage
	d descriptor
}

func (p pushed) Digest() (v1.Hash, error) {
	return v1.Hash{Algorithm: "sha256", Hex: p.d.Digest.Hex()}, nil
}
func (p pushed) DiffID() (v1.Hash, error)            { return p.Digest() }
func (p pushed) Size() (int64, error)                { return p.d.Size, nil }
func (p pushed) MediaType() (types.MediaType, error) { return types.MediaType(p.d.MediaType), nil }
func (p pushed) Compressed() (io.ReadCloser, error)  { return os.Open(p.s.path(p.d.Digest)) }
func (p pushed) RawManifest() ([]byte, error)        { return os.ReadFile(p.s.path(p.d.Digest)) }
func (p pushed) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("blobs are pushed as they are")
}
