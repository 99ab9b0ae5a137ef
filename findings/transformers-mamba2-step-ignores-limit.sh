#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.11.0, without the kernels of mamba_ssm. A Mamba-2 model whose
# config.json has a time_step_limit is two models: a pass over a whole text clamps the time steps, a
# decoding step with the cache does not. So generate continues a text with other logits than a pass
# over the text it wrote.
# Seen: the last token's logits differ by 1.3e-3 of the largest with the limit [0, 0.001], and by
# 1e-7 without a limit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/lib" \
  torch==2.11.0 transformers==5.24.0
PYTHONPATH=$folder/lib python3 - <<'PYTHON'
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM


def difference(limit):
    """The largest difference of the last token's logits between a pass over all tokens and a step
    after the others, as a share of the largest logit."""
    torch.manual_seed(1)
    config = Mamba2Config(hidden_size=32, num_heads=4, head_dim=16, state_size=16, n_groups=1,
                          num_hidden_layers=2, vocab_size=64, chunk_size=16, expand=2,
                          time_step_limit=limit)
    model = Mamba2ForCausalLM(config).double().eval()
    ids = torch.randint(1, 64, (1, 12))
    with torch.no_grad():
        whole = model(ids).logits[:, -1]
        start = model(ids[:, :-1], use_cache=True)
        step = model(ids[:, -1:], use_cache=True, cache_params=start.cache_params,
                     cache_position=torch.tensor([11])).logits[:, -1]
    return ((step - whole).abs().max() / whole.abs().max()).item()


free, limited = difference((0.0, float("inf"))), difference((0.0, 0.001))
print(f"without a limit {free:.1e}, with time_step_limit [0, 0.001] {limited:.1e}")
assert free < 1e-5 and limited > 1e-4
PYTHON
echo "transformers 5.24.0 behaves as described"
