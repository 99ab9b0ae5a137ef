package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"conquer/checkpoint"
	"conquer/internal/atomicfile"
	"conquer/lora"
	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// Export writes the trained model to the folder dir in Hugging Face's format, or the adapters in
// PEFT's. It writes nothing, and returns an error, if the trained weights are not finite.
func (t *Trainer) Export(dir string) error {
	if err := torch.Run(t.checkWeights); err != nil {
		return err
	}
	return t.Whole(func() error { return t.write(dir, nil) })
}

// ExportMerged folds the adapters into the model, which ends the run, and writes it in Hugging
// Face's format, as [Trainer.Export] does.
func (t *Trainer) ExportMerged(dir string) error {
	if err := torch.Run(t.checkWeights); err != nil {
		return err
	}
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
		return lora.Save(t.net.Model, dir, o.BaseModel, *o.LoRA, func(stage string) error {
			if t.ends != nil {
				err := atomicfile.WriteBytes(filepath.Join(stage, generationFile), t.ends)
				if err != nil {
					return err
				}
			}
			if o.AdapterTokenizer && o.Tokenizer != nil {
				if err := o.Tokenizer.Save(stage); err != nil {
					return err
				}
			}
			if also == nil {
				return nil
			}
			return also(stage)
		})
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
		Config: config, GenerationConfig: t.generation(), Also: func(stage string) error {
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

const generationFile = "generation_config.json"

// generation is the text of generation_config.json of a model that this run writes, or nil.
func (t *Trainer) generation() []byte {
	if t.ends != nil {
		return t.ends
	}
	return t.options.GenerationConfig
}

// findEnds makes the tokens that end the data's turns end generation: in the tokenizer, and in the
// generation_config.json of the result, unless they do already.
func (t *Trainer) findEnds(m model.Model) error {
	o := t.options
	if o.Tokenizer == nil {
		return nil
	}
	ends, err := t.data.TurnEnds(o.Tokenizer)
	if err != nil {
		return err
	}
	generation := map[string]any{}
	if o.GenerationConfig != nil {
		d := json.NewDecoder(bytes.NewReader(o.GenerationConfig))
		d.UseNumber() // numbers keep their digits
		if err := d.Decode(&generation); err != nil {
			return fmt.Errorf("%s: expected a JSON object: %w", generationFile, err)
		}
	} else {
		for _, key := range []string{"bos_token_id", "pad_token_id"} {
			if id := m.Config()[key]; id != nil {
				generation[key] = id
			}
		}
	}
	known := tokenIDs(generation["eos_token_id"]) // which transformers takes, if there are any
	if o.GenerationConfig == nil {
		known = tokenIDs(m.Config()["eos_token_id"])
	}
	if len(known) == 0 {
		ends = append(o.Tokenizer.EOS(), ends...)
	}
	o.Tokenizer.AddEOS(ends...)
	all := slices.Clone(known)
	for _, id := range ends {
		if !slices.Contains(all, id) {
			all = append(all, id)
		}
	}
	if len(all) == len(known) {
		if o.LoRA != nil && o.LoRA.From != "" { // its folder's replaces the base's
			t.ends = o.GenerationConfig
		}
		return nil
	}
	delete(generation, "_from_model_config") // transformers would read the ends from config.json
	if generation["eos_token_id"] = all; len(all) == 1 {
		generation["eos_token_id"] = all[0]
	}
	text, err := json.MarshalIndent(generation, "", "  ")
	t.ends = append(text, '\n')
	return err
}

// tokenIDs reads a token id, or a list of them, of a config.
func tokenIDs(value any) (ids tokenizer.IDs) {
	text, err := json.Marshal(value)
	if err != nil || json.Unmarshal(text, &ids) != nil {
		return nil
	}
	return ids
}
