#!/usr/bin/env python3
"""Compares how config.json and the names of tensors are read with transformers.

    python tools/parity/config_keys.py [--cases 40] [--seed 0] [FAMILY ...]

Small random models of every family are saved by transformers. Keys of their config.json are then
dropped, set to null or changed at random, and their tensors get the names that other programs
leave. transformers loads each folder and computes logits. The test of package families that reads
CONFIG_PARITY must give the same logits, or refuse the folder by the name of a changed key. Where
transformers would make up missing weights, the folder must be refused. Needs the Go environment of
`make env`, torch, transformers and safetensors.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import (AutoConfig, AutoModel, AutoModelForCausalLM, BambaConfig, GraniteConfig,
                          LlamaConfig, Mamba2Config, MistralConfig, MixtralConfig, Qwen2Config,
                          Qwen3Config, SmolLM3Config)
from transformers.utils import logging

from harness import ROOT, check, failures
import bamba

DROP = object()
INFINITY = float("inf")
LENGTH = 24

SIZES = dict(vocab_size=96, hidden_size=64, intermediate_size=48, num_hidden_layers=3,
             max_position_embeddings=128, bos_token_id=None, eos_token_id=None, pad_token_id=None)
MAMBA = dict(mamba_n_heads=4, mamba_d_head="auto", mamba_d_state=16, mamba_n_groups=1,
             mamba_chunk_size=16, attn_layer_indices=[1])
# The numbers of heads are those that the classes have by default, where they are small enough.
FAMILIES = {
    "llama": (LlamaConfig, dict(SIZES, num_attention_heads=4, num_key_value_heads=4)),
    "mistral": (MistralConfig, dict(SIZES, num_attention_heads=8, num_key_value_heads=8,
                                    sliding_window=6)),
    "mixtral": (MixtralConfig, dict(SIZES, num_attention_heads=32, num_key_value_heads=8,
                                    num_local_experts=8, num_experts_per_tok=2)),
    "qwen2": (Qwen2Config, dict(SIZES, num_attention_heads=32, num_key_value_heads=32)),
    "qwen3": (Qwen3Config, dict(SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=128)),
    "granite": (GraniteConfig, dict(SIZES, num_attention_heads=4, num_key_value_heads=4,
                                    attention_multiplier=0.3, logits_scaling=2.0)),
    "smollm3": (SmolLM3Config, dict(SIZES, num_attention_heads=4, num_key_value_heads=4)),
    "bamba": (BambaConfig, dict(SIZES, num_attention_heads=8, num_key_value_heads=8, **MAMBA)),
    "mamba2": (Mamba2Config, dict(vocab_size=96, hidden_size=64, num_hidden_layers=2, num_heads=4,
                                  head_dim=32, state_size=16, n_groups=2, chunk_size=16,
                                  bos_token_id=None, eos_token_id=None, pad_token_id=None)),
}
LINEAR = {"type": "linear", "factor": 3.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 16}  # of heads of 16


def longrope(**more):
    return dict(LONG, short_factor=[1.0 + i / 8 for i in range(8)],
                long_factor=[1.5 + i for i in range(8)], **more)


ROPE = {
    "rope_theta": [777.0, 500],
    "rope_parameters": [DROP, None, {}, {"rope_type": "default", "rope_theta": 500.0},
                        {"rope_theta": 321.0}, {"rope_type": "linear", "factor": 2.0},
                        dict(LINEAR, rope_theta=300.0), dict(LLAMA3, rope_theta=400.0),
                        dict(LLAMA3, rope_theta=400.0, original_max_position_embeddings=16),
                        {"rope_type": "default", "rope_theta": 90.0, "partial_rotary_factor": 0.5},
                        dict(LINEAR, partial_rotary_factor=0.5),
                        {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4},
                        dict(YARN, rope_theta=1e4, truncate=False),
                        dict(YARN, rope_theta=500.0, beta_fast=4, beta_slow=0.5),
                        dict(YARN, rope_theta=1e4, mscale=0.7, mscale_all_dim=0.4),
                        dict(YARN, rope_theta=1e4, attention_factor=1.3, truncate=None),
                        dict(YARN, rope_theta=1e4, factor=None),
                        longrope(rope_theta=1e4), longrope(rope_theta=300.0, factor=4.0),
                        longrope(rope_theta=1e4, attention_factor=1.2),
                        {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}],
    "rope_scaling": [None, {}, LINEAR, LLAMA3, dict(LINEAR, rope_theta=55.0),
                     dict(LLAMA3, original_max_position_embeddings=16),
                     {"rope_type": "default"}, {"rope_type": "dynamic", "factor": 2.0}, YARN,
                     dict(YARN, beta_fast=0, attention_factor=0.9), longrope(),
                     dict(longrope(), original_max_position_embeddings=40)],
    "original_max_position_embeddings": [16],
    "partial_rotary_factor": [0.5, 1.0],
}
DECODER = {
    "tie_word_embeddings": [DROP, None, True, False],
    "rms_norm_eps": [DROP, None, 1e-3], "max_position_embeddings": [DROP, 64, 16],
    "hidden_act": [DROP, "swish", "gelu"], "num_key_value_heads": [DROP, None],
    "head_dim": [DROP, None], "attention_bias": [DROP, None, True], "mlp_bias": [DROP, True],
    "layer_types": [["full_attention"] * 3, ["sliding_attention", "full_attention",
                                             "sliding_attention"], ["attention"] * 3,
                    ["full_attention"] * 2, DROP],
    "sliding_window": [DROP, None, 5], "unheard_of": [1], "torch_dtype": ["float32", None],
    "dtype": [DROP], "architectures": [DROP], "transformers_version": [DROP],
    "per_layer_config": [None], "pretraining_tp": [1, 2],
}
WINDOWS = {"use_sliding_window": [True, False, DROP], "max_window_layers": [0, 1, 2, DROP]}
STATES = {
    "tie_word_embeddings": [DROP, True, False], "hidden_act": [DROP, "swish"],
    "time_step_limit": [DROP, [0.0, INFINITY], [0.0, {"__float__": "Infinity"}], [0.05, 0.4],
                        [0.05, INFINITY]],
    "initializer_range": [DROP], "unheard_of": [INFINITY], "residual_in_fp32": [DROP, False],
}
CHANGES = {
    "llama": ROPE | DECODER, "mistral": ROPE | DECODER, "granite": ROPE | DECODER | {
        key: [DROP, 2, 0.7] for key in ("embedding_multiplier", "attention_multiplier",
                                        "residual_multiplier", "logits_scaling")},
    "mixtral": ROPE | DECODER | {
        "num_local_experts": [DROP, None], "num_experts_per_tok": [DROP, 1, 3],
        "router_jitter_noise": [DROP, 0.1], "router_aux_loss_coef": [DROP, 0.5]},
    "qwen2": ROPE | DECODER | WINDOWS, "qwen3": ROPE | DECODER | WINDOWS,
    "smollm3": ROPE | DECODER | WINDOWS | {
        "no_rope_layers": [DROP, None, [0, 1, 0], [1, 1, 0, 0, 1], [1]],
        "no_rope_layer_interval": [DROP, 1, 2]},
    "bamba": ROPE | STATES | {
        "attn_layer_indices": [None, [], [0, 2]], "mamba_d_head": [DROP, 32],
        "mamba_conv_bias": [DROP, None], "mamba_proj_bias": [DROP, None], "mamba_d_conv": [DROP],
        "num_key_value_heads": [DROP, None], "z_loss_coefficient": [DROP, 1e-3],
        "rms_norm_eps": [DROP, 1e-3], "mamba_n_groups": [DROP], "mamba_expand": [DROP]},
    "mamba2": STATES | {"layer_norm_epsilon": [DROP, 1e-3], "use_bias": [DROP],
                        "use_conv_bias": [DROP], "expand": [DROP], "conv_kernel": [DROP],
                        "chunk_size": [DROP, 8]},
}


def make(folder, family, rng):
    """Saves a random model; half of them without the keys that transformers 5 added."""
    config_class, values = FAMILIES[family]
    torch.manual_seed(rng.randrange(1 << 30))
    model = AutoModelForCausalLM.from_config(config_class(**values, tie_word_embeddings=False))
    with torch.no_grad():
        bamba.randomize(model.float())
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return model


def change(folder, family, rng):
    """Changes up to three keys of config.json and returns them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    keys = rng.sample(list(CHANGES[family]), rng.randint(1, 3))
    for key in keys:
        value = rng.choice(CHANGES[family][key])
        if value is DROP:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config, indent=2))
    return keys


def rename(folder, kind):
    """Gives the tensors of a folder the names that another program leaves."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if kind == "wrapped":
        prefix = next(n for n in tensors if not n.startswith("lm_head")).split(".")[0]
        tensors = {f"{prefix}.{name}": t for name, t in tensors.items()}
    elif kind == "bare":
        tensors = {n if n.startswith("lm_head") else n.split(".", 1)[1]: t
                   for n, t in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def write_shape(folder, family, kind, rng):
    """Writes a folder as a program other than save_pretrained of a whole model does."""
    model = make(folder, family, rng)
    if kind in ("wrapped", "bare"):
        rename(folder, kind)
    elif kind in ("base", "saved", "pickle", "another head"):
        config = json.loads((folder / "config.json").read_text())
        config["tie_word_embeddings"] = True
        (folder / "config.json").write_text(json.dumps(config))
        if kind == "another head":
            return
        tied = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        with torch.no_grad():
            bamba.randomize(tied.float())
        (folder / "model.safetensors").unlink()
        if kind == "base":
            tied.base_model.save_pretrained(folder)
        elif kind == "saved":
            save_model(tied, str(folder / "model.safetensors"), metadata={"format": "pt"})
        else:
            torch.save(tied.state_dict(), folder / "pytorch_model.bin")
        config = json.loads((folder / "config.json").read_text())
        config["tie_word_embeddings"] = True
        (folder / "config.json").write_text(json.dumps(config))


def expect(folder, rng):
    """Writes what transformers makes of a folder: logits, or why it has none."""
    torch.manual_seed(0)
    ids = torch.tensor([[rng.randrange(1, 96) for _ in range(LENGTH)]])
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        with torch.no_grad():
            logits = model.eval()(ids, use_cache=False).logits[0]
    except Exception as error:  # whatever transformers raises, it does not load the folder
        return "fails", f"{type(error).__name__}: {error}".splitlines()[0][:150]
    if info["missing_keys"] or info["mismatched_keys"]:
        return "makes weights up", str(sorted(info["missing_keys"])[:2])
    save_file({"ids": ids[0].contiguous(), "logits": logits.contiguous()},
              folder / "expected.safetensors")
    return "loads", ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=40, help="changed configs of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as work:
        root = pathlib.Path(work)
        for family in args.families:
            source = root / f"{family}-source"
            make(source, family, rng)
            for i in range(args.cases):
                folder = root / "cases" / f"{family}-{i}"
                shutil.copytree(source, folder)
                keys = change(folder, family, rng)
                outcome, why = expect(folder, rng)
                case = {"keys": keys, "outcome": outcome, "why": why}
                (folder / "case.json").write_text(json.dumps(case))
            for kind in ("wrapped", "bare", "base", "saved", "pickle", "another head"):
                if family == "mixtral" and kind in ("saved", "pickle"):
                    continue  # a state_dict of transformers 5 fuses the experts, which is refused
                folder = root / "cases" / f"{family} {kind}"
                write_shape(folder, family, kind, rng)
                outcome, why = expect(folder, rng)
                check(f"transformers loads {folder.name}", outcome == "loads", why)
                case = {"keys": [], "outcome": outcome, "why": why}
                (folder / "case.json").write_text(json.dumps(case))
        done = subprocess.run(["go", "test", "-count=1", "-v", "./families", "-run",
                               "Config_AgreesWithTransformers"], cwd=ROOT, text=True,
                              capture_output=True,
                              env=os.environ | {"CONFIG_PARITY": str(root / "cases")})
        print(*(line.strip() for line in done.stdout.splitlines() if ".go:" in line), sep="\n")
        check("Go's test of package families", done.returncode == 0, done.stderr)
    sys.exit(f"{len(failures)} comparisons failed" if failures else None)


if __name__ == "__main__":
    main()
