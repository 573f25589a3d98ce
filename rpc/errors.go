package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// table is the one translation between sentinels and gRPC codes. From error to
// code the first row that matches counts, and so it does from code to error.
var table = []struct {
	err  error
	code codes.Code
}{
	{manifest.ErrNotFound, codes.NotFound},
	{manifest.ErrCorrupt, codes.DataLoss},
	{manifest.ErrStale, codes.FailedPrecondition},
	{manifest.ErrNoSpace, codes.ResourceExhausted},
	{manifest.ErrDenied, codes.PermissionDenied},
	{manifest.ErrDenied, codes.Unauthenticated},
	{manifest.ErrInvalid, codes.InvalidArgument},
	{manifest.ErrInvalid, codes.Unimplemented}, // the other side is of another version
	{manifest.ErrUnavailable, codes.Unavailable},
	{manifest.ErrUnavailable, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.Unavailable}, // of the server's own: the client has its own clock
}

// maxText bounds an error's text on the wire, in bytes. A status travels in
// HTTP/2 headers, which have limits of their own.
const maxText = 4 << 10

// codeOf returns the code of err's first row, else Unknown.
func codeOf(err error) codes.Code {
	for _, row := range table {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	return codes.Unknown
}

// textOf returns err's text as it may travel.
func textOf(err error) string {
	s := strings.ToValidUTF8(err.Error(), "\ufffd")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}

// A remoteError is what the other side reported: its text, and the sentinel of
// its code, which the text already names.
type remoteError struct {
	text     string
	sentinel error // nil: the code says nothing
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.sentinel }

// errorOf is the inverse of codeOf and textOf.
func errorOf(code codes.Code, text string) error {
	if len(text) > maxText+3 {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	e := &remoteError{text: text}
	for _, row := range table {
		if row.code == code {
			e.sentinel = row.err
			break
		}
	}
	if e.text == "" {
		e.text = code.String()
	}
	return e
}

// toStatus makes the error with which the server ends a call.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	s := status.New(codeOf(err), textOf(err))
	if marked, err := s.WithDetails(&srvfspb.Failure{}); err == nil {
		s = marked
	}
	return s.Err()
}

// fromStatus is the inverse of toStatus. Statuses that the transport made up
// have no Failure attached: of these, ResourceExhausted is a message beyond the
// limit and not a full disk.
func fromStatus(err error) error {
	s, ok := status.FromError(err)
	if !ok || s.Code() == codes.OK {
		return err
	}
	for _, d := range s.Details() {
		if _, ok := d.(*srvfspb.Failure); ok {
			return errorOf(s.Code(), s.Message())
		}
	}
	switch s.Code() {
	case codes.ResourceExhausted:
		return fmt.Errorf("%s: %w", s.Message(), manifest.ErrInvalid)
	case codes.Internal, codes.Unknown:
		// A connection that breaks inside a frame ends this way too.
		return fmt.Errorf("%s: %w", s.Message(), manifest.ErrUnavailable)
	case codes.Unimplemented:
		return fmt.Errorf("it speaks another version of srvfs (%s): %w", s.Message(), manifest.ErrInvalid)
	}
	e := errorOf(s.Code(), s.Message())
	if sentinel := errors.Unwrap(e); sentinel != nil {
		return fmt.Errorf("%s: %w", s.Message(), sentinel)
	}
	return e
}
