#!/usr/bin/env bash
# demo.sh CONQUER: tunes SmolLM2-135M on examples/lighthouse, shows the effect on two questions, and
# writes a model folder.
set -euo pipefail
cd "$(dirname "$0")/.."
conquer=$1
out=build/demo
rm -rf "$out"
echo
echo "Tuning SmolLM2-135M-Instruct on 192 answers of a lighthouse keeper (examples/lighthouse)."
echo "Watch the validation loss: its 24 questions are not in the training data."
"$conquer" train --model_path smollm2-135m \
  --data_path examples/lighthouse/train.jsonl --validation_path examples/lighthouse/heldout.jsonl \
  --output_path "$out" --epochs 1 --batch_size 4 --learning_rate 2e-4 --dtype bfloat16 \
  --sequence_length 256 --checkpoint_steps 0 --ask "Why is the sky blue?" \
  --ask "What should I do when I can't decide between two jobs?"
echo "  build/bin/conquer chat --model_path $out"
echo "$out is a Hugging Face folder, which transformers loads too."
echo "'build/bin/conquer help' lists all commands."
