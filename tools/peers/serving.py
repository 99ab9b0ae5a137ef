#!/usr/bin/env python3
"""Times many clients at once: `conquer bench serve` over HTTP beside llama.cpp, which decodes the
same number of sequences in one batch, as its server does, but without HTTP. Both take the same GGUF
file and the same threads, and run by turns.

usage: serving.py CONQUER MODEL.gguf [--clients 16] [--prompt 128] [--new 64] [--rounds 3]

llama-cpp-python's own server answers one request at a time, so llama.cpp's library is called: all
prompts are read first, in batches of 512 tokens, then each step makes a token for every sequence.
"""

import argparse
import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import time

import numpy as np

CHILD = "--llama-cpp"


def conquer(binary, o, extra):
    """New tokens a second."""
    done = subprocess.run(
        [binary, "bench", "serve", "--model_path", o.model, "--device", "cpu", "--threads",
         str(o.threads), "--requests", str(o.clients), "--max_sequences", str(o.clients),
         "--prompt_lengths", str(o.prompt), "--max_new_tokens", str(o.new), "--json", *extra],
        capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)["tokens_per_s"]


def llama_cpp(o):
    """Runs in a process of its own and prints new tokens a second."""
    import llama_cpp as lib
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
        lambda *_: None)
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(o.model.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = o.clients * (o.prompt + o.new)
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = o.clients
    params.n_threads = params.n_threads_batch = o.threads
    context = lib.llama_init_from_model(model, params)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    draw = random.Random(1)
    prompts = [[draw.randrange(vocabulary) for _ in range(o.prompt)] for _ in range(o.clients)]
    batch = lib.llama_batch_init(512, 0, 1)

    def decode(entries):
        """entries: token, position, sequence, whether logits are wanted. Returns the argmaxes."""
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, wanted
        if lib.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        return {e[2]: int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i),
                                                (vocabulary,)).argmax())
                for i, e in enumerate(entries) if e[3]}

    began = time.perf_counter()
    entries = [(token, i, s, i == o.prompt - 1) for s, p in enumerate(prompts)
               for i, token in enumerate(p)]
    last = {}
    for at in range(0, len(entries), 512):
        last |= decode(entries[at:at + 512])
    for step in range(o.new - 1):
        last = decode([(last[s], o.prompt + step, s, True) for s in range(o.clients)])
    print(o.clients * o.new / (time.perf_counter() - began))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conquer")
    parser.add_argument("model")
    for name, default in (("clients", 16), ("prompt", 128), ("new", 64), ("rounds", 3),
                          ("threads", os.cpu_count())):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    o, extra = parser.parse_known_args()
    if o.llama_cpp:
        return llama_cpp(o)
    ours, theirs = [], []
    for n in range(o.rounds):
        ours.append(conquer(o.conquer, o, extra))
        child = subprocess.run([sys.executable, __file__, *sys.argv[1:], CHILD],
                               capture_output=True, text=True)
        if child.returncode:
            sys.exit(f"llama.cpp ended with {child.returncode}: {child.stderr}")
        theirs.append(float(child.stdout))
        print(f"round {n + 1}: conquer {ours[-1]:.1f}, llama.cpp {theirs[-1]:.1f} new tokens/s, "
              f"{ours[-1] / theirs[-1]:.2f} times", flush=True)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    print(f"medians: conquer {statistics.median(ours):.1f}, llama.cpp "
          f"{statistics.median(theirs):.1f} new tokens/s, {ratio:.2f} times")


if __name__ == "__main__":
    main()
