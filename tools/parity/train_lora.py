#!/usr/bin/env python3
"""Compares the adapters that conquer trains with PEFT.

    python tools/parity/train_lora.py [--conquer BINARY] [--model smollm2-135m] [--seeds 1]

A LoRA is trained and written as an adapter, and again with --merge. PEFT must load every tensor of
the adapter, and the merged folder must give the logits of the adapter as PEFT applies it, for
random small models and for the real one. Then conquer and PEFT train an adapter further that PEFT
made: losses and weights must agree. Needs torch, transformers and peft.
"""

import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from harness import ROOT, check, conquer, options, run
from train_losses import STEPS, TEXTS, reference


def compare(work, name, folder, targets):
    def train(out, *flags):
        conquer("train", "--model_path", folder, "--data_path",
                ROOT / "examples/lighthouse/heldout.jsonl", "--output_path", out, "--steps", 3,
                "--batch_size", 2, "--learning_rate", 5e-3, "--lora_rank", 6, "--lora_alpha", 9,
                "--lora_targets", targets, "--dtype", "float32", "--device", "cpu", *flags)
        return out

    adapter, merged = train(work / f"{name}-adapter"), train(work / f"{name}-merged", "--merge")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, base.config.vocab_size, (2, 40),
                        generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = base(ids).logits
        tuned = PeftModel.from_pretrained(base, adapter).eval()
        want = tuned(ids).logits
        got = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
    weights = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    loaded = {k.replace(".default.", "."): v for k, v in tuned.state_dict().items() if "lora_" in k}
    check(
        f"{name}: PEFT loads every tensor",
        weights.keys() == loaded.keys()
        and all(torch.equal(weights[k], loaded[k]) for k in weights),
        f"{len(weights)} tensors, targets {config['target_modules']}"
    )
    scale = want.abs().max().item()
    change, worst = (want - before).abs().max().item() / scale, (want -
                                                                 got).abs().max().item() / scale
    check(f"{name}: merged logits are the adapter's", worst < 1e-5 and change > 1e-2,
          f"worst {worst:.1e}, the adapter's effect {change:.1e}")


def further(work, name, folder, **settings):
    """Trains an adapter of PEFT further, here and in PEFT, on the same texts in each step."""
    torch.manual_seed(5)
    start, out, data = work / f"{name}-start", work / f"{name}-further", work / "texts.jsonl"
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", init_lora_weights=False, **settings))
    tuned.save_pretrained(start)
    data.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    conquer("train", "--model_path", folder, "--adapter_path", start, "--data_path", data,
            "--output_path", out, "--steps", STEPS, "--learning_rate", 1e-3, "--schedule",
            "constant", "--warmup_steps", 0, "--batch_size", len(TEXTS), "--dtype", "float32",
            "--device", "cpu")
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    got = [m["loss"] for m in metrics if "gradient_norm" in m]
    want = reference(tuned, AutoTokenizer.from_pretrained(folder), TEXTS, 1e-3, False)
    losses = max(abs(g - w[0]) for g, w in zip(got, want, strict=True))
    ours, theirs = load_file(out / "adapter_model.safetensors"), get_peft_model_state_dict(tuned)
    worst = max((ours[k] - theirs[k]).abs().max().item() for k in theirs)
    first = load_file(start / "adapter_model.safetensors")
    moved = max((first[k] - theirs[k]).abs().max().item() for k in theirs)
    check(f"{name}: {STEPS} steps further are PEFT's",
          ours.keys() == theirs.keys() and losses < 1e-4 and worst < 0.02 * moved,
          f"loss {want[0][0]:.4f} to {want[-1][0]:.4f} within {losses:.1e}, weights that moved by "
          f"{moved:.1e} within {worst:.1e}")


def small(folder, kind, seed):
    torch.manual_seed(3 + seed)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "text/tokenizer/testdata/smollm")
    LlamaForCausalLM(
        LlamaConfig(vocab_size=max(tokenizer.get_vocab().values()) + 1, hidden_size=64,
                    intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=1024,
                    initializer_range=0.05)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    compare(folder, f"small, {kind}", folder / "model", kind)
    if kind == "all-linear":
        targets = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
        further(folder, "plain", folder / "model", target_modules="all-linear")
        further(folder, "rslora-and-patterns", folder / "model", use_rslora=True,
                rank_pattern={"q_proj": 2}, alpha_pattern={r"layers\.1\..*": 9}, **targets)
        further(folder, "dora", folder / "model", use_dora=True, **targets)
        further(folder, "tokens", folder / "model", trainable_token_indices=[36, 80, 256],
                **targets)
        further(folder, "head", folder / "model", modules_to_save=["lm_head"], **targets)


def real(work):
    conquer("export", "--model_path", options.model, "--output_path", work / "real", "--format",
            "hf", "--dtype", "float32")
    compare(work, "real", work / "real", "all-linear")


if __name__ == "__main__":
    run(__doc__, ["all-linear", "q_proj,v_proj"], small, real)
