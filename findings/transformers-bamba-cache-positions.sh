#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.11.0, without the kernels of mamba_ssm. A text is read in two
# calls, the second with the cache of the first and without position_ids. Llama's positions continue
# after those of the cache. Bamba's begin at 0 again, so its attention layers rotate the second
# piece's keys and queries by wrong angles, and the logits differ from those of one call, silently.
# With position_ids the two calls agree.
# Seen: the last token's logits differ by 0.35 of the largest for Bamba, and by 1e-7 with
# position_ids. Without them they are equal to those with the positions 0 to 3. Llama's do not
# differ.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/lib" \
  torch==2.11.0 transformers==5.24.0
PYTHONPATH=$folder/lib python3 - <<'PYTHON'
import torch
from transformers import BambaConfig, BambaForCausalLM, LlamaConfig, LlamaForCausalLM

SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, vocab_size=64,
             num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
IDS = torch.randint(1, 64, (1, 24), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def last(model, positions=None):
    """The last token's logits of a text in two calls, the second of 4 tokens."""
    cache = model(IDS[:, :20], use_cache=True).past_key_values
    given = {} if positions is None else dict(position_ids=torch.tensor([positions]))
    return model(IDS[:, 20:], past_key_values=cache, use_cache=True, **given).logits[:, -1]


def off(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


torch.manual_seed(1)
bamba = BambaForCausalLM(
    BambaConfig(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1,
                mamba_chunk_size=16, attn_layer_indices=[1], **SHAPE)).double().eval()
llama = LlamaForCausalLM(LlamaConfig(**SHAPE)).double().eval()
with torch.no_grad():
    whole, whole_llama = bamba(IDS).logits[:, -1], llama(IDS).logits[:, -1]
plain = off(last(bamba), whole)
given = off(last(bamba, [20, 21, 22, 23]), whole)
zero = off(last(bamba), last(bamba, [0, 1, 2, 3]))
other = off(last(llama), whole_llama)
print(f"Bamba {plain:.1e}, with position_ids {given:.1e}, from positions 0 to 3 {zero:.1e}; "
      f"Llama {other:.1e}")
assert plain > 1e-3 and given < 1e-6 and zero < 1e-6 and other < 1e-6
PYTHON
echo "transformers 5.24.0 behaves as described"
