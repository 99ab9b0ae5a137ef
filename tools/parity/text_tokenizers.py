"""Hold the Go tokenizers against Hugging Face's, string by string.

    python tools/parity/text_tokenizers.py [--count 20000] [--seed 1] FILE ...

FILE is a folder with a tokenizer.json (or tokenizer.model), such a file, or a
.gguf. Each is fuzzed with --count strings made of its own tokens, of every kind
of Unicode and of program text; ids with and without special tokens, decoded
text (also of random ids), and chat templates must be equal. Needs tokenizers,
transformers, gguf, sentencepiece and jinja2.
"""

import argparse
import glob
import json
import os
import random
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

CHATS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " What is 2+2?\n"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! 'quoted' \"text\" <b>&amp;</b>"},
        {"role": "user", "content": "日本語 \n\n {{ not a template }} {% raw %}"},
    ],
    [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ],
]

SCRIPTS = [
    (0x20, 0x7F), (0x20, 0x7F), (0x20, 0x7F), (0, 0x20), (0x80, 0x250), (0x250, 0x530), (0x590, 0x700),
    (0x900, 0xE80), (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2070), (0x2070, 0x2C00), (0x3000, 0x3100),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xE000, 0xE010), (0xFB00, 0xFFFE), (0x10000, 0x10400),
    (0x10D00, 0x10F00), (0x11300, 0x11C00), (0x11DB0, 0x11DF0), (0x13400, 0x14400), (0x16100, 0x16E00),
    (0x1CCF0, 0x1CD00), (0x1D400, 0x1D800), (0x1E5D0, 0x1E600), (0x1F000, 0x1FB00), (0x20000, 0x20100),
    (0x2EBF0, 0x2EE60), (0xE0000, 0xE0080), (0x10FFF0, 0x110000),
]
BITS = [
    "'s", "'S", "'ſ", "'re", "'RE", "'Ve", "'ll", "'lL", "'d", "'M", "' s", "don't", "I'LL", "''", "s'",
    " ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", " \n ", "\u00a0", "\u3000", "\u2028", "\u0085", "\x00",
    "0", "1234567", "12 34", "٣٤", "½", "Ⅷ", "1,000.50", "é", "e\u0301", "ﬁ", "각", "가\u11a8", "Å", "\u0344",
    "👩‍👩‍👧‍👦", "🇩🇪", "नमस्ते", "สวัสดี", "مرحبا", "你好，世界", "▁", "▁▁", "Ġ", "Ċ", "<0x0A>", "<0xE2>",
    "aaaaaaaa", "        ", "--------", "========", "hahahaha", "abcabcabc", "\ufeff", "\u200d", "\ufffd",
]


def corpus():
    texts = []
    for path in sorted(glob.glob(os.path.join(ROOT, "**", "*.go"), recursive=True))[:40]:
        texts.append(open(path, encoding="utf-8").read())
    goroot = subprocess.run(["go", "env", "GOROOT"], capture_output=True, text=True).stdout.strip()
    for path in sorted(glob.glob(os.path.join(goroot, "src", "net", "http", "*.go")))[:40]:
        texts.append(open(path, encoding="utf-8", errors="replace").read())
    return texts


def strings(rng, tok, added, count):
    """Strings of 1 to a few hundred characters, of many kinds mixed."""
    files = corpus()
    size = tok.get_vocab_size()
    out = ["", " ", "▁", "\x00", "a" * 700, "ab" * 300, " " * 500, "\n" * 300, "é" * 400, "=" * 999]

    def one(kind):
        if kind == 0:
            lo, hi = rng.choice(SCRIPTS)
            return "".join(chr(rng.randrange(lo, hi)) for _ in range(rng.randint(1, 12)))
        if kind == 1:
            return rng.choice(BITS) * rng.choice([1, 1, 1, 2, 5])
        if kind == 2:
            text = rng.choice(files)
            at = rng.randrange(len(text))
            return text[at : at + rng.randint(1, 120)]
        if kind == 3 and added:
            return rng.choice(["", " ", "  \n", "x"]) + rng.choice(added) + rng.choice(["", " ", "\t ", "y"])
        if kind == 4:
            return "".join(tok.decode([rng.randrange(size)], skip_special_tokens=False) for _ in range(rng.randint(1, 6)))
        if kind == 5:
            return "".join(rng.choice("aeiounst ,.'\n1") for _ in range(rng.randint(1, 40)))
        while True:
            c = chr(rng.randrange(0x110000))
            if not 0xD800 <= ord(c) < 0xE000:
                return c

    while len(out) < count:
        s = "".join(one(rng.randrange(7)) for _ in range(rng.randint(1, 8)))
        out.append("".join(c for c in s if not 0xD800 <= ord(c) < 0xE000))
    return out


def gguf_meta(path):
    from gguf import GGUFReader

    meta = {}
    for key, field in GGUFReader(path).fields.items():
        if key.startswith("tokenizer."):
            value = field.contents()
            if hasattr(value, "tolist"):
                value = value.tolist()
            meta[key] = value
    return meta


def from_gguf(meta):
    """A reference for byte-level GGUF files of the smollm family."""
    assert meta["tokenizer.ggml.pre"] == "smollm", "a reference is known for SmolLM2's GGUF only"
    tokens = meta["tokenizer.ggml.tokens"]
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    tok = Tokenizer(models.BPE(vocab, merges, unk_token=tokens[meta["tokenizer.ggml.unknown_token_id"]]))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, meta["tokenizer.ggml.token_type"]) if k == 3]
    )
    return tok


def check(path, count, seed, verbose):
    from transformers import AutoTokenizer

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as work:
        job = {"Save": os.path.join(work, "saved")}
        hf = None
        if path.endswith(".gguf"):
            meta = gguf_meta(path)
            job["GGUF"] = os.path.join(work, "meta.json")
            json.dump(meta, open(job["GGUF"], "w"))
            tok = from_gguf(meta)
        elif os.path.exists(os.path.join(path, "tokenizer.json")) or path.endswith(".json"):
            job["Open"] = os.path.abspath(path)
            tok = Tokenizer.from_file(path if path.endswith(".json") else os.path.join(path, "tokenizer.json"))
        else:
            # transformers' own conversion of a tokenizer.model, as released models have it
            job["Open"] = os.path.abspath(path)
            tok = from_sentencepiece(path)
        added = [t.content for t in tok.get_added_tokens_decoder().values()]
        texts = strings(rng, tok, added, count)
        size = tok.get_vocab_size()
        job["IDs"] = [[rng.randrange(size) for _ in range(rng.randint(1, 20))] for _ in range(count // 4)]
        job["Chat"] = CHATS
        json.dump(job, open(os.path.join(work, "job.json"), "w"))
        json.dump(texts, open(os.path.join(work, "texts.json"), "w"))
        subprocess.run(
            ["go", "test", "-count=1", "-run", "^TestParityWithHuggingFace$", "./text"],
            cwd=ROOT, check=True, env=dict(os.environ, TEXT_PARITY=work), stdout=subprocess.DEVNULL if not verbose else None,
        )
        got = [json.loads(line) for line in open(os.path.join(work, "go.jsonl"))]
        bad = {"ids": 0, "decoded": 0, "random ids decoded": 0, "reloaded": 0, "chat": 0}
        shown = 0

        def differ(kind, *what):
            nonlocal shown
            bad[kind] += 1
            if shown < 8:
                shown += 1
                print("   ", kind, *[repr(w)[:300] for w in what])

        for s, g in zip(texts, got):
            plain, special = tok.encode(s, add_special_tokens=False).ids, tok.encode(s).ids
            if plain != g["plain"] or special != g["special"]:
                differ("ids", s, plain, g["plain"], special == g["special"])
            elif tok.decode(special, skip_special_tokens=False) != g["text"] or tok.decode(special) != g["skipped"]:
                differ("decoded", special, tok.decode(special, skip_special_tokens=False), g["text"])
        for ids, g in zip(job["IDs"], got[len(texts):]):
            if tok.decode(ids, skip_special_tokens=False) != g["text"] or tok.decode(ids) != g["skipped"]:
                differ("random ids decoded", ids, tok.decode(ids, skip_special_tokens=False), g["text"])
        try:
            hf = AutoTokenizer.from_pretrained(job["Save"])
        except Exception as e:
            print("    AutoTokenizer:", str(e)[:200])
        if hf is not None:
            for s, g in zip(texts[:2000], got):
                if hf.encode(s, add_special_tokens=False) != g["plain"] or hf.encode(s) != g["special"]:
                    differ("reloaded", s, hf.encode(s), g["special"])
        chats = got[len(texts) + len(job["IDs"]):]
        if hf is not None and hf.chat_template:
            want = []
            for c in CHATS:
                for generate in (False, True):
                    try:
                        want.append(hf.apply_chat_template(c, tokenize=False, add_generation_prompt=generate))
                    except Exception as e:
                        want.append("error: " + str(e))
            for w, g in zip(want, chats):
                if w != g and not (w.startswith("error") and g.startswith("error")):
                    differ("chat", w, g)
        n, r, c = len(texts), len(job["IDs"]), 2 * len(CHATS)
        loaded = "not loaded" if hf is None else f"{min(2000, n) - bad['reloaded']}/{min(2000, n)}"
        chat = "none" if hf is None or not hf.chat_template else f"{c - bad['chat']}/{c}"
        print(
            f"{path}: ids {n - bad['ids']}/{n}, decoded {n - bad['decoded']}/{n}, "
            f"random ids decoded {r - bad['random ids decoded']}/{r}, AutoTokenizer {loaded}, chat {chat}",
            flush=True,
        )
        return sum(bad.values()) == 0


def from_sentencepiece(path):
    """transformers' LlamaConverter in its legacy form, without its classes."""
    from sentencepiece import sentencepiece_model_pb2 as pb
    from tokenizers import normalizers, processors
    from transformers.convert_slow_tokenizer import generate_merges

    model = path if path.endswith(".model") else os.path.join(path, "tokenizer.model")
    proto = pb.ModelProto()
    proto.ParseFromString(open(model, "rb").read())
    vocab = {p.piece: i for i, p in enumerate(proto.pieces)}
    scores = {p.piece: p.score for p in proto.pieces}
    skip = [p.piece for p in proto.pieces if p.type not in (1, 4)]
    tok = Tokenizer(models.BPE(vocab, generate_merges(vocab, scores, skip), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tok.add_special_tokens([AddedToken(p.piece, special=True, normalized=False) for p in proto.pieces if p.type in (2, 3)])
    return tok


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    sys.exit(0 if all([check(f, args.count, args.seed, args.verbose) for f in args.files]) else 1)
