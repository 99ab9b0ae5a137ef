package train

import (
	"encoding/json"
	"fmt"

	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
)

// write writes what is tuned into the folder dir, together with what also writes.
func (t *Trainer) write(dir string, also func(stage string) error) error {
	o, m := t.options, t.net.model
	if o.LoRA != nil {
		return lora.Save(m, dir, o.BaseModel, *o.LoRA, also)
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

// Whole calls f on rank 0 while that process holds all of the model's weights, and returns what went wrong on any. All
// processes of a run call it. What f does to the weights is lost where they are sharded.
func (t *Trainer) Whole(f func() error) error {
	return torch.Run(func() error {
		var err error
		t.net.strategy.whole(t.options.rank() == 0)
		if t.options.rank() == 0 {
			err = f()
		}
		t.net.strategy.part()
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
		return err
	})
}

// ExportMerged folds the adapters into the model, which ends the run, and writes it as a Hugging Face folder.
func (t *Trainer) ExportMerged(dir string) error {
	t.freeOptimizer()
	return t.Whole(func() error {
		if err := lora.Merge(t.net.model); err != nil {
			return err
		}
		return t.writeModel(dir, nil)
	})
}
