#!/usr/bin/env bash
# transformers 5.24's LlamaTokenizer says that add_bos_token is true by default. From a folder with
# a tokenizer.model, whose tokenizer_config.json does not name add_bos_token, it adds no <s>. A text
# for a Llama model then lacks its first token.
# Seen: the first token is "▁the", and "<s>" with add_bos_token.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.1 \
  protobuf==6.33.0
cd "$folder"
"$folder/env/bin/python" - <<'PY' 2>/dev/null
import json
import os
import re

import sentencepiece
import transformers
from transformers import AutoTokenizer, LlamaTokenizer

print("transformers", transformers.__version__)
with open("corpus.txt", "w") as file:
    file.write("the quick brown fox jumps over the lazy dog\n" * 50)
os.makedirs("model")
sentencepiece.SentencePieceTrainer.train(
    input="corpus.txt", model_prefix="model/tokenizer", model_type="bpe", vocab_size=60,
    byte_fallback=False, normalization_rule_name="identity", remove_extra_whitespaces=False)


def first(**config):
    with open("model/tokenizer_config.json", "w") as file:
        json.dump({"tokenizer_class": "LlamaTokenizer"} | config, file)
    tok = AutoTokenizer.from_pretrained("model")
    assert type(tok) is LlamaTokenizer
    return tok.convert_ids_to_tokens(tok.encode("the fox"))[0]


line = re.search(r"add_bos_token \(`bool`, \*optional\*, (.*)\)", LlamaTokenizer.__doc__).group(1)
silent, explicit = first(), first(add_bos_token=True)
print("documented:", line)
print("first token without add_bos_token:", silent, "- with add_bos_token true:", explicit)
assert line == "defaults to `True`" and silent != "<s>" and explicit == "<s>", \
    "the behaviour has changed"
PY
echo "transformers 5.24.0 behaves as described"
