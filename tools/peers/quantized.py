"""Decoding and prefill of a quantized GGUF file on the CPU, beside llama.cpp.

    python tools/peers/quantized.py random FILE.gguf       # Qwen2.5-1.5B's shape, random Q4_K_M
    python tools/peers/quantized.py CONQUER FILE.gguf [THREADS [ROUNDS]]

The second form runs `CONQUER bench inference` and llama-cpp-python in turn, in processes of their
own, and prints the median of the rounds: milliseconds for a token after a prompt of 512, tokens per
second of that prompt, and the largest resident memory. Needs gguf 0.19, numpy and llama-cpp-python
0.3.36, built for the processor:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time

PROMPT, NEW = 512, 64


def random_model(path):
    import gguf
    import numpy as np
    from gguf import GGMLQuantizationType as T

    hidden, layers, heads, kv_heads, inner, vocabulary = 1536, 28, 12, 2, 8960, 151936
    head = hidden // heads
    rng = np.random.default_rng(1)
    w = gguf.GGUFWriter(path, "qwen2")
    w.add_context_length(32768)
    w.add_embedding_length(hidden)
    w.add_block_count(layers)
    w.add_feed_forward_length(inner)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_rope_freq_base(1000000.0)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_vocab_size(vocabulary)
    w.add_tokenizer_model("no_vocab")

    def blocks(kind, rows, columns):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
        for at in ([0, 2] if kind == T.Q4_K else [208]):
            scale = (rng.random(len(data)) * 1e-4 + 1e-5).astype(np.float16)
            data[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
        return data.reshape(rows, -1)

    def matrix(name, rows, columns, kind=T.Q4_K):
        w.add_tensor(name + ".weight", blocks(kind, rows, columns), raw_dtype=kind)

    def vector(name, n, value):
        w.add_tensor(name, np.full(n, value, dtype=np.float32))

    matrix("token_embd", vocabulary, hidden, T.Q6_K)
    vector("output_norm.weight", hidden, 1)
    for i in range(layers):
        # the layers to which llama-quantize gives more bits in Q4_K_M
        more = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
        better = T.Q6_K if more else T.Q4_K
        vector(f"blk.{i}.attn_norm.weight", hidden, 1)
        matrix(f"blk.{i}.attn_q", hidden, hidden)
        matrix(f"blk.{i}.attn_k", kv_heads * head, hidden)
        matrix(f"blk.{i}.attn_v", kv_heads * head, hidden, better)
        for name, n in [("q", hidden), ("k", kv_heads * head), ("v", kv_heads * head)]:
            vector(f"blk.{i}.attn_{name}.bias", n, 0)
        matrix(f"blk.{i}.attn_output", hidden, hidden)
        vector(f"blk.{i}.ffn_norm.weight", hidden, 1)
        matrix(f"blk.{i}.ffn_gate", inner, hidden)
        matrix(f"blk.{i}.ffn_up", inner, hidden)
        matrix(f"blk.{i}.ffn_down", hidden, inner, better)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama_cpp(path, threads):
    import llama_cpp

    begin = time.perf_counter()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    context = llama_cpp.llama_context_default_params()
    context.n_ctx, context.n_batch, context.n_ubatch = 1024, PROMPT, PROMPT
    context.n_threads = context.n_threads_batch = threads
    ctx = llama_cpp.llama_init_from_model(model, context)
    tokens = [(7 * i + 11) % 40000 for i in range(PROMPT)]

    def run(ids):
        array = (llama_cpp.llama_token * len(ids))(*ids)
        llama_cpp.llama_decode(ctx, llama_cpp.llama_batch_get_one(array, len(ids)))
        return llama_cpp.llama_get_logits(ctx)[5]  # waits for the result

    run([1])
    first = time.perf_counter() - begin
    prefill, decode = [], []
    for _ in range(2):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), True)
        begin = time.perf_counter()
        run(tokens)
        prefill.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        for i in range(NEW):
            run([tokens[i]])
        decode.append((time.perf_counter() - begin) / NEW)
    print(json.dumps({"prefill": min(prefill), "decode": min(decode), "first": first,
                      "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def measured(command):
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return out, usage.ru_maxrss * 1024, time.perf_counter() - begin


def conquer(program, path, threads):
    out, resident, _ = measured([
        program, "bench", "inference", "--model_path", path, "--threads", str(threads),
        "--seq_len", str(PROMPT), "--max_new_tokens", str(NEW), "--batch_size", "1",
        "--repeat", "2", "--skip_nokvcache_runs", "--skip_compile_runs", "--device", "cpu",
        "--json"])
    row = json.loads(out.splitlines()[-1])
    _, _, first = measured([program, "generate", "--model_path", path, "--token_ids", "1",
                            "--max_new_tokens", "1", "--threads", str(threads), "--device", "cpu"])
    return {"prefill": row["first_token_ms"] / 1e3, "decode": row["single_token_ms"] / 1e3,
            "first": first, "resident": resident}


def main():
    if sys.argv[1] == "random":
        return random_model(sys.argv[2])
    if sys.argv[1] == "llama.cpp":
        return llama_cpp(sys.argv[2], int(sys.argv[3]))
    program, path = sys.argv[1:3]
    threads, rounds = ([int(a) for a in sys.argv[3:]] + [2, 3])[:2] if len(sys.argv) > 3 else (2, 3)
    rows = {"conquer": [], "llama.cpp": []}
    for _ in range(rounds):
        rows["conquer"].append(conquer(program, path, threads))
        out, _, _ = measured([sys.executable, __file__, "llama.cpp", path, str(threads)])
        rows["llama.cpp"].append(json.loads(out.splitlines()[-1]))
    print(f"{'':10} {'decode':>10} {'prefill':>13} {'first token':>12} {'resident':>9}")
    for name, list_ in rows.items():
        median = {k: statistics.median(r[k] for r in list_) for k in list_[0]}
        print(f"{name:10} {median['decode'] * 1e3:7.2f} ms {PROMPT / median['prefill']:7.0f} tok/s "
              f"{median['first']:10.2f} s {median['resident'] / 1e9:6.2f} GB")


if __name__ == "__main__":
    main()
