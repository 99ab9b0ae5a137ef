#!/usr/bin/env python3
"""Compares what `conquer export` writes with torch, transformers, the gguf package and llama.cpp.

    python tools/parity/export_formats.py [--conquer BINARY] [--model smollm2-135m] [--seeds 1]

Random small models of every kind in tools/fixtures/llama.py are exported to Meta's layout, in one
and in two parts, and to GGUF. torch.load reads the parts (weights_only, mapped or not), which hold
Hugging Face's numbers in Meta's order. The gguf package reads the file, and its quantizers give the
same bits. The way back to a Hugging Face folder gives transformers the same weights, and so does
pytorch_model.bin as torch.save writes it.

The real model, exported as F32, F16, Q8_0, Q4_0 and Q4_K_M, loads in llama.cpp, which gives the
tokenizer's ids and continues prompts with the text that conquer gives for the same file. For the
quantized files conquer's tokens must be llama.cpp's best ones within a small margin, since
llama.cpp rounds activations too. llama.cpp's own quantizer must choose the same kinds, and write
the same bytes as Q8_0. Needs torch, transformers, gguf, safetensors and llama-cpp-python.
"""

import json
import sys

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import check, conquer, options, run
import llama as fixtures

PROMPTS = [
    "Once upon a time", "The three primary colours are", "Water boils at",
    "The capital of France is"
]
META = {
    "q_proj": "attention.wq",
    "k_proj": "attention.wk",
    "v_proj": "attention.wv",
    "o_proj": "attention.wo",
    "gate_proj": "feed_forward.w1",
    "up_proj": "feed_forward.w3",
    "down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "tok_embeddings",
    "norm": "norm",
    "lm_head": "output"
}
COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight", "tok_embeddings.weight")


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k])
                                        for k in a)


def interleaved(values, heads):
    return values.reshape(heads, 2, values.shape[0] // heads // 2,
                          *values.shape[1:]).transpose(1, 2).reshape(values.shape)


def meta_names(weights, config):
    """What Meta's file should hold for a Hugging Face state dict."""
    out = {}
    for name, values in weights.items():
        parts = name.split(".")
        prefix = f"layers.{parts[2]}." if "layers" in parts else ""
        if parts[-2] in ("q_proj", "k_proj"):
            values = interleaved(
                values,
                config["num_attention_heads" if parts[-2] == "q_proj" else "num_key_value_heads"])
        out[f"{prefix}{META[parts[-2]]}.{parts[-1]}"] = values
    if config["tie_word_embeddings"]:
        out["output.weight"] = out["tok_embeddings.weight"]
    return out


def small(folder, kind, seed):
    name = f"{kind} {seed}"
    fixtures.write(folder, kind, seed, False)
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    want = meta_names(weights, config)
    for parts in (1, 2):
        out = folder / f"meta{parts}"
        conquer("export", "--model_path", folder, "--output_path", out, "--format", "meta",
                "--shards", parts)
        loaded = [
            torch.load(f, weights_only=True, mmap=True)
            for f in sorted(out.glob("consolidated.*.pth"))
        ]
        check(
            f"{name}: torch.load of {parts}, mapped or not",
            len(loaded) == parts and all(
                same(a, torch.load(out / f"consolidated.{i:02d}.pth", weights_only=True))
                for i, a in enumerate(loaded)))
        joined = {}
        for key, value in loaded[0].items():
            whole = value.shape == want[key].shape
            joined[key] = value if whole else torch.cat([p[key] for p in loaded],
                                                        1 if key.endswith(COLUMNS) else 0)
        check(f"{name}: {parts} of Meta's files have the weights in Meta's order",
              same(joined, want))
    conquer("export", "--model_path", folder / "meta2", "--output_path", folder / "m.gguf",
            "--format", "gguf")
    reader = gguf.GGUFReader(folder / "m.gguf")
    check(f"{name}: the gguf package reads the file",
          len(reader.tensors) == len(weights) + (kind == "llama3"))
    conquer("export", "--model_path", folder / "m.gguf", "--output_path", folder / "back")
    check(f"{name}: hf, meta, gguf, hf",
          same(load_file(folder / "back" / "model.safetensors"), weights))
    torch.save(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
               folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    conquer("export", "--model_path", folder, "--output_path", folder / "from-bin", "--format",
            "meta")
    check(f"{name}: from pytorch_model.bin",
          same(torch.load(folder / "from-bin" / "consolidated.00.pth", weights_only=True), want))
    path = folder / "q8_0.gguf"
    conquer("export", "--model_path", folder / "back", "--output_path", path, "--format", "gguf",
            "--dtype", "q8_0")
    ok = True
    plain = {t.name: t for t in reader.tensors}
    for t in gguf.GGUFReader(path).tensors:
        if t.tensor_type == gguf.GGMLQuantizationType.Q8_0:
            ok = ok and np.array_equal(gguf.quantize(plain[t.name].data, t.tensor_type), t.data)
    check(f"{name}: q8_0 has the gguf package's bits", ok)
    model, info = AutoModelForCausalLM.from_pretrained(folder / "back", dtype="auto",
                                                       output_loading_info=True)
    expected = load_file(folder / "expected.safetensors")
    worst = (model(expected["ids"][None]).logits[0] - expected["logits"]).abs().max().item()
    check(f"{name}: transformers computes the same after the round trip", worst < 1e-3
          and not info["missing_keys"] and not info["unexpected_keys"], f"{worst:.1e}")


def quantized_by_llama_cpp(source, path, kind):
    import llama_cpp
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind.upper())
    params.nthread = 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params):
        sys.exit("llama.cpp did not quantize")
    return gguf.GGUFReader(path).tensors


def real(folder):
    try:
        from llama_cpp import Llama
    except ImportError:
        sys.exit("pip install llama-cpp-python, or give --model ''")
    conquer("export", "--model_path", options.model, "--output_path", folder / "hf", "--dtype",
            "float32")
    tok = AutoTokenizer.from_pretrained(folder / "hf")
    for kind in ("float32", "float16", "q8_0", "q4_0", "q4_k_m"):
        path = folder / f"{kind}.gguf"
        conquer("export", "--model_path", folder / "hf", "--output_path", path, "--format", "gguf",
                "--dtype", kind)
        llm = Llama(str(path), n_ctx=512, verbose=False, n_threads=2, logits_all=kind
                    in ("q8_0", "q4_0", "q4_k_m"))
        check(f"{kind}: llama.cpp finds the chat template",
              llm.metadata.get("tokenizer.chat_template") == tok.chat_template)
        exact = kind in ("float32", "float16")
        for prompt in PROMPTS:
            ids = tok(prompt)["input_ids"]
            check(f"{kind}: llama.cpp's ids of {prompt!r}",
                  llm.tokenize(prompt.encode(), add_bos=True, special=True) == ids)
            got = conquer("generate", "--model_path", path, "--dtype", "float32", "--device", "cpu",
                          "--prompt", prompt, "--max_new_tokens", 32, "--json")[0]
            if exact:
                want = llm.create_completion(ids, max_tokens=32, temperature=0,
                                             repeat_penalty=1.0)["choices"][0]["text"]
                check(f"{kind}: greedy text after {prompt!r}", got["text"] == want,
                      "" if got["text"] == want else f"{got['text']!r} and {want!r}")
                continue
            # llama.cpp rounds activations to 8 bits before it multiplies them by quantized weights,
            # so near ties go either way: conquer's tokens must be close to llama.cpp's best.
            llm.reset()
            llm.eval(ids + got["token_ids"])
            logits = llm.scores[len(ids) - 1 : len(ids) + len(got["token_ids"]) - 1]
            behind = (logits.max(-1) - logits[np.arange(len(logits)), got["token_ids"]]).max()
            check(f"{kind}: greedy tokens after {prompt!r} are llama.cpp's except near ties", behind
                  < 1, f"at most {behind:.2f} behind")
        del llm
    for kind in ("q8_0", "q4_0", "q4_k_m"):
        theirs = quantized_by_llama_cpp(folder / "float32.gguf", folder / f"theirs-{kind}.gguf",
                                        kind)
        ours = {t.name: t for t in gguf.GGUFReader(folder / f"{kind}.gguf").tensors}
        check(f"{kind}: llama.cpp's quantizer chooses the same kinds",
              len(theirs) == len(ours) and all(t.tensor_type == ours[t.name].tensor_type
                                               for t in theirs))
        if kind == "q8_0":
            check(f"{kind}: llama.cpp's quantizer writes the same bytes",
                  all(np.array_equal(t.data, ours[t.name].data) for t in theirs))
    conquer("export", "--model_path", folder / "float32.gguf", "--output_path", folder / "again")
    check(
        "the real model comes back from GGUF",
        same(load_file(folder / "again" / "model.safetensors"),
             load_file(folder / "hf" / "model.safetensors")))


if __name__ == "__main__":
    run(__doc__, fixtures.KINDS, small, real)
