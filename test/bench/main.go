package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
	"time"

	"srvfs/sandbox"
	"srvfs/test/world"
)

func main() {
	sandbox.Init()
	world.Private()
	var o options
	rowsFlag := flag.String("rows", "", "measure only rows whose name or runs match this regular expression")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each run is taken; 1 with -short")
	flag.BoolVar(&o.short, "short", false, "a small version of every row, once")
	flag.StringVar(&o.out, "o", "", "also write the table to this file")
	flag.StringVar(&o.profiles, "profile", "", "write CPU and heap profiles of srvd and srvfs to this folder; the values are then slower")
	flag.Parse()
	var err error
	if o.rows, err = regexp.Compile(*rowsFlag); err == nil && flag.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(2)
	}
	if o.short {
		o.rounds = 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 3*time.Hour)
	err = run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	rows     *regexp.Regexp
	rounds   int
	short    bool
	out      string
	profiles string
}

// How long one run may take, before it has failed: a program that waits for
// ever on a mount is a failure, not a long row.
const (
	runMax   = 10 * time.Minute // the first walk of a million entries in a root asks the view two million times
	shortMax = time.Minute
)

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root rights: it makes mounts and namespaces; run it as root, for example with sudo")
	}
	chosen := slices.DeleteFunc(slices.Clone(rows), func(r Row) bool {
		return !o.rows.MatchString(r.Name) || o.short && r.Variant
	})
	if len(chosen) == 0 {
		return fmt.Errorf("no row matches %v", o.rows)
	}
	slices.SortStableFunc(chosen, func(a, b Row) int { return cmp.Compare(a.Place, b.Place) })
	begin := time.Now()
	s, err := newSite(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	fmt.Fprintf(os.Stderr, "the site stands after %.0f s\n", time.Since(begin).Seconds())
	report := report{options: o, machine: describe(ctx, s)}
	var failed []error // what was measured is written even so
	for _, r := range chosen {
		results, err := measure(ctx, s, &r, o.rounds)
		if err == nil {
			report.add(&r, results)
			continue
		}
		failed = append(failed, fmt.Errorf("row %q: %w", r.Name, err))
		if ctx.Err() != nil {
			break
		}
	}
	report.took = time.Since(begin)
	var b bytes.Buffer
	report.write(&b)
	if o.out != "" {
		if err := os.WriteFile(o.out, b.Bytes(), 0o644); err != nil {
			return errors.Join(append(failed, err)...)
		}
	}
	_, err = os.Stdout.Write(b.Bytes())
	return errors.Join(append(failed, err)...)
}

// measure takes all runs of a row in turn, round after round.
func measure(ctx context.Context, s *Site, r *Row, rounds int) (Results, error) {
	begin := time.Now()
	if r.Prepare != nil {
		if err := r.Prepare(ctx, s); err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
	}
	fmt.Fprintf(os.Stderr, "%s (prepared in %.1f s)\n", r.Name, time.Since(begin).Seconds())
	results := Results{}
	for range rounds {
		if r.Together != nil {
			if err := takeTogether(ctx, s, r, results); err != nil {
				return nil, err
			}
			continue
		}
		for _, run := range r.Runs {
			sample, err := take(ctx, s, run)
			if err != nil {
				return nil, fmt.Errorf("run %q: %w", run.Name, err)
			}
			r.tell(run.Name, sample)
			results[run.Name] = append(results[run.Name], sample)
			if err := s.collectProfiles(r, run); err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

// tell shows a figure as soon as it is there.
func (r *Row) tell(run string, sample Sample) {
	fmt.Fprintf(os.Stderr, "  %-32s %10s %s  %10.3f MB\n", run, number(sample.Value), r.unit(), float64(sample.Moved)/1e6)
}

// takeTogether adds what a round of a row with Together measures.
func takeTogether(ctx context.Context, s *Site, r *Row, all Results) error {
	ctx, cancel := context.WithTimeout(ctx, s.patience())
	defer cancel()
	round, err := r.Together(ctx, s)
	if err != nil {
		return err
	}
	for _, run := range r.Runs {
		if low, _ := round.spread(run.Name); !(low > 0) {
			return fmt.Errorf("run %q: it measured %v", run.Name, low)
		}
		r.tell(run.Name, Sample{round.Value(run.Name), int64(round.Moved(run.Name))})
		all[run.Name] = append(all[run.Name], round[run.Name]...)
	}
	return s.collectProfiles(r, Run{Name: "together"})
}

// patience returns how long a run may take.
func (s *Site) patience() time.Duration {
	if s.Short {
		return shortMax
	}
	return runMax
}

func take(ctx context.Context, s *Site, run Run) (Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, s.patience())
	defer cancel()
	sample, err := run.Measure(ctx, s)
	if err == nil && !(sample.Value > 0) {
		err = fmt.Errorf("it measured %v", sample.Value)
	}
	return sample, err
}
