package archive

import (
	"encoding/json"
	"fmt"
	"strings"

	"srvfs/manifest"
)

// Media types. Those of OCI are from its image specification 1.1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+zstd"

	// ArtifactType is the type of what stands beside an image: see the package comment.
	ArtifactType     = "application/vnd.srvfs.snapshot.v1"
	typeHistory      = "application/vnd.srvfs.snapshot.config.v1+json"
	typeSnapshot     = "application/vnd.srvfs.snapshot.v1+zstd"
	typePlaces       = "application/vnd.srvfs.index.v1"
	typePack         = "application/vnd.srvfs.pack.v1"
	typeDockerSchema = "application/vnd.docker.distribution.manifest.v2+json"
)

// Annotations.
const (
	noteName     = "org.opencontainers.image.ref.name"
	noteHead     = "srvfs.index.head" // of an index: the length of its head, and its digest
	noteService  = "srvfs.service"
	noteSequence = "srvfs.sequence"
	noteSnapshot = "srvfs.snapshot"
	// Where the table of contents of a zstd:chunked layer is, and its digest. Before podman 4.5
	// they had other names; they are not given, since what podman made of the table then lacked
	// times and devices, and of the layer as a whole it makes everything.
	noteChecksum = "io.github.containers.zstd-chunked.manifest-checksum"
	notePosition = "io.github.containers.zstd-chunked.manifest-position"
)

// Names in a layout, and tags in a registry: of the newest image; and what is added to
// an image's name for that of the artefact beside it.
const (
	latest   = "latest"
	besideIt = "-snapshot"
)

// maxManifest bounds an OCI manifest, index or configuration, in bytes.
const maxManifest = 8 << 20

// maxLayers is how many layers an image may have. overlayfs takes 127 below another,
// fewer on old kernels.
const maxLayers = 120

// A descriptor points to a blob.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       manifest.Digest   `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Platform     *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// An ociIndex lists manifests.
type ociIndex struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Manifests     []descriptor `json:"manifests"`
}

// An ociManifest is an image, or an artefact.
type ociManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Subject       *descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// ours reports whether it is an artefact of this package.
func (m *ociManifest) ours() bool {
	return m.ArtifactType == ArtifactType || m.Config.MediaType == typeHistory
}

// A history is an artefact's configuration.
type history struct {
	Edition
	// Earlier are the artefacts of the snapshots that were exported before, the newest
	// first, as far back as the last compact archive.
	Earlier []past `json:"earlier,omitempty"`
}

type past struct {
	Edition
	Artefact descriptor `json:"artefact"`
}

// maxEarlier bounds the list of earlier snapshots.
const maxEarlier = 4096

// parse decodes JSON of an archive. The error wraps ErrCorrupt: whoever wrote it, or
// changed it, is at fault.
func parse(b []byte, what string, into any) error {
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w: %w", what, err, manifest.ErrCorrupt)
	}
	return nil
}

// parseManifest decodes a manifest and looks at all that it says of sizes.
func parseManifest(b []byte) (*ociManifest, error) {
	m := &ociManifest{}
	if err := parse(b, "manifest", m); err != nil {
		return nil, err
	}
	all := append([]descriptor{m.Config}, m.Layers...)
	if m.Subject != nil {
		all = append(all, *m.Subject)
	}
	for _, d := range all {
		if d.Size < 0 || d.Digest.IsZero() {
			return nil, fmt.Errorf("manifest: a blob %v of %d bytes: %w", d.Digest, d.Size, manifest.ErrCorrupt)
		}
	}
	return m, nil
}

// encode returns JSON with a digest that depends on the value alone: fields are in the
// order of their declaration, and keys of maps are sorted.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return b, nil
}

// head is the annotation of an index: how long its head is, and its digest.
func headNote(n int64, d manifest.Digest) string { return fmt.Sprintf("%d %v", n, d) }

func parseHeadNote(s string) (n int64, d manifest.Digest, err error) {
	var hex string
	if _, err = fmt.Sscanf(s, "%d %s", &n, &hex); err == nil {
		d, err = manifest.ParseDigest(strings.TrimSpace(hex))
	}
	if err == nil && (n <= 0 || n > maxHead) {
		err = fmt.Errorf("a head of %d bytes", n)
	}
	if err != nil {
		return 0, manifest.Digest{}, fmt.Errorf("annotation %s %.100q: %w: %w", noteHead, s, err, manifest.ErrCorrupt)
	}
	return n, d, nil
}
