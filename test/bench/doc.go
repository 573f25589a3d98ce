// Command bench measures srvfs beside its peers, in the same run and in turn,
// and writes a Markdown table: docs/benchmarks.md, which the README quotes.
//
//	make bench                          # every row, five rounds
//	make bench-short                    # a small version of every row, in CI
//	go run ./test/bench -rows nginx -rounds 3
//	make profile                        # CPU and heap profiles of the same runs
//
// # The site
//
// A [Site] is a world of network namespaces on one bridge: the source, with
// nginx; the standby, with the peers' programs, but no nginx; a twin, which has
// the source's packages; and a client beside the standby that asks for pages. The
// wire of the source has the length and rate that a row asks for: whatever comes
// from the source crosses it, and TCP behaves on it as on a real one. Daemons
// run before the clock starts, as systemd keeps them: srvd, sshd and rsyncd on
// the source, the daemon of srvfs on the standby, which has connected to the source
// over the same wire and measured it. Programs and the running source's
// files are warm; the standby's files are cold, and what was brought in by
// the run before is gone.
//
// # Rows
//
// A [Row] has the words of the table for what is measured and what it must
// reach, and a few [Run]s: ours and each peer's or baseline's. A round takes all
// runs of a row in turn; the table has the medians of the rounds, and their
// spread. What a row must reach is judged from the medians of the same rounds. Every
// run checks its own work (the page that was served, the bytes that were read), and fails
// the bench if it is wrong: a figure for work that was not done is worth nothing.
//
// To add a row, add a file with one subject and in it
//
//	var _ = add(Row{Place: 60, Name: ..., Reach: ..., Unit: "s", Prepare: ..., Runs: ..., Judge: ...})
//
// Place orders the rows: the number of the line in the table times ten.
// [Site.Service] and [Site.Capture] capture a service once, [Site.Daemon] gives a standby an empty
// state folder and a running daemon, [Site.Timed] takes time and bytes,
// [Site.Native] and [Site.Overlay] make the baselines: the snapshot's files
// copied to the standby's disk, and a plain overlayfs on that, as containers have.
// Where the difference is smaller than the machine's noise, [Row.Together] takes
// all runs at once in short slices, and the row is judged side by side, slice by slice.
// Where a run needs something large, it makes a small one if Site.Short is set:
// the whole of -short stays below three minutes. A bound that holds on the
// busiest machine (bytes moved, upcalls, counts) belongs into the run, as an
// error; a time never does, it belongs into Judge.
package main
