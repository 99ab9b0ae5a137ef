"""Perplexity of quantized GGUF files beside llama.cpp.

    python tools/parity/quantized.py CONQUER MODEL.gguf TEXT [--windows N] [--float32] [KIND ...]

llama.cpp quantizes MODEL.gguf to each kind (default: all that conquer computes on; MXFP4 is
written by conquer, because llama.cpp writes it for experts alone), and both programs predict the
same tokens of TEXT: N windows of 512 (default 16). The table has the perplexity in llama.cpp and
in conquer on blocks, their ratio and its standard error, and with --float32 that in conquer on
converted weights. It fails if the first two differ by more than LIMIT. Both round activations to
8 bits, in different ways, which changes each token's probability at random; the mean over more
tokens is closer. Needs llama-cpp-python 0.3.36.
"""

import argparse
import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

WINDOW, LIMIT = 512, 0.002
KINDS = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K",
         "IQ4_NL", "IQ4_XS", "MXFP4"]


def quantize(path, out, kind):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind)
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(path.encode(), out.encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp could not quantize to {kind}")


def llama(path, text, count):
    """The tokens of each window, and the negative log-likelihood of each token but the first."""
    model = llama_cpp.Llama(path, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False,
                            n_threads=2, n_threads_batch=2)
    tokens = model.tokenize(text, add_bos=False)[: WINDOW * count]
    windows = [tokens[i : i + WINDOW] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    nll = []
    for window in windows:
        model.reset()
        model.eval(window)
        logits = np.array(model.scores[:WINDOW], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        nll += [-logp[i, window[i + 1]] for i in range(WINDOW - 1)]
    return windows, np.array(nll)


def conquer(program, path, windows, *more):
    nll = []
    for window in windows:
        out = json.loads(subprocess.check_output(
            [program, "score", "--model_path", path, "--token_ids", ",".join(map(str, window)),
             "--device", "cpu", "--json", *more], stderr=subprocess.DEVNULL))
        nll += out["token_nll"]
    return np.array(nll)


def main():
    parser = argparse.ArgumentParser()
    for name in ("program", "model", "text"):
        parser.add_argument(name)
    parser.add_argument("kinds", nargs="*", default=KINDS)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--float32", action="store_true")
    o = parser.parse_args()
    text = open(o.text, "rb").read()
    worst = 0
    print(f"{'kind':8} {'llama.cpp':>10} {'blocks':>10} {'blocks/llama.cpp':>17} {'± error':>9}"
          + (f" {'float32':>10}" if o.float32 else ""))
    with tempfile.TemporaryDirectory() as folder:
        for kind in o.kinds:
            path = os.path.join(folder, kind + ".gguf")
            if kind == "MXFP4":
                subprocess.run([o.program, "export", "--model_path", o.model, "--output_path", path,
                                "--dtype", "mxfp4"], check=True)
            else:
                quantize(o.model, path, kind)
            windows, theirs = llama(path, text, o.windows)
            ours = conquer(o.program, path, windows)
            off = math.exp(ours.mean() - theirs.mean()) - 1
            error = (ours - theirs).std() / len(ours) ** 0.5
            worst = max(worst, abs(off))
            line = (f"{kind:8} {math.exp(theirs.mean()):10.4f} {math.exp(ours.mean()):10.4f} "
                    f"{100 * off:+16.3f}% {100 * error:8.3f}%")
            if o.float32:
                exact = conquer(o.program, path, windows, "--dtype", "float32")
                line += f" {math.exp(exact.mean()):10.4f}"
            print(line, flush=True)
            os.remove(path)
    if worst > LIMIT:
        sys.exit(f"off by {100 * worst:.2f} %, expected at most {100 * LIMIT} %")


if __name__ == "__main__":
    main()
