#!/usr/bin/env bash
# run.sh CONQUER ENVIRONMENT PYTHON: makes the Python environment (once; PyTorch with all of CUDA,
# about 6 GB) and runs every comparison in this folder. It needs the Go environment of `make env`,
# which `make parity` sets.
set -euo pipefail
cd "$(dirname "$0")/../.."
conquer=$1 environment=$2 python=$3
tools/parity/environment.sh "$environment" "$python"
py=$environment/bin/python
model=$("$conquer" info --model_path smollm2-135m --json |
  "$py" -c 'import json, sys; print(json.load(sys.stdin)["path"])')

status=0
compare() {
  echo "== $*"
  "$py" "$@" || { echo "FAILED: $*"; status=1; }
}
compare tools/parity/text_tokenizers.py "$model"
compare tools/parity/text_gguf.py
compare tools/parity/chat_templates.py
compare tools/parity/data_sets.py
compare tools/parity/checkpoint_files.py "$model"
compare tools/parity/generate_greedy.py --conquer "$conquer"
compare tools/parity/quantized_folders.py --conquer "$conquer" --model ""
compare tools/parity/export_formats.py --conquer "$conquer"
compare tools/parity/train_losses.py --conquer "$conquer"
compare tools/parity/train_objectives.py --conquer "$conquer"
compare tools/parity/train_lora.py --conquer "$conquer"
compare tools/parity/peft_adapters.py --conquer "$conquer"
compare tools/parity/turn_ends.py --conquer "$conquer"
compare tools/parity/bamba_logits.py
compare tools/parity/family_models.py
compare tools/parity/config_keys.py
compare tools/parity/eval_tasks.py --conquer "$conquer"
compare tools/parity/serve_clients.py "$model" --conquer "$conquer"
compare tools/parity/lm_eval_serve.py --conquer "$conquer"
exit $status
