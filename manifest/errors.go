package manifest

import "errors"

// The sentinel errors. Each boundary translates them in one table: rpc to gRPC
// codes, fs to errno values, cmd to exit codes and hints. Wrap them with what
// was looked for and where; match them with errors.Is.
var (
	// ErrNotFound: the origin, or the tree, does not have what was asked for.
	ErrNotFound = errors.New("not found")
	// ErrCorrupt: bytes arrived that do not have the digest they were asked by.
	ErrCorrupt = errors.New("content does not match its digest")
	// ErrStale: the origin had the content, and the file has changed since.
	ErrStale = errors.New("changed since the snapshot")
	// ErrUnavailable: no origin answers, or none did before the deadline.
	ErrUnavailable = errors.New("no origin answers")
	// ErrNoSpace: the disk that should hold the content is full.
	ErrNoSpace = errors.New("no space left in the store")
	// ErrDenied: the peer is not paired, or not for this service.
	ErrDenied = errors.New("not permitted")
	// ErrUnhealthy: the service does not start, or its probes do not answer.
	ErrUnhealthy = errors.New("the service does not work")
	// ErrInvalid: what was decoded or given is malformed.
	ErrInvalid = errors.New("invalid")
)
