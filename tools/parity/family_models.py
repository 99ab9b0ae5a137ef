#!/usr/bin/env python3
"""Compares models of all families with transformers and llama.cpp.

    python tools/parity/family_models.py [--seeds 2] [FAMILY ...]

Random small models of the kinds in tools/fixtures/llama.py, bamba.py, families.py and hybrids.py,
with other sizes for each seed, are run, trained and exported by the tests of package families.
Gradients are compared with those that transformers computes in float64. llama.cpp opens the GGUF
files and must give the logits that transformers gives. Needs the Go environment of `make env`,
torch, transformers, safetensors and llama-cpp-python.
"""
import argparse
import contextlib
import ctypes
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harness import ROOT, check, failures
import bamba
import families
import hybrids
import llama

TOLERANCE = 1e-4  # of the largest logit; keys and values are kept in float32


def logits(path, ids):
    """The logits of ids in llama.cpp: [L, V]."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(),
                                                 llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp does not open {path}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    if llama_cpp.llama_decode(context, batch) != 0:
        raise RuntimeError(f"llama.cpp does not run {path}")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (vocabulary, )).copy()
            for i in range(len(ids))]
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return np.stack(rows)


@contextlib.contextmanager
def in_float64():
    """Keeps float64 where transformers converts to float32: in norms, routers and scans."""
    to, narrow, cast = torch.Tensor.to, torch.Tensor.float, torch.Tensor.type

    def unless_wide(convert):

        def converted(t, *args, **kwargs):
            if t.dtype == torch.float64 and torch.float32 in (*args, *kwargs.values()):
                return t
            return convert(t, *args, **kwargs)

        return converted

    torch.Tensor.to, torch.Tensor.type = unless_wide(to), unless_wide(cast)
    torch.Tensor.float = lambda t: t if t.dtype == torch.float64 else narrow(t)
    try:
        yield
    finally:
        torch.Tensor.to, torch.Tensor.float, torch.Tensor.type = to, narrow, cast


def gradients(folder):
    """Writes the gradients of the mean loss of the first prompt, computed in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64,
                                                 attn_implementation="eager",
                                                 experts_implementation="eager").double()
    ids = load_file(folder / "expected.safetensors")["ids"]
    ids = ids[:1] if ids.dim() == 2 else ids[None]
    with in_float64():
        logits = model(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    with torch.no_grad(), tempfile.TemporaryDirectory() as directory:
        for p in model.parameters():
            p.copy_(p.grad)
        model.save_pretrained(directory)  # under the names of weights in files
        shutil.move(pathlib.Path(directory) / "model.safetensors", folder / "gradients.safetensors")


def write(root, family, seed):
    """Writes all kinds of a family."""
    suffix = f"-{seed}"
    if family == "llama":
        for kind in llama.KINDS:
            llama.write(root / "llama" / "testdata" / (kind + suffix), kind, seed, True)
    elif family == "bamba":
        for kind in bamba.KINDS:
            bamba.write(root / "bamba" / "testdata" / (kind + suffix), kind, seed, True)
    else:
        families.write(root, family, seed, True, suffix)


def main():
    known = ["llama", "bamba", *families.FAMILIES, *hybrids.FAMILIES]
    p = argparse.ArgumentParser()
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("families", nargs="*", default=known, metavar="FAMILY", help=", ".join(known))
    args = p.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for seed in range(args.seeds):
            for family in args.families:
                write(root, family, seed)
        for file in sorted(root.glob("*/testdata/*/expected.safetensors")):
            gradients(file.parent)
        tests = "LogitsAgree|Exported|GGUF|LoRA|Gradients|Packed|TwoProcesses"
        check("Go's tests of package families", subprocess.run(
            ["go", "test", "-count=1", "./families", "-run", tests],
            cwd=ROOT, env=os.environ | {"FAMILIES_PARITY": directory}).returncode == 0)
        files = sorted(root.glob("*/testdata/*/model.gguf"))
        check("there are GGUF files", len(files) > 0)
        for file in files:
            if "mistral" in file.parent.name:
                continue  # llama.cpp's architecture llama has no sliding window
            expected = load_file(file.parent / "expected.safetensors")
            ids, want = expected["ids"], expected["logits"].numpy()
            if ids.dim() == 2:
                ids, want = ids[0], want[0]
            got = logits(file, ids.tolist())
            error = np.abs(got - want).max() / np.abs(want).max()
            name = f"{file.parents[2].name}/{file.parent.name}"
            check(f"{name} in llama.cpp: off by {error:.1e}", error <= TOLERANCE)
    sys.exit(f"{len(failures)} comparisons failed" if failures else None)


if __name__ == "__main__":
    main()
