#!/usr/bin/env python3
"""Compares Bamba and Mamba-2 models with transformers on random configurations.

For each round tools/fixtures/bamba.py draws a model of each kind and writes what transformers
computes. The Go test of package bamba reads the models, compares logits (in one pass, in pieces,
padded, packed) and greedy text, and saves each model. This script loads the saved models with
transformers and compares again.

Usage: bamba_logits.py [--rounds 3] [--seed N] It runs where `go test ./bamba` works (eval "$(make
env)"), with a Python that has torch and transformers.
"""
import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

ROOT = pathlib.Path(__file__).parents[2]


def check_exported(folder):
    expected = load_file(folder / "expected.safetensors")
    model, info = AutoModelForCausalLM.from_pretrained(folder / "exported",
                                                       output_loading_info=True)
    odd = {key: names for key, names in info.items() if names}
    if odd:
        raise SystemExit(f"{folder}/exported: {odd}")
    with torch.no_grad():
        logits = model.float().eval()(expected["ids"], use_cache=False).logits
    worst = (logits - expected["logits"]).abs().max() / expected["logits"].abs().max()
    print(
        f"{folder.name:8} exported, read by transformers:"
        f" differs by {worst:.1e} of the largest logit"
    )
    if not worst <= 1e-4:
        raise SystemExit(f"{folder}/exported: logits differ")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for seed in range(args.seed, args.seed + args.rounds):
        print(f"seed {seed}", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            fixtures = ROOT / "tools" / "fixtures" / "bamba.py"
            subprocess.run(
                [sys.executable, fixtures, "--out", directory, "--seed",
                 str(seed), "--vary"], check=True)
            subprocess.run(["go", "test", "-count=1", "-run", "AgreeWithTransformers", "./bamba"],
                           cwd=ROOT, check=True, env=os.environ | {"BAMBA_PARITY": directory})
            for folder in sorted(pathlib.Path(directory).iterdir()):
                check_exported(folder)


if __name__ == "__main__":
    main()
