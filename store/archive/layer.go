package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A layerWriter writes one layer: a tar file in zstd frames, with the table of contents
// of zstd:chunked at its end. Each frameSize bytes of a file are a frame, and what stands
// between files, headers and padding, is in frames of its own.
type layerWriter struct {
	out  io.Writer
	off  int64        // written to out
	raw  bytes.Buffer // of the tar file, not yet in a frame
	diff hash.Hash    // of the tar file
	tar  *tar.Writer
	buf  []byte // a frame of a file
	zip  []byte // compressed

	contents *contentsTable
	first    map[uint64]string // where hard-linked files stand in this layer
	added    map[manifest.Digest]place
	members  int
}

func newLayerWriter(out io.Writer) (*layerWriter, error) {
	w := &layerWriter{out: out, diff: sha256.New(), buf: make([]byte, frameSize), first: map[uint64]string{}, added: map[manifest.Digest]place{}}
	w.tar = tar.NewWriter(io.MultiWriter(&w.raw, w.diff))
	var err error
	w.contents, err = newContentsTable()
	return w, err
}

// cut ends a frame. It returns the frame's length.
func (w *layerWriter) cut() (int64, error) {
	if w.raw.Len() == 0 {
		return 0, nil
	}
	var err error
	if w.zip, err = compress(w.zip[:0], w.raw.Bytes()); err != nil {
		return 0, err
	}
	w.raw.Reset()
	return w.write(w.zip)
}

func (w *layerWriter) write(b []byte) (int64, error) {
	n, err := w.out.Write(b)
	w.off += int64(n)
	if err != nil {
		return 0, fmt.Errorf("write a layer: %w", err)
	}
	return int64(n), nil
}

// add writes one member. Of a file, read returns the bytes.
func (w *layerWriter) add(c change, read func(manifest.Content) (io.ReadCloser, error)) error {
	w.members++
	name := strings.TrimPrefix(c.path, "/")
	base := path.Base(c.path)
	if strings.HasPrefix(base, whiteout) {
		return fmt.Errorf("%s: a name that begins with %s can't be in an OCI image, where it stands for a file that was removed: rename it, or exclude it from the capture: %w", c.path, whiteout, manifest.ErrInvalid)
	}
	if c.gone {
		return w.marker(path.Join(path.Dir(name), whiteout+base))
	}
	h, err := header(c.entry, name)
	if err != nil {
		return err
	}
	if c.entry.Type != manifest.Dir && c.entry.Link != 0 {
		if target, ok := w.first[c.entry.Link]; ok {
			h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, target, 0, nil
		} else {
			w.first[c.entry.Link] = h.Name
		}
	}
	if h.Typeflag == tar.TypeReg && h.Size > 0 {
		return w.file(h, c, read)
	}
	if err := w.header(h, c.path); err != nil {
		return err
	}
	if err := w.contents.add(row(h)); err != nil {
		return err
	}
	if c.bare {
		return w.marker(path.Join(name, opaque))
	}
	return nil
}

// marker writes a whiteout.
func (w *layerWriter) marker(name string) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX, ModTime: time.Unix(0, 0)}
	if err := w.header(h, name); err != nil {
		return err
	}
	return w.contents.add(row(h))
}

func (w *layerWriter) header(h *tar.Header, p string) error {
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w: %w", p, err, manifest.ErrInvalid)
	}
	if w.raw.Len() >= frameSize {
		_, err := w.cut()
		return err
	}
	return nil
}

// header returns the tar header of an entry.
func header(e *manifest.Entry, name string) (*tar.Header, error) {
	h := &tar.Header{Name: name, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID), ModTime: time.Unix(e.Mtime.Sec, int64(e.Mtime.Nsec)), Format: tar.FormatPAX}
	switch e.Type {
	case manifest.File:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case manifest.Dir:
		h.Typeflag = tar.TypeDir
		if h.Name += "/"; name == "" {
			h.Name = "./"
		}
	case manifest.Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
	case manifest.CharDevice, manifest.BlockDevice:
		h.Typeflag = tar.TypeChar
		if e.Type == manifest.BlockDevice {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(e.Rdev)), int64(unix.Minor(e.Rdev))
	case manifest.FIFO:
		h.Typeflag = tar.TypeFifo
	}
	for _, x := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+x.Name] = x.Value
	}
	return h, nil
}

// file writes a regular file that is not empty, and notes where its frames are.
func (w *layerWriter) file(h *tar.Header, c change, read func(manifest.Content) (io.ReadCloser, error)) error {
	content := c.entry.Content(c.path)
	body, err := read(content)
	if err != nil {
		return fmt.Errorf("%s: %w", c.path, err)
	}
	defer func() { _ = body.Close() }()
	if err := w.header(h, c.path); err != nil {
		return err
	}
	if _, err := w.cut(); err != nil {
		return err
	}
	rows := []contentsRow{row(h)}
	whole := sha256.New()
	p := place{size: content.Size, off: w.off}
	for at := int64(0); at < content.Size; at += frameSize {
		b := w.buf[:min(frameSize, content.Size-at)]
		if _, err := io.ReadFull(body, b); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%s: it ends before its %d bytes: %w", c.path, content.Size, manifest.ErrCorrupt)
		} else if err != nil {
			return fmt.Errorf("%s: %w", c.path, err)
		}
		_, _ = whole.Write(b)
		start := w.off
		if _, err := w.tar.Write(b); err != nil {
			return fmt.Errorf("%s: %w", c.path, err)
		}
		n, err := w.cut()
		if err != nil {
			return err
		}
		p.frames = append(p.frames, n)
		if content.Size > frameSize {
			if at > 0 {
				rows = append(rows, contentsRow{Type: "chunk", Name: h.Name})
			}
			r := &rows[len(rows)-1]
			r.Offset, r.ChunkOffset, r.ChunkSize, r.ChunkDigest = start, at, int64(len(b)), manifest.Sum(b).String()
		}
	}
	if got := manifest.Digest(whole.Sum(nil)); got != content.Digest {
		return fmt.Errorf("%s: its digest is %v, not %v: %w", c.path, got, content.Digest, manifest.ErrCorrupt)
	}
	if _, ok := w.added[content.Digest]; !ok {
		w.added[content.Digest] = p
	}
	rows[0].Digest, rows[0].Offset, rows[0].EndOffset = content.Digest.String(), p.off, w.off
	return w.contents.add(rows...)
}

// finish ends the layer. It returns the digest of the tar file and the annotations of
// the layer's descriptor.
func (w *layerWriter) finish(context.Context) (diff manifest.Digest, notes map[string]string, err error) {
	if err := w.tar.Close(); err != nil {
		return diff, nil, fmt.Errorf("end a layer: %w", err)
	}
	if _, err := w.cut(); err != nil {
		return diff, nil, err
	}
	diff = manifest.Digest(w.diff.Sum(nil))
	table, raw, err := w.contents.finish()
	if err != nil || table == nil {
		return diff, nil, err
	}
	at := w.off + 8
	foot := binary.LittleEndian.AppendUint64(nil, uint64(at))
	for _, v := range []uint64{uint64(len(table)), uint64(raw), contentsType} {
		foot = binary.LittleEndian.AppendUint64(foot, v)
	}
	foot = append(foot, contentsMagic...)
	for _, b := range [][]byte{table, foot} {
		if _, err := w.write(skippable(b)); err != nil {
			return diff, nil, err
		}
	}
	return diff, map[string]string{
		noteChecksum: manifest.Sum(table).String(),
		notePosition: fmt.Sprintf("%d:%d:%d:%d", at, len(table), raw, contentsType),
	}, nil
}

// The end of a zstd:chunked layer: two skippable frames, the table of contents and the
// footer that says where it is. podman goes by the annotations alone; the footer is as
// stargz-snapshotter reads it.
const (
	contentsMagic  = "GnUlInUx"
	contentsType   = 1
	skippableMagic = 0x184d2a50
)

func skippable(b []byte) []byte {
	s := binary.LittleEndian.AppendUint32(nil, skippableMagic)
	s = binary.LittleEndian.AppendUint32(s, uint32(len(b)))
	return append(s, b...)
}

// A contentsRow is one element of the table of contents. The names are the format's.
type contentsRow struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	Linkname    string            `json:"linkName,omitempty"`
	Mode        int64             `json:"mode,omitempty"`
	Size        int64             `json:"size,omitempty"`
	UID         int               `json:"uid,omitempty"`
	GID         int               `json:"gid,omitempty"`
	ModTime     *time.Time        `json:"modtime,omitempty"`
	Devmajor    int64             `json:"devMajor,omitempty"`
	Devminor    int64             `json:"devMinor,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	EndOffset   int64             `json:"endOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkDigest string            `json:"chunkDigest,omitempty"`
}

var rowTypes = map[byte]string{tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink", tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo"}

func row(h *tar.Header) contentsRow {
	when := h.ModTime.UTC()
	r := contentsRow{Type: rowTypes[h.Typeflag], Name: h.Name, Linkname: h.Linkname, Mode: h.Mode, Size: h.Size, UID: h.Uid, GID: h.Gid, ModTime: &when, Devmajor: h.Devmajor, Devminor: h.Devminor}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if r.Xattrs == nil {
				r.Xattrs = map[string][]byte{}
			}
			r.Xattrs[name] = []byte(v)
		}
	}
	return r
}

// A contentsTable is the table of contents, compressed as it grows. JSON can't say
// every name and time that a file can have: a layer with such a one has no table, and is a
// plain tar file to everybody, which loses nothing.
type contentsTable struct {
	zip   bytes.Buffer
	enc   *zstd.Encoder
	raw   int64
	rows  int
	plain bool
}

func newContentsTable() (*contentsTable, error) {
	t := &contentsTable{}
	var err error
	if t.enc, err = zstd.NewWriter(&t.zip, zstd.WithEncoderConcurrency(1)); err != nil {
		return nil, err
	}
	return t, t.write([]byte(`{"version":1,"entries":[`))
}

func (t *contentsTable) write(b []byte) error {
	n, err := t.enc.Write(b)
	t.raw += int64(n)
	return err
}

func (t *contentsTable) add(rows ...contentsRow) error {
	for i := range rows {
		r := &rows[i]
		ok := utf8.ValidString(r.Name) && utf8.ValidString(r.Linkname)
		for name := range r.Xattrs {
			ok = ok && utf8.ValidString(name)
		}
		if r.ModTime != nil {
			ok = ok && r.ModTime.Year() >= 0 && r.ModTime.Year() <= 9999
		}
		if !ok {
			t.plain = true
		}
		if t.plain {
			return nil
		}
		b, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("table of contents: %w", err)
		}
		if t.rows++; t.rows > 1 {
			b = append([]byte{','}, b...)
		}
		if err := t.write(b); err != nil {
			return err
		}
	}
	return nil
}

// finish returns the compressed table and how long it is without that, or nil.
func (t *contentsTable) finish() ([]byte, int64, error) {
	err := t.write([]byte("]}"))
	if err = errors.Join(err, t.enc.Close()); err != nil {
		return nil, 0, fmt.Errorf("table of contents: %w", err)
	}
	if t.plain {
		return nil, 0, nil
	}
	return t.zip.Bytes(), t.raw, nil
}
