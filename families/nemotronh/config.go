package nemotronh

import (
	"fmt"
	"math"
	"slices"

	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch/nn"
)

// The kinds of layers, by their letters in hybrid_override_pattern.
const (
	mamba     = 'M'
	attention = '*'
	mlp       = '-'
	moe       = 'E'
)

// settings is a config, read and checked.
type settings struct {
	stack        model.StackConfig
	attention    model.AttentionConfig
	mixer        statespace.MixerConfig
	layers       []rune // the kind of each
	inner, chunk int
	mlpBias      bool

	routing         nn.Routing
	experts, shared int // widths of an expert and of the shared feed-forward layer
}

// defaults are the values of NemotronHConfig.
var defaults = model.Config{
	"vocab_size": 131072.0, "hidden_size": 4096.0, "num_attention_heads": 32.0,
	"num_key_value_heads": 8.0, "head_dim": 128.0, "max_position_embeddings": 4096.0,
	"intermediate_size": 21504.0, "mlp_bias": false, "ssm_state_size": 128.0,
	"mamba_num_heads": 128.0, "mamba_head_dim": 64.0, "n_groups": 8.0, "conv_kernel": 4.0,
	"time_step_min": 0.001, "use_conv_bias": true, "chunk_size": 128.0, "use_bias": false,
	"layer_norm_epsilon": 1e-5, "n_routed_experts": 8.0, "num_experts_per_tok": 2.0,
	"moe_intermediate_size": 7688.0, "moe_shared_expert_intermediate_size": 7688.0,
	"routed_scaling_factor": 1.0, "n_group": 1.0, "topk_group": 1.0, "norm_topk_prob": true,
}

// olderNames are names of fields in older config.json files, which win, as in transformers.
var olderNames = map[string]string{"mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel",
	"mamba_dt_min": "time_step_min", "mamba_conv_bias": "use_conv_bias",
	"mamba_chunk_size": "chunk_size"}

func read(config model.Config) (settings, error) {
	all := config.Or(defaults)
	for older, name := range olderNames {
		if value, ok := config[older]; ok {
			all[name] = value
		}
	}
	r := &model.Reader{Config: all}
	r.Refuse("per_layer_config", "tie_word_embeddings")
	s := settings{
		stack: model.StackConfig{
			Architecture: "nemotronh", Config: statespace.Decimals(config),
			Vocabulary: r.IntUpTo("vocab_size", model.Vocabulary),
			Width:      r.IntUpTo("hidden_size", model.Widths),
			MaxLength:  r.Int("max_position_embeddings"),
			Eps:        r.Eps("layer_norm_epsilon"),
			Names: model.StackNames{Embedding: "backbone.embeddings", Layers: "backbone.layers",
				FinalNorm: "backbone.norm_f"},
		},
		layers:  layersOf(r),
		inner:   r.IntUpTo("intermediate_size", model.Widths),
		mlpBias: r.Bool("mlp_bias"),
		chunk:   r.IntUpTo("chunk_size", model.Chunk),
	}
	heads := r.Int("num_attention_heads")
	s.attention = model.AttentionConfig{Width: s.stack.Width, Heads: heads,
		KeyHeads: r.IntOr("num_key_value_heads", heads),
		HeadDim:  r.IntUpTo("head_dim", model.HeadDims), NoRotary: true}
	s.mixer = statespace.MixerConfig{
		Width: s.stack.Width, Heads: r.Int("mamba_num_heads"), HeadDim: r.Int("mamba_head_dim"),
		Groups: r.Int("n_groups"), State: r.Int("ssm_state_size"), Taps: r.Int("conv_kernel"),
		InBias: r.Bool("use_bias"), OutBias: r.Bool("use_bias"),
		ConvBias: r.Bool("use_conv_bias"), Eps: s.stack.Eps,
		DTMin: r.Float("time_step_min"), DTMax: math.Inf(1),
	}
	if act := r.StringOr("mamba_hidden_act", "silu"); act != "silu" && act != "swish" {
		r.Fail(fmt.Errorf("config.json: mamba_hidden_act %.40q is not supported, expected silu",
			act))
	}
	if act := r.StringOr("mlp_hidden_act", "relu2"); act != "relu2" {
		r.Fail(fmt.Errorf("config.json: mlp_hidden_act %.40q is not supported, expected relu2",
			act))
	}
	if slices.Contains(s.layers, moe) {
		s.readExperts(r)
	}
	if r.Err != nil {
		return s, r.Err
	}
	return s, s.mixer.CheckSizes(statespace.MixerNames{Heads: "mamba_num_heads",
		HeadDim: "mamba_head_dim", State: "ssm_state_size", Taps: "conv_kernel"})
}

// readExperts reads what the mixtures of experts have in common.
func (s *settings) readExperts(r *model.Reader) {
	if r.Has("moe_latent_size") {
		r.Fail(fmt.Errorf("config.json: moe_latent_size is %v: experts of a latent width are not "+
			"supported", r.Config["moe_latent_size"]))
	}
	experts := "n_routed_experts"
	if !r.Has(experts) {
		experts = "num_local_experts" // as transformers calls the field, too
	}
	s.routing = nn.Routing{
		Experts: r.IntUpTo(experts, model.Experts), TopK: r.Int("num_experts_per_tok"),
		Sigmoid: true, Renormalize: r.Bool("norm_topk_prob"),
		Scale: r.Multiplier("routed_scaling_factor"), Groups: r.Int("n_group"),
		TopGroups: r.Int("topk_group"),
	}
	s.experts = r.IntUpTo("moe_intermediate_size", model.Widths)
	s.shared = r.IntUpTo("moe_shared_expert_intermediate_size", model.Widths)
	if err := s.routing.Check(); err != nil {
		r.Fail(err)
	}
}

// words are the kinds of layers in the lists of transformers 5 and of older files.
var words = map[string]rune{"linear_attention": mamba, "mamba": mamba, "full_attention": attention,
	"attention": attention, "mlp": mlp, "moe": moe}

// layersOf reads the kinds of the layers: a list of words or, without one, a pattern of letters.
func layersOf(r *model.Reader) (kinds []rune) {
	key := "layers_block_type"
	if !r.Has(key) {
		key = "layer_types" // as transformers calls the field, too
	}
	list, isList := r.Config[key].([]any)
	switch {
	case r.Has(key) && (!isList || len(list) > model.Layers):
		r.Fail(fmt.Errorf("config.json: %s is %.80v, expected a list of at most %d kinds of layers",
			key, r.Config[key], model.Layers))
	case r.Has(key):
		for _, kind := range r.Strings(key, len(list)) {
			letter, ok := words[kind]
			if !ok {
				r.Fail(fmt.Errorf("config.json: %s has %.40q, expected mamba, attention, mlp or "+
					"moe", key, kind))
			}
			kinds = append(kinds, letter)
		}
	case r.Has("hybrid_override_pattern"):
		pattern := r.StringOr("hybrid_override_pattern", "")
		if len(pattern) > model.Layers {
			r.Fail(fmt.Errorf("config.json: hybrid_override_pattern has %d letters, expected at "+
				"most %d", len(pattern), model.Layers))
			return nil
		}
		for _, letter := range pattern {
			if !slices.Contains([]rune{mamba, attention, mlp, moe}, letter) {
				r.Fail(fmt.Errorf("config.json: hybrid_override_pattern has %q, expected M, *, - "+
					"or E", letter))
			}
			kinds = append(kinds, letter)
		}
	default:
		kinds = []rune{mamba, moe, attention, mlp} // as in transformers
	}
	if len(kinds) == 0 {
		r.Fail(fmt.Errorf("config.json: there are no layers: layers_block_type or " +
			"hybrid_override_pattern lists them"))
	}
	return kinds
}
