#!/usr/bin/env bash
# transformers 5.24.0. A folder of model_type mistral whose config.json has layer_types is two
# models: AutoConfig, and so AutoModelForCausalLM, makes a Ministral of it, in which only the layers
# named sliding_attention have the window. MistralForCausalLM.from_pretrained of the same folder
# ignores the list, and all layers have the window. The key alone decides, whatever its value.
# Seen: MinistralConfig with the two kinds of layers, and MistralConfig.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/lib" \
  transformers==5.24.0
PYTHONPATH=$folder/lib python3 - "$folder" <<'PYTHON'
import json
import pathlib
import sys

from transformers import AutoConfig, MistralConfig

model = pathlib.Path(sys.argv[1]) / "model"
MistralConfig(num_hidden_layers=2, sliding_window=6).save_pretrained(model)
path = model / "config.json"
config = json.loads(path.read_text())
plain = type(AutoConfig.from_pretrained(model)).__name__
types = ["full_attention", "sliding_attention"]
path.write_text(json.dumps(config | {"layer_types": types}))
auto, named = AutoConfig.from_pretrained(model), MistralConfig.from_pretrained(model)
print("AutoConfig without layer_types:", plain)
print("AutoConfig with layer_types:   ", type(auto).__name__, auto.layer_types)
print("MistralConfig of that folder:  ", type(named).__name__)
assert plain == "MistralConfig" and type(named).__name__ == "MistralConfig"
assert type(auto).__name__ == "MinistralConfig" and auto.layer_types == types
PYTHON
echo "transformers 5.24.0 behaves as described"
