#!/usr/bin/env python3
"""Hold conquer's training losses against a plain transformers and AdamW loop, in float32 on the same data.

    python tools/parity/train_losses.py [--conquer build/bin/conquer] [--model smollm2-135m] [--steps 20] [--small]

Every step sees the whole of a small data set, so its order is of no matter; what is compared, step by step, are the loss and
the gradient's norm before clipping. Random small models are tuned in one pass a step, in accumulated passes, packed, and
with blocks computed again; then, unless --small, the real one. Needs torch and transformers.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = ["The lamp is lit before the fog comes in.", "A keeper counts the ships, then counts them again when the wind turns.",
         "Salt.", "def keep(light):\n    return light and not fog\n", "Ünïcödé 世界 🙂 in the log of the ninth watch",
         "Storms are named after the people who slept through them; calm seas have no names at all.",
         "1, 2, 3, 5, 8, 13: so the steps of the tower go.", "Oil, wick, glass, match."]
failures = []


def conquer(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"conquer {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr}")


def reference(model, tokenizer, texts, steps, rate):
    """Losses and gradient norms of steps over all texts, as transformers and PyTorch compute them."""
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=rate,
                                  betas=(0.9, 0.999), eps=1e-8)
    rows = [tokenizer(t).input_ids + [tokenizer.eos_token_id] for t in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    labels = torch.where(mask == 1, ids, -100)
    results = []
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        results.append((loss.item(), norm.item()))
    return results


def compare(args, work, name, folder, texts, rate, *flags):
    data, out = work / "data.jsonl", work / f"out-{name.replace(' ', '-')}"
    data.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    conquer(args.conquer, "train", "--model_path", folder, "--data_path", data, "--output_path", out, "--steps", args.steps,
            "--learning_rate", rate, "--schedule", "constant", "--warmup_steps", 0, "--sequence_length", 64, "--dtype", "float32",
            "--device", "cpu", *flags)
    got = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    got = [(m["loss"], m["gradient_norm"]) for m in got if "loss" in m]
    want = reference(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder),
                     texts, args.steps, rate)
    worst = max(abs(g[0] - w[0]) for g, w in zip(got, want, strict=True))
    norms = max(abs(g[1] - w[1]) / w[1] for g, w in zip(got, want))
    ok = worst < 1e-4
    print(f"{'ok    ' if ok else 'FAIL  '}{name}: {args.steps} steps, loss {want[0][0]:.4f} to {want[-1][0]:.4f}, "
          f"losses within {worst:.1e}, norms within {norms:.1e}", flush=True)
    if not ok:
        failures.append(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conquer", default=str(ROOT / "build/bin/conquer"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="leave the real model out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        real = work / "real"
        conquer(args.conquer, "export", "--model_path", args.model, "--output_path", real, "--format", "hf", "--dtype", "float32")
        tokenizer = AutoTokenizer.from_pretrained(real)
        for tied in (True, False):
            torch.manual_seed(3)
            folder = work / f"small-{tied}"
            LlamaForCausalLM(LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=tied, initializer_range=0.05,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            kind = "tied" if tied else "untied"
            compare(args, work, f"{kind}, one pass a step", folder, TEXTS, 1e-3, "--batch_size", 8)
            compare(args, work, f"{kind}, four accumulated passes", folder, TEXTS, 1e-3, "--batch_size", 2, "--accumulate", 4)
            compare(args, work, f"{kind}, packed and recomputed", folder, TEXTS, 1e-3, "--batch_size", 8, "--pack", "--recompute", "block")
        if not args.small:
            compare(args, work, "the real model", real, TEXTS[:4], 1e-5, "--batch_size", 2, "--accumulate", 2)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
