package dataset

import "fmt"

// Report counts what was read and what became of it.
type Report struct {
	Records   int // instructions, conversations or texts read
	Samples   int // samples made of them
	Pairs     int // samples that are preference pairs
	Rated     int // samples that are rated answers
	Tokens    int // tokens in the samples
	Targets   int // labels with loss
	Truncated int // samples cut at MaxLength
	Dropped   int // samples without targets, usually because the prompt alone fills MaxLength
	Skipped   int // files that hold no data to learn from
	Bad       int // records that were skipped because they cannot be read or rendered
	// Unrendered counts the assistant's turns that have no loss because the chat
	// template leaves out their content or their tool calls.
	Unrendered int
	// Unreasoned counts the assistant's turns whose reasoning the chat template leaves out.
	Unreasoned int
}

// FileReport counts what was read from one file.
type FileReport struct {
	Name    string
	Layouts map[Layout]int // records of each layout
	Report
}

// Count formats a number with its noun: "1 token", "2 tokens".
func Count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

func (r Report) String() string {
	noun := "sample"
	switch {
	case r.Pairs > 0:
		noun = "pair"
	case r.Rated > 0:
		noun = "rated answer"
	}
	s := fmt.Sprintf("%s from %s, %s, %d with loss",
		Count(r.Samples, noun), Count(r.Records, "record"), Count(r.Tokens, "token"), r.Targets)
	if r.Truncated > 0 {
		s += fmt.Sprintf(", %d truncated", r.Truncated)
	}
	if r.Dropped > 0 {
		s += fmt.Sprintf(", %d dropped (nothing to learn)", r.Dropped)
	}
	if r.Unrendered > 0 {
		s += fmt.Sprintf(", %s left out by the chat template", Count(r.Unrendered, "answer"))
	}
	if r.Unreasoned > 0 {
		s += fmt.Sprintf(", the reasoning of %s left out by the chat template",
			Count(r.Unreasoned, "answer"))
	}
	if r.Bad > 0 {
		s += ", " + Count(r.Bad, "bad record") + " skipped"
	}
	if r.Skipped > 0 {
		s += ", " + Count(r.Skipped, "file") + " skipped (no data)"
	}
	return s
}

// add counts a sample and reports whether it has targets.
func (r *Report) add(s Sample) bool {
	targets := s.targets()
	if targets == 0 {
		r.Dropped++
		return false
	}
	r.Samples++
	if s.Second > 0 {
		r.Pairs++
	}
	if s.Rating != Unrated {
		r.Rated++
	}
	r.Tokens += len(s.IDs)
	r.Targets += targets
	return true
}

// merge adds the counts of other.
func (r *Report) merge(other Report) {
	r.Records += other.Records
	r.Samples += other.Samples
	r.Pairs += other.Pairs
	r.Rated += other.Rated
	r.Tokens += other.Tokens
	r.Targets += other.Targets
	r.Truncated += other.Truncated
	r.Dropped += other.Dropped
	r.Skipped += other.Skipped
	r.Bad += other.Bad
	r.Unrendered += other.Unrendered
	r.Unreasoned += other.Unreasoned
}
