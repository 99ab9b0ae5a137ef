package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// clocked returns a bar on a clock that the test moves.
func clocked(unit Unit, done, total int64) (*Bar, *time.Time, *bytes.Buffer) {
	var out bytes.Buffer
	clock := time.Unix(0, 0)
	b := newBar(&out, "training", unit, done, total, func() time.Time { return clock })
	return b, &clock, &out
}

func TestBar_TimeLeftCountsOnlyStepsOfThisRun(t *testing.T) {
	b, clock, _ := clocked(Steps, 500, 1000) // resumed after step 500
	for _, step := range []struct {
		seconds int
		want    string
	}{
		{30, "training 501/1000"},                    // the first step warms up
		{2, "training 502/1000, 16 min left"},        // 498 steps of 2 s
		{2, "training 503/1000, 16 min left"},        // 497 steps of 2 s
		{6, "training 504/1000, 27 min left"},        // 496 steps of 10/3 s
		{3600, "training 505/1000, 5 days 4 h left"}, // 495 steps of 902.5 s
	} {
		*clock = clock.Add(time.Duration(step.seconds) * time.Second)
		b.Add(1)
		if got := b.label(); got != step.want {
			t.Errorf("after %d s: %q, expected %q", step.seconds, got, step.want)
		}
	}
}

func TestBar_BytesHaveARate(t *testing.T) {
	b, clock, _ := clocked(Bytes, 0, 100e6)
	b.Set(40e6) // an interrupted download continues here
	*clock = clock.Add(2 * time.Second)
	b.Set(60e6)
	if got, want := b.label(), "training 60/100 MB, 10 MB/s, 4 s left"; got != want {
		t.Errorf("%q, expected %q", got, want)
	}
}

func TestBar_NoteAndUnknownTotal(t *testing.T) {
	b, _, _ := clocked(Steps, 0, 0)
	if got := b.label(); got != "training" {
		t.Errorf("%q before the total is known", got)
	}
	b.SetTotal(4)
	b.Note("loss 2.5")
	b.Add(1)
	if got, want := b.label(), "training 1/4, loss 2.5"; got != want {
		t.Errorf("%q, expected %q", got, want)
	}
}

func TestBar_IsRemovedAtTheEnd(t *testing.T) {
	b, _, out := clocked(Steps, 0, 2)
	b.Add(1)
	b.Print(out, "a line")
	b.Add(1)
	out.Reset()
	b.Close()
	if text := out.String(); text == "" || strings.Contains(text, "training") {
		t.Errorf("after the end the bar is drawn again: %q", text)
	}
}

func TestBar_LabelAndBarShowTheSameCount(t *testing.T) {
	b, clock, out := clocked(Steps, 0, 4)
	out.Reset()
	*clock = clock.Add(time.Second)
	b.Add(1)
	if text := out.String(); !strings.Contains(text, "training 1/4") ||
		!strings.Contains(text, "25%") || strings.Contains(text, " 0%") {
		t.Errorf("one of 4 steps is drawn as %q", text)
	}
}

func TestBar_NilDrawsNothing(t *testing.T) {
	var out bytes.Buffer
	b := New(&out, "training", Steps, 0, 3)
	b.Add(1)
	b.SetTotal(2)
	b.Note("x")
	b.Print(&out, "a line")
	b.Close()
	if b != nil || out.String() != "a line\n" {
		t.Errorf("bar %v wrote %q to a buffer, which is no terminal", b, out.String())
	}
}
