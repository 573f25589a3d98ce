// Package rpc carries snapshots and content from a source to its standbys over
// gRPC, each side sure of the other.
//
// # Who may talk
//
// Every host makes one ed25519 key for itself (see [LoadIdentity]) and is known
// by the SHA-256 of its public key, its [Fingerprint]. There is no authority
// that signs keys: each side pins the other's key when they are paired, and
// TLS 1.3 proves on every connection that the other side holds it. What a
// certificate says apart from its key is not looked at.
//
// The administrator makes a token on the source ([Peers.NewToken]) and carries
// it to the standby, which shows it to the source once ([Sources.Pair]). The
// token names the source's addresses and fingerprint, so that the standby knows
// whom it talks to from the first byte, and holds a secret, of which the source
// keeps only a hash. Peers and tokens are small files in the source's state
// folder, so that other processes can list and revoke them: a revoked peer's
// next message, also of a transfer that is under way, is refused.
//
// A standby can be a server too, of what it has of other sources ([Relay]): its own
// key, its own peers. What it says of snapshots is believed as far as it was paired;
// content is verified by digest, wherever it comes from.
//
// # What travels
//
// A [Server] answers from a [Provider]. Standbys ask for content by digest; no
// path ever travels from them. [Client] is a [manifest.Batcher]: one Fetch is
// one stream, one FetchBatch is one stream for up to [manifest.MaxBatch] ranges,
// in the order asked, small ones many to a message. Behind a snapshot comes the
// metadata that a start needs ([Client.Open]). Pieces are packed with zstd where a
// sample shows that it pays; what starts need is packed beforehand
// ([Server.Pack]). The wire verifies nothing that a digest
// can verify: whoever asked, checks. It does check every length, index and
// order, so that neither side can make the other hold more than was asked for.
//
// # What can fail
//
// Every error of a Client wraps a sentinel of package manifest (errors.go has
// the one table between them and gRPC codes) and names the source. A source
// that refuses the connection is reported within milliseconds; one that is
// silent, after [ClientOptions.Deadline] without a byte: no call waits for
// ever, whatever context it was given. While a source is away calls fail at
// once, and a new connection is tried in the background at least every second.
//
// # Limits
//
// A new connection costs three round trips (TCP, TLS, HTTP/2 settings) before
// the first request; a Client connects when it is made and keeps the connection.
// [Lanes.Measure] takes connections out of TCP's slow start. Flow-control windows
// are fixed at 16 MiB, enough for 1 Gbit/s at 100 ms.
package rpc

//go:generate protoc --proto_path=. --go_out=srvfspb --go_opt=paths=source_relative --go-grpc_out=srvfspb --go-grpc_opt=paths=source_relative srvfs.proto
