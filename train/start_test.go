package train

import (
	"path/filepath"
	"testing"
	"time"

	"conquer/torch"
)

// A resumed run has the time at which the run began, however often it was resumed. A run that
// overwrites another has its own.
func TestStart_IsKeptByTheCheckpoint(t *testing.T) {
	noLeaks(t)
	data := samples(8, 1)
	o := options()
	o.Steps, o.CheckpointSteps, o.CheckpointPath = 6, 1, filepath.Join(t.TempDir(), "c")
	if began, err := o.Start(); err != nil || time.Since(began) > time.Minute {
		t.Fatalf("%v, %v", began, err)
	}
	o.Began = time.Date(2024, 7, 6, 13, 5, 9, 123456789, time.UTC)
	want := o.Began
	interrupted(t, tiny(t, true, torch.Float32), data, nil, o, 2)
	o.Began = time.Time{}
	for after := 3; after < 5; after++ {
		o.Resume = true
		if began, err := o.Start(); err != nil || !began.Equal(want) {
			t.Errorf("the run began at %v, not at %v (%v)", began, want, err)
		}
		interrupted(t, tiny(t, true, torch.Float32), data, nil, o, after)
	}
	if saved, err := HasCheckpoint(o.CheckpointPath); !saved || err != nil {
		t.Errorf("%v, %v", saved, err)
	}
	o.Resume, o.Overwrite = false, true
	if began, err := o.Start(); err != nil || began.Equal(want) {
		t.Errorf("%v, %v", began, err)
	}
	tr, err := New(tiny(t, true, torch.Float32), data, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		tr.Close()
		free(tr.Model())
	}()
	if saved, err := HasCheckpoint(o.CheckpointPath); tr.Done() != 0 || saved || err != nil {
		t.Errorf("%d steps, %v, %v", tr.Done(), saved, err)
	}
}
