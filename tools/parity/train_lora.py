#!/usr/bin/env python3
"""Hold the adapters that conquer trains against PEFT.

    python tools/parity/train_lora.py [--conquer build/bin/conquer] [--model smollm2-135m] [--small]

A LoRA is trained and written as an adapter, and once more with --merge. PEFT must load the adapter, every tensor of it,
and the merged folder must give the logits of the adapter as PEFT applies it: for a random small model, and unless --small
for the real one. Needs torch, transformers and peft.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
failures = []


def check(what, ok, detail=""):
    print(("ok    " if ok else "FAIL  ") + what + (f"  {detail}" if detail else ""), flush=True)
    if not ok:
        failures.append(what)


def conquer(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"conquer {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr}")


def compare(args, work, name, folder, targets):
    def train(out, *flags):
        conquer(args.conquer, "train", "--model_path", folder, "--data_path", ROOT / "examples/lighthouse/heldout.jsonl",
                "--output_path", out, "--steps", 3, "--batch_size", 2, "--learning_rate", 5e-3, "--lora_rank", 6, "--lora_alpha", 9,
                "--lora_targets", targets, "--dtype", "float32", "--device", "cpu", *flags)
        return out

    adapter, merged = train(work / f"{name}-adapter"), train(work / f"{name}-merged", "--merge")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, base.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = base(ids).logits
        tuned = PeftModel.from_pretrained(base, adapter).eval()
        want = tuned(ids).logits
        got = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
    weights = load_file(adapter / "adapter_model.safetensors")
    loaded = {k.replace(".default.", "."): v for k, v in tuned.state_dict().items() if "lora_" in k}
    check(f"{name}: PEFT took every tensor", weights.keys() == loaded.keys() and all(torch.equal(weights[k], loaded[k]) for k in weights),
          f"{len(weights)} tensors, targets {json.loads((adapter / 'adapter_config.json').read_text())['target_modules']}")
    scale = want.abs().max().item()
    change, worst = (want - before).abs().max().item() / scale, (want - got).abs().max().item() / scale
    check(f"{name}: merged logits are the adapter's", worst < 1e-5 and change > 1e-2, f"worst {worst:.1e}, the adapter's own effect {change:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conquer", default=str(ROOT / "build/bin/conquer"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--small", action="store_true", help="leave the real model out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        real = work / "real"
        conquer(args.conquer, "export", "--model_path", args.model, "--output_path", real, "--format", "hf", "--dtype", "float32")
        tokenizer = AutoTokenizer.from_pretrained(real)
        torch.manual_seed(3)
        small = work / "small"
        LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.05)).save_pretrained(small)
        tokenizer.save_pretrained(small)
        compare(args, work, "small", small, "all-linear")
        compare(args, work, "small-qv", small, "q_proj,v_proj")
        if not args.small:
            compare(args, work, "real", real, "all-linear")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
