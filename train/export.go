package train

import (
	"encoding/json"
	"errors"

	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
)

// Export writes the trained model to the folder dir in Hugging Face's format, or the adapters in
// PEFT's.
func (t *Trainer) Export(dir string) error {
	return t.Whole(func() error { return t.write(dir, nil) })
}

// ExportMerged folds the adapters into the model, which ends the run, and writes it in Hugging
// Face's format.
func (t *Trainer) ExportMerged(dir string) error {
	t.freeOptimizer()
	return t.Whole(func() error {
		if err := lora.Merge(t.net.Model); err != nil {
			return err
		}
		return t.writeModel(dir, nil)
	})
}

// Whole calls f on rank 0 while that process holds all weights of the model, and returns an error
// if it fails on any process. All processes of a run call it. If weights are sharded, changes that
// f makes to them are lost.
func (t *Trainer) Whole(f func() error) error {
	return torch.Run(func() error {
		var err error
		o := t.options
		t.strategy.gatherAll(o.rank() == 0)
		if o.rank() == 0 {
			err = f()
		}
		t.strategy.releaseAll()
		o.at("waiting for rank 0, which works alone")
		if o.anyOf(err != nil) && err == nil {
			err = errors.New("rank 0 failed")
		}
		return err
	})
}

// write writes what is trained to the folder dir. also, if not nil, writes more files into the
// staging folder.
func (t *Trainer) write(dir string, also func(stage string) error) error {
	o := t.options
	if o.LoRA != nil {
		return lora.Save(t.net.Model, dir, o.BaseModel, *o.LoRA, also)
	}
	return t.writeModel(dir, also)
}

func (t *Trainer) writeModel(dir string, also func(stage string) error) error {
	o, m := t.options, t.net.Model
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
