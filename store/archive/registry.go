package archive

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"srvfs/manifest"
)

// A registry is one repository of an OCI registry. Blobs are read by range requests.
type registry struct {
	ref    name.Reference
	client *http.Client
}

// parseRegistry reads docker://REGISTRY/REPOSITORY:TAG.
func parseRegistry(ref string, insecure bool) (name.Reference, error) {
	options := []name.Option{name.WithDefaultTag(latest)}
	if insecure {
		options = append(options, name.Insecure)
	}
	r, err := name.ParseReference(strings.TrimPrefix(ref, registryPrefix), options...)
	if err != nil {
		return nil, fmt.Errorf("archive %.200q: %w; it is written docker://REGISTRY/REPOSITORY:TAG: %w", ref, err, manifest.ErrInvalid)
	}
	return r, nil
}

// registryTransport is what requests to registries go through, before they have a login.
func registryTransport(insecure bool) *http.Transport {
	t := newTransport()
	if insecure {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the administrator has asked for it
	}
	return t
}

func openRegistry(ctx context.Context, ref string, o OpenOptions) (shelf, error) {
	r, err := parseRegistry(ref, o.Insecure)
	if err != nil {
		return nil, err
	}
	base := o.Transport
	if base == nil {
		base = registryTransport(o.Insecure)
	}
	auth, err := authn.DefaultKeychain.Resolve(r.Context())
	if err != nil {
		return nil, fmt.Errorf("archive %s: login for %s: %w", ref, r.Context().RegistryStr(), err)
	}
	t, err := transport.NewWithContext(ctx, r.Context().Registry, auth, base, []string{r.Scope(transport.PullScope)})
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w", ref, ofRegistry(ctx, r.Context().RegistryStr(), err))
	}
	return &registry{ref: r, client: &http.Client{Transport: t}}, nil
}

// ofRegistry gives an error of a registry its kind.
func ofRegistry(ctx context.Context, host string, err error) error {
	var answer *transport.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, manifest.ErrDenied), errors.Is(err, manifest.ErrUnavailable), errors.Is(err, manifest.ErrNotFound):
		return err
	case !errors.As(err, &answer):
		return fmt.Errorf("registry %s: %w: %w", host, err, manifest.ErrUnavailable)
	}
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("registry %s: %w: it wants a login: run `podman login %s` or `docker login %s` as the user that this runs as: %w", host, err, host, host, manifest.ErrDenied)
	case http.StatusNotFound:
		return fmt.Errorf("registry %s: %w: %w", host, err, manifest.ErrNotFound)
	}
	return fmt.Errorf("registry %s: %w: %w", host, err, manifest.ErrUnavailable)
}

func (r *registry) host() string { return r.ref.Context().RegistryStr() }

func (r *registry) url(what, id string) string {
	c := r.ref.Context()
	return c.Scheme() + "://" + c.RegistryStr() + "/v2/" + c.RepositoryStr() + "/" + what + "/" + id
}

// get reads a manifest, by tag or by digest, or a list of referrers.
func (r *registry) get(ctx context.Context, what, id string) ([]byte, error) {
	url := r.url(what, id)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", strings.Join([]string{typeManifest, typeIndex, typeDockerSchema}, ", "))
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, ofRegistry(ctx, r.host(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		if err := transport.CheckError(resp, http.StatusOK); err != nil {
			return nil, ofRegistry(ctx, r.host(), err)
		}
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	switch {
	case err != nil:
		return nil, unreachable(ctx, url, err)
	case len(b) > maxManifest:
		return nil, fmt.Errorf("%s: more than %d bytes: %w", url, maxManifest, manifest.ErrCorrupt)
	}
	return b, nil
}

func (r *registry) manifest(ctx context.Context, d descriptor) ([]byte, error) {
	return r.get(ctx, "manifests", d.Digest.String())
}

func (r *registry) read(ctx context.Context, blob manifest.Digest, off, n int64) ([]byte, error) {
	if n == 0 {
		return nil, ctx.Err()
	}
	b, err := getRange(ctx, r.client, r.url("blobs", blob.String()), off, n, func(int64, string) error { return nil })
	if errors.Is(err, manifest.ErrDenied) {
		return nil, fmt.Errorf("%w (run `podman login %s` or `docker login %s`)", err, r.host(), r.host())
	}
	if errors.Is(err, manifest.ErrNotFound) {
		// It was named by what is there.
		return nil, fmt.Errorf("registry %s has lost a blob: %w: %w", r.host(), errors.New(err.Error()), manifest.ErrCorrupt)
	}
	return b, err
}

func (r *registry) close() error {
	r.client.CloseIdleConnections()
	return nil
}

// top finds the artefact beside the image of the tag: among the image's referrers, which
// the registry lists, or which a tag lists if the registry can't; or under the tag's name
// with besideIt, for those that were copied by a tool that knows no referrers.
func (r *registry) top(ctx context.Context) (*contents, error) {
	b, err := r.get(ctx, "manifests", r.ref.Identifier())
	if err != nil {
		return nil, err
	}
	image := descriptor{MediaType: typeManifest, Digest: manifest.Sum(b), Size: int64(len(b))}
	if d, err := manifest.ParseDigest(r.ref.Identifier()); err == nil && d != image.Digest {
		return nil, verify(b, d, "image")
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, err
	}
	if m.ours() { // the artefact itself was named
		return &contents{artefacts: []descriptor{image}}, nil
	}
	c := &contents{images: []descriptor{image}}
	list, err := r.get(ctx, "referrers", image.Digest.String())
	if errors.Is(err, manifest.ErrNotFound) {
		list, err = r.get(ctx, "manifests", strings.Replace(image.Digest.String(), ":", "-", 1))
	}
	switch {
	case err == nil:
		var index ociIndex
		if err := parse(list, "list of referrers", &index); err != nil {
			return nil, err
		}
		c.artefacts = slices.DeleteFunc(index.Manifests, func(d descriptor) bool {
			return d.ArtifactType != ArtifactType && d.ArtifactType != typeHistory || d.Size < 0
		})
	case !errors.Is(err, manifest.ErrNotFound):
		return nil, err
	}
	if len(c.artefacts) > 0 || strings.Contains(r.ref.Identifier(), ":") {
		return c, nil
	}
	b, err = r.get(ctx, "manifests", r.ref.Identifier()+besideIt)
	if errors.Is(err, manifest.ErrNotFound) {
		return c, nil
	} else if err != nil {
		return nil, err
	}
	if m, err = parseManifest(b); err == nil && m.ours() && m.Subject != nil && m.Subject.Digest == image.Digest {
		c.artefacts = []descriptor{{MediaType: typeManifest, Digest: manifest.Sum(b), Size: int64(len(b))}}
	}
	return c, nil
}
