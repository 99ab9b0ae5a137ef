"""Compares tokenizers of GGUF files with llama.cpp's: ids of texts and the tokens that end a text.

    python tools/parity/text_gguf.py [--count 400] [--seed 1]

It makes files without weights: byte-level BPE with each pre-tokenizer, and SentencePiece BPE with
and without a space in front. Needs llama-cpp-python, gguf and tokenizers.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import unicodedata

import llama_cpp
from gguf import GGUFWriter
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from text_tokenizers import BITS, corpus, run_go

PRE = [
    None, "default", "gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "gpt-4o",
    "llama4", "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon", "falcon-h1", "qwen35",
    "poro-chat", "viking", "bailingmoe", "seed-coder", "superbpe", "minicpm5", "glm4", "lfm2"
]
SPECIAL = ["<s>", "</s>", "<|im_end|>", "<|tool|>", "<extra>", "<|fim_pad|>", "[EOS]", "<|end|>"]
WORDS = [
    "HTTPServer", "iPhone", "ABC", "naïve", "ΑΒΓ", "Привет", "日本語テキスト", "a+b=c", "//", "/\n",
    "Straße", "ǅ", "ʰ", "٣٤٥", "²", "123456789", "$5", "don't", "I'LL"
]


@llama_cpp.llama_log_callback
def quiet(level, text, data):
    """llama.cpp warns of a text that begins with the token that it adds."""


def write(path, meta, tokens, types, scores, merges):
    writer = GGUFWriter(path, "llama")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
        writer.add_uint32("llama." + key, 32)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores is not None:
        writer.add_token_scores(scores)
    if merges is not None:
        writer.add_token_merges(merges)
    for key, value in meta.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def byte_level():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator([t[:20000] for t in corpus()[:6]] + WORDS * 30, trainer)
    spec = json.loads(tok.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get) + SPECIAL
    types = [1] * (len(tokens) - len(SPECIAL)) + [3, 3, 3, 3, 4, 3, 1, 3]
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["merges"]]
    return tokens, types, merges


def sentencepiece():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    tok.train_from_iterator([t[:20000] for t in corpus()[:6]] + WORDS * 30, trainer)
    spec = json.loads(tok.to_str())["model"]
    rank = {}
    for i, m in enumerate(spec["merges"]):
        rank.setdefault("".join(m if isinstance(m, list) else m.split(" ")), i)
    pieces = sorted(spec["vocab"], key=lambda p: rank.get(p, 10**6))
    pieces = [p for p in pieces if p in rank] + [p for p in pieces if p not in rank]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + pieces + SPECIAL[2:]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [3, 3, 4, 3, 1, 3]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0] * len(SPECIAL[2:])
    return tokens, types, scores


def texts(rng, count):
    parts = BITS + WORDS + SPECIAL
    out = []
    while len(out) < count:
        s = "".join(rng.choice(parts) + rng.choice(["", "", " "])
                    for _ in range(rng.randint(1, 9)))
        if s and "\0" not in s:
            out.append(s)
    return out


def check(name, count, seed, meta, tokens, types, scores=None, merges=None):
    work = tempfile.mkdtemp()
    path = os.path.join(work, "vocabulary.gguf")
    write(path, meta, tokens, types, scores, merges)
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    full = dict(meta) | {
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types
    }
    if scores is not None:
        full["tokenizer.ggml.scores"] = [s + 0.0 for s in scores]
    if merges is not None:
        full["tokenizer.ggml.merges"] = merges
    job = {"GGUF": os.path.join(work, "meta.json")}
    json.dump(full, open(job["GGUF"], "w"))
    strings = texts(random.Random(seed), count)
    if name == "qwen2":  # conquer normalizes like the model's own tokenizer, llama.cpp does not
        strings = [unicodedata.normalize("NFC", s) for s in strings]
    got = run_go(work, job, strings)
    wrong = 0
    for s, g in zip(strings, got):
        want = [model.tokenize(s.encode(), add_bos=bos, special=True) for bos in (False, True)]
        if want != [g["plain"], g["special"]]:
            wrong += 1
            if wrong < 4:
                print("   ", name, repr(s), want[1], g["special"])
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    ends = [i for i in range(len(tokens)) if llama_cpp.llama_vocab_is_eog(vocab, i)]
    ours = sorted(json.load(open(os.path.join(work, "ends.json"))))
    if ends != ours:
        print("   ", name, "ends", ends, ours)
    print(f"{name}: ids {count - wrong}/{count}, ends {'equal' if ends == ours else 'differ'}",
          flush=True)
    return wrong == 0 and ends == ours


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    llama_cpp.llama_log_set(quiet, None)
    tokens, types, merges = byte_level()
    first = len(tokens) - len(SPECIAL)
    good = []
    for pre in PRE:
        meta = {
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.bos_token_id": first,
            "tokenizer.ggml.eos_token_id": first + 1
        }
        if pre is not None:
            meta["tokenizer.ggml.pre"] = pre
        good.append(check(pre or "(missing)", args.count, args.seed, meta, tokens, types,
                          merges=merges))
    tokens, types, scores = sentencepiece()
    for space in (True, False, None):
        meta = {"tokenizer.ggml.model": "llama"}
        if space is not None:
            meta["tokenizer.ggml.add_space_prefix"] = space
            meta["tokenizer.ggml.bos_token_id"] = 1
            meta["tokenizer.ggml.eos_token_id"] = 2
        good.append(check(f"llama, space {space}", args.count, args.seed, meta, tokens, types,
                          scores))
    sys.exit(0 if all(good) else 1)


main()
