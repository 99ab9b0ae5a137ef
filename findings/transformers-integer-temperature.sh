#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.11.0). A generation_config.json with "temperature": 2 loads, but
# generate() refuses it: "has to be a strictly positive float". 2.0 works. "repetition_penalty": 2
# is refused too, and "top_k": 5.0 because it is no integer, while "top_p": 1 and "min_p": 0 are
# accepted. JSON does not distinguish 2 and 2.0, so a program in JavaScript, Go or jq that reads
# the file and writes it again can make a model unusable.
# Seen: ValueError for 2, a text for 2.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" \
  transformers==5.24.0 torch==2.11.0
PYTHONPATH=$folder python3 - "$folder" <<'PYTHON'
import pathlib, sys
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=80, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                num_attention_heads=2))
ids = torch.tensor([[5, 6, 7]])
place = pathlib.Path(sys.argv[1], "config")
place.mkdir()
for settings, works in (('"do_sample": true, "temperature": 2.0', True),
                        ('"do_sample": true, "temperature": 2', False),
                        ('"repetition_penalty": 2.0', True), ('"repetition_penalty": 2', False),
                        ('"do_sample": true, "top_k": 5', True),
                        ('"do_sample": true, "top_k": 5.0', False),
                        ('"do_sample": true, "top_p": 1, "min_p": 0', True)):
    (place / "generation_config.json").write_text("{" + settings + "}")
    config = GenerationConfig.from_pretrained(place)
    try:
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config,
                       max_new_tokens=2, pad_token_id=0)
        seen = "works"
    except ValueError as e:
        seen = str(e)
    print("{" + settings + "}:", seen)
    assert (seen == "works") == works, settings
PYTHON
echo "transformers 5.24.0 behaves as described"
