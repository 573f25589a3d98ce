package archive

import (
	"context"
	"fmt"

	"srvfs/manifest"
)

func openRegistry(_ context.Context, ref string, _ OpenOptions) (shelf, error) {
	return nil, fmt.Errorf("archive %s: registries are not read yet: %w", ref, manifest.ErrInvalid)
}

func newRegistryTarget(dest string, _ Options) (target, error) {
	return nil, fmt.Errorf("%s: registries are not written yet: %w", dest, manifest.ErrInvalid)
}
