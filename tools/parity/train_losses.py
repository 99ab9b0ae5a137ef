#!/usr/bin/env python3
"""Compares conquer's training losses with a plain transformers and AdamW loop, in float32 on the
same data.

    python tools/parity/train_losses.py [--conquer BINARY] [--model smollm2-135m] [--seeds 1]

Every step sees the whole of a small data set, so that its order does not matter. The loss and the
gradient's norm before clipping are compared step by step. Random small models are trained in one
pass per step, in accumulated passes, packed, and with blocks recomputed; then the real one. The
first objective of a Bamba with a z_loss_coefficient is compared, too. Needs torch and transformers.
"""

import json

import torch
from torch.nn.functional import cross_entropy
from transformers import (AutoModelForCausalLM, AutoTokenizer, BambaConfig, BambaForCausalLM,
                          LlamaConfig, LlamaForCausalLM)

from harness import ROOT, check, conquer, options, run
import bamba

STEPS = 20
TEXTS = [
    "The lamp is lit before the fog comes in.",
    "A keeper counts the ships, then counts them again when the wind turns.", "Salt.",
    "def keep(light):\n    return light and not fog\n",
    "Ünïcödé 世界 🙂 in the log of the ninth watch",
    "Storms are named after the people who slept through them; calm seas have no names at all.",
    "1, 2, 3, 5, 8, 13: so the steps of the tower go.", "Oil, wick, glass, match."
]


def optimizers(model, rate, muon):
    """PyTorch's optimizers: AdamW for all weights, or Muon for the matrices of the layers."""
    kinds = {"muon": [], "decayed": [], "plain": []}
    for name, p in model.named_parameters():
        matrix = p.ndim == 2 and ".layers." in name
        kinds["muon" if muon and matrix else "decayed" if p.ndim > 1 else "plain"].append(p)
    yield torch.optim.AdamW([{
        "params": kinds["decayed"],
        "weight_decay": 0.01
    }, {
        "params": kinds["plain"],
        "weight_decay": 0.0
    }], lr=rate, betas=(0.9, 0.999), eps=1e-8)
    if muon:
        yield torch.optim.Muon(kinds["muon"], lr=rate, weight_decay=0.01,
                               adjust_lr_fn="match_rms_adamw")


def reference(model, tokenizer, texts, rate, muon):
    """Losses and gradient norms of STEPS steps over all texts, as transformers and PyTorch compute
    them."""
    model.train()
    both = list(optimizers(model, rate, muon))
    rows = [tokenizer(t).input_ids + [tokenizer.eos_token_id] for t in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    labels = torch.where(mask == 1, ids, -100)
    results = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        results.append((loss.item(), norm.item()))
    return results


def compare(work, name, folder, texts, rate, *flags, bound=1e-4):
    data, out = work / "data.jsonl", work / f"out-{name.replace(' ', '-')}"
    data.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    conquer("train", "--model_path", folder, "--data_path", data, "--output_path", out, "--steps",
            STEPS, "--learning_rate", rate, "--schedule", "constant", "--warmup_steps", 0,
            "--sequence_length", 128, "--dtype", "float32", "--device", "cpu", *flags)
    got = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    got = [(m["loss"], m["gradient_norm"]) for m in got if "loss" in m]
    want = reference(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
                     AutoTokenizer.from_pretrained(folder), texts, rate, "muon" in flags)
    worst = max(abs(g[0] - w[0]) for g, w in zip(got, want, strict=True))
    norms = max(abs(g[1] - w[1]) / w[1] for g, w in zip(got, want))
    check(
        f"{name}: {STEPS} steps", worst < bound,
        f"loss {want[0][0]:.4f} to {want[-1][0]:.4f},"
        f" losses within {worst:.1e}, norms within {norms:.1e}"
    )


def z_loss(folder, tokenizer):
    """Compares the objective of Bamba's z-loss. Its mean is over the labels here, and over all
    positions in transformers, which differ by the last position of a text."""
    coefficient = 0.01
    model = BambaForCausalLM(
        BambaConfig(vocab_size=max(tokenizer.get_vocab().values()) + 1, hidden_size=64,
                    intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16,
                    attn_layer_indices=[1], z_loss_coefficient=coefficient,
                    eos_token_id=tokenizer.eos_token_id)).float()
    with torch.no_grad():
        bamba.randomize(model)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    data, out, text = folder / "data.jsonl", folder / "out", TEXTS[5]
    data.write_text(json.dumps({"text": text}) + "\n")
    conquer("train", "--model_path", folder / "model", "--data_path", data, "--output_path", out,
            "--steps", 1, "--dtype", "float32", "--device", "cpu")
    step = next(m for m in map(json.loads, (out / "metrics.jsonl").open()) if "objective" in m)
    ids = torch.tensor([tokenizer(text).input_ids + [tokenizer.eos_token_id]])
    with torch.no_grad():
        logits, theirs = model(ids).logits[0, :-1], model(ids, labels=ids).loss.item()
    plain = cross_entropy(logits, ids[0, 1:]).item()
    want = plain + coefficient * logits.logsumexp(-1).pow(2).mean().item()
    check("Bamba's z-loss", abs(step["objective"] - want) < 1e-4 and
          abs(step["loss"] - plain) < 1e-4 and abs(want - theirs) < 1e-2 * (theirs - plain),
          f"objective {step['objective']:.5f}, over the labels {want:.5f}, transformers "
          f"{theirs:.5f}, plain {plain:.5f}")


def small(folder, kind, seed):
    torch.manual_seed(3 + seed)
    if kind == "bamba":
        z_loss(folder, AutoTokenizer.from_pretrained(ROOT / "text/tokenizer/testdata/smollm"))
        return
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "text/tokenizer/testdata/smollm")
    model = folder / "model"
    LlamaForCausalLM(
        LlamaConfig(vocab_size=max(tokenizer.get_vocab().values()) + 1, hidden_size=64,
                    intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=128,
                    tie_word_embeddings=kind == "tied", initializer_range=0.05,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    compare(folder, f"{kind}, one pass per step", model, TEXTS, 1e-3, "--batch_size", 8)
    compare(folder, f"{kind}, four accumulated passes", model, TEXTS, 1e-3, "--batch_size", 2,
            "--accumulate", 4)
    compare(folder, f"{kind}, packed and recomputed", model, TEXTS, 1e-3, "--batch_size", 8,
            "--pack", "--recompute", "block")
    # Its updates have the 8 bits of bfloat16.
    compare(folder, f"{kind}, Muon", model, TEXTS, 1e-3, "--batch_size", 8, "--optimizer", "muon",
            bound=1e-3)


def real(work):
    conquer("export", "--model_path", options.model, "--output_path", work / "real", "--format",
            "hf", "--dtype", "float32")
    compare(work, "the real model", work / "real", TEXTS[:4], 1e-5, "--batch_size", 2,
            "--accumulate", 2)


if __name__ == "__main__":
    run(__doc__, ["tied", "untied", "bamba"], small, real)
