#!/usr/bin/env bash
# peft 0.21.2. LoraConfig.alpha_pattern gives layers an alpha of their own, and the first pattern
# that matches a layer's name counts, in the order of the dict. save_pretrained writes
# adapter_config.json with sorted keys. So an adapter whose patterns overlap computes something else
# after it is saved and loaded: a general pattern that came first comes last if it sorts behind the
# specific one. No warning is given. (With rank_pattern loading fails, because shapes differ.)
# A reader of adapters has to take the patterns in the order of the file, and a writer should
# not write overlapping ones.
# Seen: the scale of layers.0.q_proj is 1 before saving and 10 after loading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
  peft==0.21.2 torch==2.11.0 transformers==5.24.0
FOLDER=$folder PYTHONPATH=$folder/packages python3 - <<'PYTHON'
import os
import torch
from peft import LoraConfig, PeftModel, get_peft_model


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            [torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8)}) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer["q_proj"](x)
        return x


torch.manual_seed(1)
base = Model()
weights = base.state_dict()
config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False,
                    alpha_pattern={"q_proj": 2, "layers.0.q_proj": 20})
model = get_peft_model(base, config).eval()
x = torch.randn(1, 8)
with torch.no_grad():
    before = model(x)
scale = model.base_model.model.layers[0]["q_proj"].scaling["default"]
adapter = os.path.join(os.environ["FOLDER"], "adapter")
model.save_pretrained(adapter)
fresh = Model()
fresh.load_state_dict(weights)
loaded = PeftModel.from_pretrained(fresh, adapter).eval()
with torch.no_grad():
    after = loaded(x)
reloaded = loaded.base_model.model.layers[0]["q_proj"].scaling["default"]
print("scale of layers.0.q_proj:", scale, "before saving,", reloaded, "after loading")
print("largest difference of the outputs:", (after - before).abs().max().item())
assert (scale, reloaded) == (1.0, 10.0) and not torch.allclose(before, after)
PYTHON
echo "peft 0.21.2 behaves as described"
