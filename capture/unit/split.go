package unit

import (
	"fmt"

	"srvfs/manifest"
)

// Split cuts a command line into words as systemd does for ExecStart=: at
// blanks, with quotes and backslash escapes; variables and globs mean nothing.
// The error wraps manifest.ErrInvalid.
func Split(line string) ([]string, error) {
	words, err := splitWords(line)
	if err != nil {
		return nil, fmt.Errorf("command %.200q: %w: %w", line, err, manifest.ErrInvalid)
	}
	return words, nil
}
