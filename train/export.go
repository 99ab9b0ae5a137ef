package train

import (
	"encoding/json"

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
	return torch.Run(func() error { return t.write(dir, nil) })
}

// ExportMerged folds the adapters into the model, which ends the run, and writes it as a Hugging Face folder.
func (t *Trainer) ExportMerged(dir string) error {
	t.freeOptimizer()
	if err := MergeAdapter(t.net.model); err != nil {
		return err
	}
	return torch.Run(func() error { return t.writeModel(dir, nil) })
}
