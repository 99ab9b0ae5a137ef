#!/usr/bin/env bash
# experiment.sh CONQUER: trains a small Bamba on Go's own sources, compares the chunking strategies
# and writes a report. A step whose result exists is skipped, so that a stopped run continues.
# Removing a result repeats its step.
set -euo pipefail
cd "$(dirname "$0")/.."
conquer=$1
out=build/experiment
model=$out/model
results=$out/results
mkdir -p "$results"

# An interrupted benchmark writes the rows that it has; that file is not the step's result.
unfinished=
trap 'rm -f "$unfinished"; exit 130' INT TERM

# step FILE WHAT COMMAND...: prints WHAT and runs the command, unless FILE exists.
step() {
  local file=$1 what=$2
  shift 2
  if [ -e "$file" ]; then
    printf '\n== %s: already done (%s)\n' "$what" "$file"
    return
  fi
  local shown=$*
  [ "$1" = table ] && shown="${*:3} > $2"
  printf '\n== %s (after %d s)\n   %s\n' "$what" "$SECONDS" "$shown"
  unfinished=$file
  "$@" || { local code=$?; rm -f "$file"; exit $code; }
  unfinished=
}

# table FILE COMMAND...: writes the command's table to FILE and prints its last line.
table() {
  local file=$1
  shift
  "$@" > "$file"
  tail -n 1 "$file"
  echo "the table is in $file"
}

all=default,independent,windowed:1,windowed:2,windowed:4
kernels=default-optimized,independent-optimized
kernels+=,windowed:1-optimized,windowed:2-optimized,windowed:4-optimized

step $out/corpus/prompts.json "Collect Go's own sources; some packages are held out" \
  "${GO:-go}" run ./tools/corpus "$("${GO:-go}" env GOROOT)/src" $out/corpus

step $model/model.safetensors "Train a character-level Bamba, 1 million weights: 3 minutes" \
  "$conquer" train --architecture bamba --variant bytes --tokenizer char_tokenizer \
  --data_path $out/corpus/train --validation_path $out/corpus/validation \
  --output_path $model --checkpoint_path $out/checkpoints \
  --pack --sequence_length 1024 --batch_size 1 --steps 3500 --learning_rate 4e-3 --beta2 0.98 \
  --report_steps 250 --validate_steps 700 --checkpoint_steps 500 --resume --overwrite
rm -rf $out/checkpoints

step $results/accuracy.json "Continue held-out texts; measure perplexity for each strategy" \
  "$conquer" bench accuracy --model_path $model --prompts $out/corpus/prompts.json \
  --chunking $kernels --output_path $results

step $results/gptscore.json "Score the continuations with the model (GPTScore)" \
  "$conquer" bench gptscore --model_path $model --aspect none --output_path $results \
  $results/accuracy_*.tsv

step $results/chunks.json "Time the model over prompts of 256 to 4,096 characters" \
  table $results/chunks.txt "$conquer" bench chunks --model_path $model \
  --prompts $out/corpus/lengths.json --chunking $all --compile eager,kernels \
  --max_new_tokens 1 --output_path $results

step $results/ssd.json "Time the scan alone, with the model's shape" \
  table $results/ssd.txt "$conquer" bench ssd --chunking default,$kernels \
  --heads 12 --head_dim 32 --state 64 --chunk_size 16,64 --length 256,1024,4096 --repeats 5 \
  --output_path $results

step $results/consistency.json "Compare ways to run the model with float64, over 4,096 characters" \
  table $results/consistency.txt "$conquer" bench consistency --model_path $model \
  --text_file $out/corpus/heldout/text/template/exec.go.txt --length 4096 \
  --dtype float32,bfloat16 --chunking $kernels \
  --output_path $results

printf '\n== Draw the report (after %d s)\n' $SECONDS
"$conquer" bench report --results_path $results --output_path $out/report.html
printf '\nDone after %d s. Open %s in a browser; the plots are in %s.\n' \
  $SECONDS "$PWD/$out/report.html" $out/plots
