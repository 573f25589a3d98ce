package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// A report is the table under way.
type report struct {
	options
	machine string
	took    time.Duration
	lines   []line
}

type line struct {
	row     *Row
	results Results
}

func (p *report) add(r *Row, results Results) {
	p.lines = append(p.lines, line{r, results})
}

// write writes the table as Markdown: first what was reached, then all runs.
func (p *report) write(w io.Writer) {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	say("# Benchmarks\n")
	say("Made by `make bench`: do not edit. %s.\n", p.machine)
	say("%d rounds in %.0f minutes; each round takes all runs of a row in turn. Medians; a row is judged by the medians of its own rounds. "+
		"What is measured how: `go doc ./test/bench`.\n", p.rounds, p.took.Minutes())
	if p.short {
		say("**This is the short version: sizes and delays are small, and nothing here is worth quoting.**\n")
	}
	say("| what | must reach | reached | |\n| --- | --- | --- | --- |")
	for _, l := range p.lines {
		reached, ok := "", ""
		if l.row.Judge != nil {
			var got []string
			ok = "yes"
			for _, g := range l.row.Judge(l.results) {
				got = append(got, g.Got)
				if !g.Reached {
					ok = "**no**"
				}
			}
			reached = strings.Join(got, "; ")
		}
		say("| %s | %s | %s | %s |", l.row.Name, l.row.Reach, reached, ok)
	}
	say("\n## Every run\n")
	say("| what | who | median | min - max | unit | MB received |\n| --- | --- | --- | --- | --- | --- |")
	for _, l := range p.lines {
		name := l.row.Name
		for _, run := range l.row.Runs {
			low, high := l.results.spread(run.Name)
			moved := ""
			if m := l.results.Moved(run.Name); m > 0 {
				moved = fmt.Sprintf("%.3f", m/1e6)
			}
			say("| %s | %s | %s | %s - %s | %s | %s |", name, run.Name, number(l.results.Value(run.Name)), number(low), number(high), l.row.unit(), moved)
			name = ""
		}
	}
}

// number prints a value with three digits that mean something.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}
