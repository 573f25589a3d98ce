package archive

import (
	"io"

	"srvfs/manifest"
)

// packSize is how much metadata is compressed together, in bytes: enough for names to
// repeat, little enough for one page of it to be had soon.
const packSize = 128 << 10

// A packWriter writes metadata, many pieces to a frame.
type packWriter struct {
	out   io.Writer
	off   int64
	raw   []byte
	open  map[manifest.Digest]place // in raw
	added map[manifest.Digest]place
	zip   []byte
}

func newPackWriter(out io.Writer) *packWriter {
	return &packWriter{out: out, open: map[manifest.Digest]place{}, added: map[manifest.Digest]place{}}
}

func (w *packWriter) put(d manifest.Digest, b []byte) error {
	if len(w.raw) > 0 && len(w.raw)+len(b) > packSize {
		if err := w.cut(); err != nil {
			return err
		}
	}
	w.open[d] = place{size: int64(len(b)), off: w.off, inner: int64(len(w.raw))}
	w.raw = append(w.raw, b...)
	return nil
}

// cut ends a frame.
func (w *packWriter) cut() (err error) {
	if len(w.raw) == 0 {
		return nil
	}
	if w.zip, err = compress(w.zip[:0], w.raw); err != nil {
		return err
	}
	n, err := w.out.Write(w.zip)
	w.off += int64(n)
	for d, p := range w.open {
		p.raw, p.frames = int64(len(w.raw)), []int64{int64(n)}
		w.added[d] = p
	}
	clear(w.open)
	w.raw = w.raw[:0]
	return err
}
