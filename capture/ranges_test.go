package capture

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"srvfs/manifest"
)

// The profile has of a large file what was read, in the order in which it was,
// and of one that was only opened nothing.
func TestProfileHasRangesOfLargeFiles(t *testing.T) {
	o := house(t, "-large /srv/data/large -file /srv/data/page")
	large := filepath.Join(o.Root, "srv/data/large")
	write(t, large, "", 0o644)
	check(t, os.Truncate(large, 64<<20-5))
	write(t, filepath.Join(o.Root, "srv/data/page"), "hello", 0o644)
	r := must(Capture(t.Context(), o))(t)
	var got [][2]int64
	page, answer := -1, -1
	for i, touch := range r.Snapshot.Profile {
		switch touch.Path {
		case "/srv/data/large":
			got = append(got, [2]int64{touch.Off, touch.Len})
			if touch.Off == 20<<20 {
				answer = i
			}
		case "/srv/data/page":
			page = i
		}
	}
	const chunk = manifest.ChunkSize
	want := [][2]int64{{40 << 20, 2 * chunk}, {0, 2 * chunk}, {20 << 20, chunk}}
	if !slices.Equal(got, want) {
		t.Errorf("ranges %v, want %v; profile %+v", got, want, r.Snapshot.Profile)
	}
	if page < 0 || answer < 0 {
		t.Errorf("profile %+v", r.Snapshot.Profile)
	}
	n := slices.Index(r.Snapshot.Metadata, must(chunksOf(o, "/srv/data/large"))(t))
	if n < 0 {
		t.Error("the chunk list is not in the first batch")
	}
}

// chunksOf returns the digest of a file's chunk list.
func chunksOf(o Options, p string) (manifest.Digest, error) {
	b, err := os.ReadFile(filepath.Join(o.Root, p))
	if err != nil {
		return manifest.Digest{}, err
	}
	h := manifest.NewHasher()
	_, _ = h.Write(b)
	_, _, list := h.Sum()
	return manifest.Sum(list.Encode()), nil
}
