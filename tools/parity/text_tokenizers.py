"""Compares the Go tokenizers with Hugging Face's, string by string.

    python tools/parity/text_tokenizers.py [--count 20000] [--seed 1] FILE ...

FILE is a folder with a tokenizer.json (or tokenizer.model), such a file, or a .gguf. Each is tested
with --count strings made of its own tokens, of every kind of Unicode and of program text. Ids with
and without special tokens, decoded text (also of random ids), and chat templates must be equal.
Needs tokenizers, transformers, gguf, sentencepiece and jinja2.
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
    (0x20, 0x7F),
    (0x20, 0x7F),
    (0x20, 0x7F),
    (0, 0x20),
    (0x80, 0x250),
    (0x250, 0x530),
    (0x590, 0x700),
    (0x900, 0xE80),
    (0x1100, 0x1200),
    (0x1E00, 0x2000),
    (0x2000, 0x2070),
    (0x2070, 0x2C00),
    (0x3000, 0x3100),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A4),
    (0xE000, 0xE010),
    (0xFB00, 0xFFFE),
    (0x10000, 0x10400),
    (0x10D00, 0x10F00),
    (0x11300, 0x11C00),
    (0x11DB0, 0x11DF0),
    (0x13400, 0x14400),
    (0x16100, 0x16E00),
    (0x1CCF0, 0x1CD00),
    (0x1D400, 0x1D800),
    (0x1E5D0, 0x1E600),
    (0x1F000, 0x1FB00),
    (0x20000, 0x20100),
    (0x2EBF0, 0x2EE60),
    (0xE0000, 0xE0080),
    (0x10FFF0, 0x110000),
]
BITS = [
    "'s",
    "'S",
    "'ſ",
    "'re",
    "'RE",
    "'Ve",
    "'ll",
    "'lL",
    "'d",
    "'M",
    "' s",
    "don't",
    "I'LL",
    "''",
    "s'",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\n\n",
    " \n ",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u0085",
    "\x00",
    "0",
    "1234567",
    "12 34",
    "٣٤",
    "½",
    "Ⅷ",
    "1,000.50",
    "é",
    "e\u0301",
    "ﬁ",
    "각",
    "가\u11a8",
    "Å",
    "\u0344",
    "👩‍👩‍👧‍👦",
    "🇩🇪",
    "नमस्ते",
    "สวัสดี",
    "مرحبا",
    "你好，世界",
    "▁",
    "▁▁",
    "Ġ",
    "Ċ",
    "<0x0A>",
    "<0xE2>",
    "aaaaaaaa",
    "        ",
    "--------",
    "========",
    "hahahaha",
    "abcabcabc",
    "\ufeff",
    "\u200d",
    "\ufffd",
    "a" + "\u0301" * 40,
    "e" + "\u0323\u0301" * 25,
    "\u034f",
    "q\u0301\u0898\u0323",
    "\u1171e\u0301",
    "ᄀ\u1161\u11a8",
    "\U00011935\U00011930",
    "कि\u093c",
    "\u0958",
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
    """`count` strings of 1 to a few hundred characters, of mixed kinds."""
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
            before, token = rng.choice(["", " ", "  \n", "x"]), rng.choice(added)
            return before + token + rng.choice(["", " ", "\t ", "y"])
        if kind == 4:
            return "".join(
                tok.decode([rng.randrange(size)], skip_special_tokens=False)
                for _ in range(rng.randint(1, 6)))
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
    """The reference for byte-level GGUF files of the smollm family."""
    assert meta["tokenizer.ggml.pre"] == "smollm", "the only reference is for SmolLM2's GGUF"
    tokens = meta["tokenizer.ggml.tokens"]
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    tok = Tokenizer(
        models.BPE(vocab, merges, unk_token=tokens[meta["tokenizer.ggml.unknown_token_id"]]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)
    ])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([
        AddedToken(t, special=True, normalized=False)
        for t, k in zip(tokens, meta["tokenizer.ggml.token_type"]) if k == 3
    ])
    return tok


def run_go(work, job, texts, verbose=False):
    """Encodes texts with the Go package; returns one answer per text, id list and chat."""
    json.dump(job, open(os.path.join(work, "job.json"), "w"))
    json.dump(texts, open(os.path.join(work, "texts.json"), "w"))
    subprocess.run(
        ["go", "test", "-count=1", "-run", "^TestParity_HuggingFace$", "./text/tokenizer"],
        cwd=ROOT,
        check=True,
        env=dict(os.environ, TEXT_PARITY=work),
        stdout=None if verbose else subprocess.DEVNULL,
    )
    return [json.loads(line) for line in open(os.path.join(work, "go.jsonl"))]


def check(path, count, seed, verbose):
    """Compares one tokenizer; prints a line and returns whether everything is equal."""
    rng = random.Random(seed)
    work = tempfile.mkdtemp()
    job = {"Open": os.path.abspath(path), "Save": os.path.join(work, "saved"), "Chat": CHATS}
    file = path
    for name in ("tokenizer.model", "tokenizer.json"):
        if os.path.exists(os.path.join(path, name)):
            file = os.path.join(path, name)
    if path.endswith(".gguf"):
        meta = gguf_meta(path)
        job["GGUF"] = os.path.join(work, "meta.json")
        json.dump(meta, open(job["GGUF"], "w"))
        tok = from_gguf(meta)
    elif file.endswith(".json"):
        tok = Tokenizer.from_file(file)
    else:
        tok = from_sentencepiece(file)
    added = [t.content for t in tok.get_added_tokens_decoder().values()]
    texts = strings(rng, tok, added, count)
    size = tok.get_vocab_size()
    job["IDs"] = [[rng.randrange(size) for _ in range(rng.randint(1, 20))]
                  for _ in range(count // 4)]
    got = run_go(work, job, texts, verbose)

    line, bad = [], 0

    def tally(kind, cases, shown=4):
        nonlocal bad
        total = wrong = 0
        for want, have, what in cases:
            total += 1
            if want != have:
                wrong += 1
                if wrong <= shown:
                    print("   ", kind, *[repr(w)[:400] for w in (what, want, have)])
        bad += wrong
        line.append(f"{kind} {total - wrong}/{total}")

    def both(s):
        return [tok.encode(s, add_special_tokens=False).ids, tok.encode(s).ids]

    def decoded(ids):
        return [tok.decode(ids, skip_special_tokens=False), tok.decode(ids)]

    tally("ids", ((both(s), [g["plain"], g["special"]], s) for s, g in zip(texts, got)))
    tally("decoded",
          ((decoded(g["special"]), [g["text"], g["skipped"]], s) for s, g in zip(texts, got)))
    tally("random ids decoded", ((decoded(ids), [g["text"], g["skipped"]], ids)
                                 for ids, g in zip(job["IDs"], got[count:])))
    if file.endswith(".json"):
        folder = os.path.dirname(file)
        tally("files copied", ((open(os.path.join(
            folder, name), "rb").read(), open(os.path.join(job["Save"], name), "rb").read(), name)
                               for name in ("tokenizer.json", "tokenizer_config.json")
                               if os.path.exists(os.path.join(folder, name))))
    else:
        from transformers import AutoTokenizer

        hf = AutoTokenizer.from_pretrained(job["Save"])
        tally("AutoTokenizer on the saved folder", (
            ([hf.encode(s, add_special_tokens=False), hf.encode(s)], [g["plain"], g["special"]], s)
            for s, g in zip(texts[:4000], got)
        ))
    chats = iter(got[count + len(job["IDs"]):])
    template = None
    if os.path.exists(os.path.join(job["Save"], "tokenizer_config.json")):
        from transformers import AutoTokenizer

        hf = AutoTokenizer.from_pretrained(job["Save"])
        template = hf.chat_template
    if template:
        def rendered():
            for c in CHATS:
                for generate in (False, True):
                    have = next(chats)
                    try:
                        want = hf.apply_chat_template(c, tokenize=False,
                                                      add_generation_prompt=generate)
                    except Exception as e:
                        want, have = "error", have[:5] if have.startswith(
                            "error") else f"{have} instead of {e}"
                    yield want, have, c
        tally("chats", rendered())
    if file.endswith(".json") or file != path or path.endswith((".v1", ".model")):
        meta = as_gguf(file, tok)
        if meta:
            job = {"GGUF": os.path.join(work, "meta.json")}
            json.dump(meta, open(job["GGUF"], "w"))
            part = texts[:5000]
            again = run_go(work, job, part)
            tally("as GGUF", ((tok.encode(s, add_special_tokens=False).ids, g["plain"], s)
                              for s, g in zip(part, again)))
    if file.endswith((".model", ".v1")):
        from sentencepiece import SentencePieceProcessor

        sp = SentencePieceProcessor(model_file=file)
        part = [(s, g) for s, g in zip(texts, got)
                if s and "\0" not in s and not any(a in s for a in added)]
        tally("sentencepiece itself", ((sp.encode(s), g["plain"], s) for s, g in part))
    print(f"{path}: " + ", ".join(line), flush=True)
    return bad == 0


def as_gguf(file, tok):
    """The metadata that llama.cpp's converter writes for a tokenizer and conquer reads."""
    tokens = [tok.id_to_token(i) for i in range(tok.get_vocab_size())]
    if None in tokens:
        return None
    added = tok.get_added_tokens_decoder()
    types = [(3 if added[i].special else 4) if i in added else 1 for i in range(len(tokens))]
    meta = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_bos_token": False
    }
    if not file.endswith(".json"):
        from sentencepiece import sentencepiece_model_pb2 as pb

        proto = pb.ModelProto()
        proto.ParseFromString(open(file, "rb").read())
        meta["tokenizer.ggml.model"] = "llama"
        meta["tokenizer.ggml.token_type"] = [p.type for p in proto.pieces]
        meta["tokenizer.ggml.scores"] = [p.score + 0.5 - 0.5 for p in proto.pieces]
        return meta
    spec = json.load(open(file))
    pre = json.dumps(spec["pre_tokenizer"])
    names = {"{1,3}| ?[^": "llama-bpe", "N}| ?[^": "qwen2", '"Digits"': "smollm"}
    if '"ByteLevel"' not in pre or "一" in pre or any(
            t.lstrip or t.rstrip or t.single_word or t.normalized for t in added.values()):
        return None
    meta["tokenizer.ggml.model"] = "gpt2"
    meta["tokenizer.ggml.pre"] = next((name for part, name in names.items() if part in pre),
                                      "gpt-2")
    meta["tokenizer.ggml.merges"] = [
        m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]
    ]
    return meta


def from_sentencepiece(path):
    """transformers' LlamaConverter in its legacy form, without its classes."""
    from sentencepiece import sentencepiece_model_pb2 as pb
    from tokenizers import normalizers, processors
    from transformers.convert_slow_tokenizer import generate_merges

    proto = pb.ModelProto()
    proto.ParseFromString(open(path, "rb").read())
    vocab = {p.piece: i for i, p in enumerate(proto.pieces)}
    scores = {p.piece: p.score for p in proto.pieces}
    skip = [p.piece for p in proto.pieces if p.type not in (1, 4)]
    tok = Tokenizer(
        models.BPE(vocab, generate_merges(vocab, scores, skip), unk_token="<unk>", fuse_unk=True,
                   byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(content=" ", left=1)
    ])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tok.add_tokens([
        AddedToken(p.piece, special=p.type != 4, normalized=False) for p in proto.pieces
        if p.type in (2, 3, 4)
    ])
    return tok


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    sys.exit(0 if all([check(f, args.count, args.seed, args.verbose) for f in args.files]) else 1)
