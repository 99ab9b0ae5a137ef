package quant

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func TestMix_ChoosesTheKindsOfLlamaCpp(t *testing.T) {
	var expected struct {
		Letters map[string]string
		Models  []struct {
			Name, Architecture               string
			Layers, Heads, KeyHeads, Experts int
			Matrices                         [][2]json.RawMessage
			Mixes                            map[string]struct {
				Number uint32
				Kinds  string
			}
		}
	}
	text, err := os.ReadFile("testdata/mixes.json")
	if err == nil {
		err = json.Unmarshal(text, &expected)
	}
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, model := range expected.Models {
		matrices := make([]Matrix, len(model.Matrices))
		for i, pair := range model.Matrices {
			err1 := json.Unmarshal(pair[0], &matrices[i].Name)
			if err := json.Unmarshal(pair[1], &matrices[i].Shape); err != nil || err1 != nil {
				t.Fatal(err, err1)
			}
		}
		for name, want := range model.Mixes {
			name, importance := strings.CutSuffix(name, " importance")
			name = strings.TrimSuffix(name, "_MOE")
			mix, ok := MixByName(strings.ToLower(name))
			if !ok || mix.Number != want.Number {
				t.Errorf("%s has number %d, expected %d", name, mix.Number, want.Number)
			}
			if name == "MXFP4" && model.Experts == 0 {
				continue // llama.cpp writes no matrix of such a model as MXFP4
			}
			kinds := mix.Kinds(Model{Architecture: model.Architecture, Layers: model.Layers,
				Heads: model.Heads, KeyHeads: model.KeyHeads, Experts: model.Experts,
				Importance: importance}, matrices)
			for i, kind := range kinds {
				if kind == "" {
					kind = "F32"
				}
				if expected := expected.Letters[want.Kinds[i:i+1]]; kind != expected {
					t.Errorf("%s, %s, importance %t: %s is %s, expected %s", model.Name, name,
						importance, matrices[i].Name, kind, expected)
				}
				compared++
			}
		}
	}
	if compared < 10_000 {
		t.Errorf("only %d kinds were compared", compared)
	}
}
