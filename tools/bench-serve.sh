#!/bin/sh
# bench-serve.sh CONQUER [ARGUMENT...]: a server that gets 256 requests at once, with prompts of
# 128 to 4,096 tokens (338,560 in all) and 128 new tokens each, on this machine's GPU. Weights are
# random and of the size of Llama-3.2-1B, then of Bamba-9B. It needs neither Python nor a network.
# Arguments are passed on to `conquer bench serve`, such as --json.
#
# On a machine without a GPU, with small models:
#   SIZES="llama micro" LIMITS="16:256" REQUESTS="--requests 24 --prompt_lengths 32,64,128" \
#     tools/bench-serve.sh build/bin/conquer --device cpu
set -e
conquer=$1; shift
SIZES=${SIZES:-"llama 3.2-1b,bamba 9b"}
LIMITS=${LIMITS:-"64:1024 128:2048 256:2048"} # requests decoded together : prefill chunk
"$conquer" info --device
echo "$SIZES" | tr , '\n' | while read -r architecture variant; do
  for limit in $LIMITS; do
    echo "== $architecture $variant, ${limit%:*} requests together, pieces of ${limit#*:} tokens"
    "$conquer" bench serve --architecture "$architecture" --variant "$variant" --dtype bfloat16 \
      --max_sequences "${limit%:*}" --prefill_chunk "${limit#*:}" $REQUESTS "$@"
  done
done
