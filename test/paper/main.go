// Command paper prints a table like that of the paper that this project grew from:
// for a name server, a web server and a mail server, what is moved to the standby,
// how long it takes to gather what the service needs, and how long until it answers
// on the standby; with what the trace costs a start, beside strace.
//
// The paper's figures are from two machines of its time and are there for the
// proportions. Its static method gathers package files and libraries and makes an
// archive of them, of which a standby needs all before it can start.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"srvfs/sandbox"
	"srvfs/test/world"
)

// A subject is one service, and what the paper says of it.
type subject struct {
	title string
	world.Service
	moved, gather, archive, setUp float64 // MB, s, s, s
	overhead                      float64 // that a traced start may have
}

var subjects = []subject{
	{"DNS", world.DNS, 15.64, 5.5, 5.3, 4.62, 1.5},
	{"Web", world.Web, 16.20, 15.1, 5.9, 6.63, 1.5},
	{"Mail", world.Mail, 11.38, 3.4, 4.2, 2.97, 1.8},
}

func main() {
	sandbox.Init()
	rounds := flag.Int("rounds", 5, "rounds of each measurement")
	out := flag.String("o", "", "file that the table goes to as well")
	only := flag.String("only", "", "measure one of DNS, Web and Mail")
	flag.Parse()
	world.Private()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	err := run(ctx, *rounds, *out, *only)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "paper: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int, out, only string) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root rights: it makes mounts and namespaces; run it as root, for example with sudo")
	}
	if rounds < 1 {
		return errors.New("-rounds: at least 1")
	}
	var all []*figures
	for i := range subjects {
		if only != "" && only != subjects[i].title {
			continue
		}
		f, err := measure(ctx, &subjects[i], rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", subjects[i].title, err)
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		return fmt.Errorf("-only %s: there are DNS, Web and Mail", only)
	}
	var text strings.Builder
	table(&text, all, rounds)
	fmt.Print(text.String())
	if out == "" {
		return nil
	}
	return os.WriteFile(out, []byte(text.String()), 0o644)
}

// figures are those of one subject, of each round.
type figures struct {
	*subject
	gather, again, waited        []float64 // s; the last: of the first, until the service had answered, in both of its runs
	moved, run, all, detached    []float64 // nothing local: MB and s to the answer, MB and s until the source is needed no more
	movedSame, runSame           []float64 // the same of a standby with the same distribution
	allSame, detachedSame        []float64
	untraced, traced, underTrace []float64 // ms until a start listens; the last is strace
}

func table(w io.Writer, all []*figures, rounds int) {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	say("# The paper's table\n")
	say("Made by `make bench-paper`: medians of %s. Both hosts on this machine, in network namespaces, no delay on the wire; the paper's figures are of two machines of its time.\n", count(rounds))
	say("| | %s |", titles(all))
	say("| --- |%s", strings.Repeat(" --- |", len(all)))
	row := func(name string, cell func(*figures) string) {
		cells := make([]string, len(all))
		for i, f := range all {
			cells[i] = cell(f)
		}
		say("| %s | %s |", name, strings.Join(cells, " | "))
	}
	row("**data moved (MB)**: paper, an archive of all", func(f *figures) string { return fmt.Sprintf("%.2f", f.moved0()) })
	row("to the first answer, nothing local", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.moved)) })
	row("to the first answer, same distribution", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.movedSame)) })
	row("until the source is needed no more, nothing local", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.all)) })
	row("until the source is needed no more, same distribution", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.allSame)) })
	row("**gather + archive (s)**: paper", func(f *figures) string { return fmt.Sprintf("%.1f + %.1f", f.subject.gather, f.archive) })
	row("capture, proven to work", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.gather)) })
	row("the same again", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.again)) })
	row("of the first, until the service answered, in both of its runs", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.waited)) })
	row("**set-up on the standby (s)**: paper", func(f *figures) string { return fmt.Sprintf("%.2f", f.setUp) })
	row("first answer, nothing local", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.run)) })
	row("first answer, same distribution", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.runSame)) })
	row("then all that is left, nothing local", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.detached)) })
	row("then all that is left, same distribution", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.detachedSame)) })
	row("**a start until it listens (ms)**: untraced", func(f *figures) string { return spread(f.untraced) })
	row("traced", func(f *figures) string { return spread(f.traced) })
	row("under `strace -f --seccomp-bpf -e trace=%file`", func(f *figures) string { return spread(f.underTrace) })
	row("traced, of untraced (at most)", func(f *figures) string {
		return fmt.Sprintf("%.2f (%.1f)", median(f.traced)/median(f.untraced), f.overhead)
	})
	row("strace, of untraced", func(f *figures) string { return fmt.Sprintf("%.2f", median(f.underTrace)/median(f.untraced)) })
}

func (f *figures) moved0() float64 { return f.subject.moved }

func titles(all []*figures) string {
	names := make([]string, len(all))
	for i, f := range all {
		names[i] = fmt.Sprintf("%s (%s)", f.title, f.Name)
	}
	return strings.Join(names, " | ")
}

func count(rounds int) string {
	if rounds == 1 {
		return "1 round"
	}
	return fmt.Sprintf("%d rounds", rounds)
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func spread(v []float64) string {
	return fmt.Sprintf("%.0f (%.0f-%.0f)", median(v), slices.Min(v), slices.Max(v))
}
