package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// A Row is one line of the table.
type Row struct {
	Place int    // orders the rows
	Name  string // what is measured, in the words of the table
	Reach string // what it must reach, in the words of the table
	Unit  string // of the values; empty: s
	// Variant marks a row that measures the same as another on another wire: the
	// short bench leaves it out.
	Variant bool

	// Prepare, if set, is called before the first round.
	Prepare func(ctx context.Context, s *Site) error
	// Runs are taken in turn in each round.
	Runs []Run
	// Together, if set, takes all runs of a round at once: in slices so short that
	// what else the machine does meets all of them alike. It returns a sample of
	// each run for each slice, and Runs have names only.
	Together func(ctx context.Context, s *Site) (Results, error)
	// Judge says, from all rounds, whether the row reaches what it must; nil if
	// it only stands for comparison.
	Judge func(r Results) []Goal
}

// A Run measures one way to do a row's work.
type Run struct {
	Name    string
	Measure measurement
}

type measurement func(ctx context.Context, s *Site) (Sample, error)

// A Sample is one measurement.
type Sample struct {
	Value float64 // in the row's unit
	Moved int64   // bytes that the standby's network card received; 0 if that is beside the point
}

// A Goal is a part of what a row must reach, and how far it got.
type Goal struct {
	Got     string
	Reached bool
}

// Results are the samples of a row by the name of the run.
type Results map[string][]Sample

// Value returns the median of a run's values.
func (r Results) Value(run string) float64 {
	return median(r[run], func(s Sample) float64 { return s.Value })
}

// Moved returns the median of the bytes that a run moved.
func (r Results) Moved(run string) float64 {
	return median(r[run], func(s Sample) float64 { return float64(s.Moved) })
}

// spread returns the least and the greatest of a run's values.
func (r Results) spread(run string) (low, high float64) {
	return slices.MinFunc(r[run], byValue).Value, slices.MaxFunc(r[run], byValue).Value
}

func byValue(a, b Sample) int { return cmp.Compare(a.Value, b.Value) }

func median(all []Sample, f func(Sample) float64) float64 {
	if len(all) == 0 {
		return 0
	}
	v := make([]float64, len(all))
	for i, s := range all {
		v[i] = f(s)
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// Faster asks for a run that takes at most 1/times of what the other takes.
func (r Results) Faster(run, other string, times float64) Goal {
	got := r.Value(other) / r.Value(run)
	return Goal{fmt.Sprintf("%.1f times faster than %s", got, other), got >= times}
}

// AtMost asks for a run whose value is at most the limit, which is explained.
func (r Results) AtMost(run string, limit float64, unit, why string) Goal {
	got := r.Value(run)
	return Goal{fmt.Sprintf("%s of at most %s %s (%s)", number(got), number(limit), unit, why), got <= limit}
}

// AtLeast asks for a run that reaches a share of the other's value.
func (r Results) AtLeast(run, other string, share float64) Goal {
	got := r.Value(run) / r.Value(other)
	return Goal{fmt.Sprintf("%.3f of %s", got, other), got >= share}
}

// Within asks for a run whose value is at most so many times the other's.
func (r Results) Within(run, other string, times float64) Goal {
	got := r.Value(run) / r.Value(other)
	return Goal{fmt.Sprintf("%.2f times %s", got, other), got <= times}
}

// SideBySide is the median of the ratios of a run's values to those of the other
// in the same slices, which Together has taken: noise that lasts longer than a
// slice is not in it.
func (r Results) SideBySide(run, other string) float64 {
	ratios := make([]Sample, min(len(r[run]), len(r[other])))
	for i := range ratios {
		ratios[i].Value = r[run][i].Value / r[other][i].Value
	}
	return median(ratios, func(s Sample) float64 { return s.Value })
}

// Keeps asks for a run that reaches a share of the other's value, side by side.
func (r Results) Keeps(run, other string, share float64) Goal {
	got := r.SideBySide(run, other)
	return Goal{fmt.Sprintf("%s: %.3f of %s", run, got, other), got >= share}
}

// Stays asks for a run whose value is at most so many times the other's, side by
// side.
func (r Results) Stays(run, other string, times float64) Goal {
	got := r.SideBySide(run, other)
	return Goal{fmt.Sprintf("%s: %.3f times %s", run, got, other), got <= times}
}

// rows are all that were added.
var rows []Row

// add adds rows, from a variable's initialiser, and returns how many there are.
func add(r ...Row) int {
	rows = append(rows, r...)
	return len(rows)
}

func (r *Row) unit() string {
	if r.Unit == "" {
		return "s"
	}
	return r.Unit
}
