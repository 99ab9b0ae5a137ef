package families_test

import (
	"strings"
	"testing"

	"conquer/model"
	"conquer/torch"
)

// ssmConfig is config.json as mamba_ssm writes it for the model of bamba/testdata/mamba2, with the
// keys of more.
func ssmConfig(more map[string]any) func(config map[string]any, s tensors) {
	return func(config map[string]any, s tensors) {
		clear(config)
		for key, value := range map[string]any{
			"d_model": 32, "d_intermediate": 0, "n_layer": 2, "vocab_size": 61,
			"ssm_cfg": map[string]any{"layer": "Mamba2", "d_state": 16, "headdim": 16,
				"ngroups": 2, "chunk_size": 16},
			"attn_layer_idx": []any{}, "attn_cfg": map[string]any{}, "rms_norm": true,
			"residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 16,
			"tie_embeddings": false,
		} {
			config[key] = value
		}
		for key, value := range more {
			config[key] = value
		}
	}
}

func ssmName(name string) string {
	return strings.Replace(name, "backbone.embeddings.", "backbone.embedding.", 1)
}

func TestAdopt_OpensTheFoldersOfMambaSSM(t *testing.T) {
	const folder = "../bamba/testdata/mamba2"
	inTorch(t, func() {
		m := open(t, folder)
		defer model.Free(m)
		sameModel(t, m, rewritten(t, folder, ssmName, ssmConfig(nil)))
	})
}

func TestAdopt_RefusesByField(t *testing.T) {
	const folder = "../bamba/testdata/mamba2"
	for _, c := range []struct {
		more map[string]any
		want string
	}{
		{map[string]any{"ssm_cfg": map[string]any{}}, "ssm_cfg.layer"},
		{map[string]any{"ssm_cfg": map[string]any{"layer": "Mamba1"}}, "ssm_cfg.layer"},
		{map[string]any{"attn_layer_idx": []any{1}}, "attn_layer_idx"},
		{map[string]any{"d_intermediate": 64}, "d_intermediate"},
		{map[string]any{"rms_norm": false}, "rms_norm"},
		{map[string]any{"ssm_cfg": map[string]any{"layer": "Mamba2", "D_has_hdim": true}},
			"ssm_cfg.D_has_hdim"},
		{map[string]any{"ssm_cfg": map[string]any{"layer": "Mamba2", "headdim": 24}},
			"ssm_cfg.headdim"},
		{map[string]any{"ssm_cfg": map[string]any{"layer": "Mamba2", "new": 1}}, "ssm_cfg.new"},
	} {
		inTorch(t, func() {
			dir := rewritten(t, folder, ssmName, ssmConfig(c.more))
			m, err := model.Open(dir, torch.Float32, torch.CPU)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: %v, expected an error with %s", c.more, err, c.want)
				if err == nil {
					model.Free(m)
				}
			}
		})
	}
}
