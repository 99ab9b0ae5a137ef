package train

import (
	"encoding/json"
	"fmt"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
)

// write writes what is tuned into the folder dir, together with what also writes.
func (t *Trainer) write(dir string, also func(stage string) error) error {
	o, m := t.options, t.net.model
	if o.LoRA != nil {
		return SaveAdapter(m, dir, o.BaseModel, *o.LoRA, also)
	}
	return t.writeModel(dir, also)
}

func (t *Trainer) writeModel(dir string, also func(stage string) error) error {
	o, m := t.options, t.net.model
	config, err := json.MarshalIndent(m.Config(), "", "  ")
	if err != nil {
		return err
	}
	return checkpoint.Save(dir, model.Weights(m), checkpoint.Options{
		Config: config, GenerationConfig: o.GenerationConfig, Also: func(stage string) error {
			if o.Tokenizer != nil {
				if err := o.Tokenizer.Save(stage); err != nil {
					return err
				}
			}
			if also == nil {
				return nil
			}
			return also(stage)
		},
	})
}

// Export writes the tuned model into the folder dir as a Hugging Face folder, or the adapter as PEFT's.
func (t *Trainer) Export(dir string) error {
	return t.Whole(func() error { return t.write(dir, nil) })
}

// Whole calls f on rank 0 while every process holds all of the model's weights, and returns what went wrong on any. All
// processes of a run call it. What f does to the weights is lost where they are sharded.
func (t *Trainer) Whole(f func() error) error {
	return torch.Run(func() error {
		s := t.net.strategy
		units := len(t.net.blocks) + 2
		for u := range units {
			s.use(u, -1)
		}
		divided, _ := s.(*tensorParallel)
		if divided != nil {
			divided.division.Whole(t.options.rank() == 0)
		}
		stage, _ := s.(*pipeline)
		if stage != nil {
			stage.whole()
		}
		var err error
		if t.options.rank() == 0 {
			err = f()
		}
		if divided != nil {
			divided.division.Part()
		}
		if stage != nil {
			stage.part()
		}
		if world := t.options.World; world != nil && world.Size > 1 {
			failed := 0.0
			if err != nil {
				failed = 1
			}
			t.at("waiting for rank 0, which works alone")
			if world.All.Sums(failed)[0] > 0 && err == nil {
				err = fmt.Errorf("rank 0 failed")
			}
		}
		for u := range units {
			s.leave(u, false)
		}
		return err
	})
}

// ExportMerged folds the adapters into the model, which ends the run, and writes it as a Hugging Face folder.
func (t *Trainer) ExportMerged(dir string) error {
	t.freeOptimizer()
	return t.Whole(func() error {
		if err := MergeAdapter(t.net.model); err != nil {
			return err
		}
		return t.writeModel(dir, nil)
	})
}
