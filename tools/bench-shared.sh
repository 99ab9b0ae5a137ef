#!/bin/sh
# bench-shared.sh CONQUER MODEL [BUSY...]: decoding and training on a machine that is shared. Each
# is timed alone and beside BUSY busy processes (default: 2 and 6), three times, and the best is
# printed. The fair share is what a scheduler that gives each thread the same time leaves: with C
# cores, C threads and B busy processes, C / (C + B) of the speed of a quiet machine.
set -e
conquer=$1 model=$2
shift 2
[ $# -gt 0 ] || set -- 2 6
cores=$(nproc)

# best WORK: milliseconds of the best of three runs.
best() {
  for _ in 1 2 3; do
    case $1 in
    decode\ *) "$conquer" bench inference --model_path "$model" --device cpu --seq_len 32 \
      --max_new_tokens 16 --batch_size 1 --skip_nokvcache_runs --json --dtype "${1#decode }" ;;
    train) "$conquer" bench train --model_path "$model" --device cpu --batch_size 1 \
      --sequence_length 128 --steps 3 --json ;;
    esac
  done | sed -n "s/.*\"$2\": *\([0-9.e+-]*\).*/\1/p" | sort -g | head -n 1
}

load=
stop() { [ -z "$load" ] || kill $load 2> /dev/null || true; load=; }
trap stop EXIT
for work in "decode float32:single_token_ms" "decode bfloat16:single_token_ms" "train:step_ms"; do
  field=${work#*:} work=${work%:*}
  quiet=$(best "$work" "$field")
  [ -n "$quiet" ] || exit 1 # the program has said why
  echo "$work, quiet: $quiet ms"
  for busy in "$@"; do
    for _ in $(seq "$busy"); do
      sh -c 'while :; do :; done' &
      load="$load $!"
    done
    shared=$(best "$work" "$field")
    stop
    awk -v q="$quiet" -v s="$shared" -v c="$cores" -v b="$busy" -v w="$work" 'BEGIN {
      fair = q * (c + b) / c
      printf "%s, beside %d busy processes: %s ms, %.2f of the fair share (%.1f ms)\n",
        w, b, s, fair / s, fair }'
  done
done
