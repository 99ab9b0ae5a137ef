#!/usr/bin/env python3
"""Compares models of all families with transformers and llama.cpp.

    python tools/parity/family_models.py [--seeds 2] [FAMILY ...]

Random small models of the kinds in tools/fixtures/llama.py and families.py, and Mamba-2, with other
sizes for each seed, are run and exported by the tests of package families. llama.cpp opens the GGUF
files and must give the logits that transformers gives. Needs the Go environment of `make env`,
torch, transformers, safetensors and llama-cpp-python.
"""
import argparse
import ctypes
import os
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np
from safetensors.torch import load_file

from harness import ROOT, check, failures
import bamba
import families
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


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("families", nargs="*", default=["llama", "mamba2", *families.FAMILIES])
    args = p.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for seed in range(args.seeds):
            for kind in llama.KINDS if "llama" in args.families else []:
                llama.write(root / "llama" / "testdata" / f"{kind}-{seed}", kind, seed, True)
            if "mamba2" in args.families:
                bamba.write(root / "bamba" / "testdata" / f"mamba2-{seed}", "mamba2", seed, True)
            for family in families.FAMILIES.keys() & set(args.families):
                families.write(root, family, seed, True, f"-{seed}")
        check("Go's tests of package families", subprocess.run(
            ["go", "test", "-count=1", "./families", "-run", "LogitsAgree|Exported|GGUF|LoRA"],
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
