#!/usr/bin/env bash
# transformers 5.24.0. A config.json that transformers 5 wrote holds rope_theta inside
# rope_parameters. Adding rope_scaling to it, which is how guides for transformers 4 extend a
# model's context, replaces rope_parameters as a whole: the model's own rope_theta of 500000 is lost
# without a warning, and the default of 10000 is used, because the file has none at its top level.
# Seen: rope_theta 500000.0 without rope_scaling, 10000.0 with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/lib" \
  transformers==5.24.0
PYTHONPATH=$folder/lib python3 - "$folder" <<'PYTHON'
import json
import pathlib
import sys

from transformers import AutoConfig, LlamaConfig

model = pathlib.Path(sys.argv[1]) / "model"
LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}).save_pretrained(model)
plain = AutoConfig.from_pretrained(model).rope_parameters
path = model / "config.json"
config = json.loads(path.read_text())
assert "rope_theta" not in config and config["rope_parameters"]["rope_theta"] == 500000.0
config["rope_scaling"] = {"rope_type": "linear", "factor": 4.0}
path.write_text(json.dumps(config))
scaled = AutoConfig.from_pretrained(model).rope_parameters
print("without rope_scaling:", plain)
print("with rope_scaling:   ", scaled)
assert plain["rope_theta"] == 500000.0 and scaled["rope_theta"] == 10000.0, scaled
PYTHON
echo "transformers 5.24.0 behaves as described"
