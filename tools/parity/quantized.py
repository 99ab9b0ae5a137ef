"""Perplexity of quantized GGUF files beside llama.cpp.

    python tools/parity/quantized.py CONQUER MODEL.gguf TEXT [KIND ...]

llama.cpp quantizes MODEL.gguf to each kind (default: all that conquer computes on), and both
programs predict the same tokens of TEXT: four windows of 512. The table has the perplexity in
llama.cpp, in conquer on blocks, and in conquer with --dtype float32. It fails if the first two
differ by more than LIMIT. Both round activations to 8 bits, in different ways. Needs
llama-cpp-python 0.3.36.
"""

import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

WINDOW, WINDOWS, LIMIT = 512, 4, 0.002
KINDS = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K",
         "IQ4_NL", "IQ4_XS"]


def quantize(path, out, kind):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind)
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(path.encode(), out.encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp could not quantize to {kind}")


def llama(path, text):
    """The tokens of each window, and the mean negative log-likelihood over all windows."""
    model = llama_cpp.Llama(path, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False,
                            n_threads=2, n_threads_batch=2)
    tokens = model.tokenize(text, add_bos=False)[: WINDOW * WINDOWS]
    windows = [tokens[i : i + WINDOW] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    nll = []
    for window in windows:
        model.reset()
        model.eval(window)
        logits = np.array(model.scores[:WINDOW], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        nll += [-logp[i, window[i + 1]] for i in range(WINDOW - 1)]
    return windows, sum(nll) / len(nll)


def conquer(program, path, windows, *more):
    total, count = 0.0, 0
    for window in windows:
        out = json.loads(subprocess.check_output(
            [program, "score", "--model_path", path, "--token_ids", ",".join(map(str, window)),
             "--device", "cpu", "--json", *more], stderr=subprocess.DEVNULL))
        total += sum(out["token_nll"])
        count += len(out["token_nll"])
    return total / count


def main():
    program, base, text = sys.argv[1:4]
    text = open(text, "rb").read()
    worst = 0
    print(f"{'kind':8} {'llama.cpp':>10} {'blocks':>10} {'float32':>10} {'blocks/llama.cpp':>17}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in sys.argv[4:] or KINDS:
            path = os.path.join(folder, kind + ".gguf")
            quantize(base, path, kind)
            windows, theirs = llama(path, text)
            ours = conquer(program, path, windows)
            exact = conquer(program, path, windows, "--dtype", "float32")
            off = math.exp(ours - theirs) - 1
            worst = max(worst, abs(off))
            print(f"{kind:8} {math.exp(theirs):10.4f} {math.exp(ours):10.4f} "
                  f"{math.exp(exact):10.4f} {100 * off:+16.3f}%", flush=True)
            os.remove(path)
    if worst > LIMIT:
        sys.exit(f"off by {100 * worst:.2f} %, expected at most {100 * LIMIT} %")


if __name__ == "__main__":
    main()
