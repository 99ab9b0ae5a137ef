package train

import (
	"fmt"
	"time"

	"conquer/train/internal/state"
)

// Start returns when the run that o describes began: what the checkpoint says that it resumes from,
// or now. All processes of the run get rank 0's time. A chat template may print the date, so give
// the result to the tokenizer before the data is loaded, and to the options:
//
//	o.Began, err = o.Start()
//	tok.SetClock(o.Began)
func (o Options) Start() (began time.Time, err error) {
	if o.rank() == 0 {
		began = time.Now()
		if o.Resume {
			_, s, err := state.Folder{Path: o.CheckpointPath}.Latest()
			if err != nil {
				return began, err
			}
			if !s.Began.IsZero() {
				began = s.Began
			}
		}
	}
	if o.processes() == 1 {
		return began, nil
	}
	const key = "began"
	if o.rank() == 0 {
		return began, o.World.Store().Set(key, []byte(began.Format(time.RFC3339Nano)))
	}
	o.at("waiting for rank 0 to read when the run began")
	text, err := o.World.Store().Get(key, o.World.Timeout())
	if err != nil {
		return began, fmt.Errorf("rank 0 did not begin within %v: %w", o.World.Timeout(), err)
	}
	return time.Parse(time.RFC3339Nano, string(text))
}

// HasCheckpoint reports whether the folder at path holds a checkpoint that a run can resume from.
func HasCheckpoint(path string) (bool, error) {
	dir, _, err := state.Folder{Path: path}.Latest()
	return dir != "", err
}
