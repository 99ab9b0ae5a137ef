"""Files that conquer quantizes beside llama.cpp's of the same model, kinds and size.

    python tools/parity/quantizers.py CONQUER SMOLLM2.gguf [KIND ...]

Two models are quantized to each kind (default: q4_k_m), by `conquer export` and by llama.cpp's
llama_model_quantize, without importance data and with the importance matrix that conquer
collects: SmolLM2-135M, whose rows of 576 get other kinds than Q4_K, and the same function with a
width of 768: some channels of the residual stream and some heads are there twice, each with its
share, and channels are permuted. llama.cpp computes the Kullback-Leibler divergence of each
file's predictions from those of the model in float32, on WINDOWS windows of 512 tokens of prose
and code. The script fails if a matrix has another kind than in llama.cpp's file, or if the
divergence of a q4_k_m file is larger than that of llama.cpp's. Needs gguf 0.19, llama-cpp-python
0.3.36, numpy and Go's sources.
"""

import ctypes
import os
import subprocess
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

WINDOW, WINDOWS = 512, 16
ROOT = subprocess.check_output(["go", "env", "GOROOT"], text=True).strip() + "/src/"
PROSE = open(ROOT + "testdata/Isaac.Newton-Opticks.txt", encoding="utf-8").read()
# the importance matrix is collected on other texts than those that are predicted
LEARNED = [PROSE[200000:]] + [open(ROOT + p, encoding="utf-8").read() for p in (
    "strings/builder.go", "strings/replace.go", "strings/strings.go", "net/http/server.go")]
PREDICTED = [PROSE[20000:200000], "".join(open(ROOT + p, encoding="utf-8").read() for p in (
    "sort/sort.go", "net/url/url.go"))]


def widened(source, out):
    """Writes the model of the file source in float32 with a width of 768 instead of 576."""
    width, wide, heads, head, inner = 576, 768, 9, 64, 1536
    rng = np.random.default_rng(5)
    order = rng.permutation(np.r_[np.arange(width), rng.choice(width, wide - width, False)])
    share = (1 / np.sqrt(np.bincount(order)[order])).astype(np.float32)
    queries, keys = np.r_[np.arange(heads), 0:3], np.array([0, 1, 2, 0])
    halves = 1 / np.bincount(queries)[queries]

    def rows_of(x, which):
        return x.reshape(-1, head, x.shape[1])[which].reshape(len(which) * head, -1)

    def change(name, x):
        part = name.split(".")[-2]
        if part.endswith("norm"):
            return x[order] * np.sqrt(width / wide)
        if part == "token_embd":
            return x[:, order] * share
        if part in ("attn_q", "attn_k", "attn_v"):
            return rows_of(x, queries if part == "attn_q" else keys)[:, order] * share
        if part == "attn_output":
            x = (rows_of(x.T.copy(), queries) * np.repeat(halves, head)[:, None]).T
            return x[order] * share[:, None]
        within = np.random.default_rng(int(name.split(".")[1])).permutation(inner)
        if part == "ffn_down":
            return x[order][:, within] * share[:, None]
        return x[within][:, order] * share

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    for f in reader.fields.values():
        if f.name.startswith("GGUF.") or f.name == "general.architecture":
            continue
        value = {"llama.embedding_length": wide, "llama.attention.head_count": len(queries),
                 "llama.attention.head_count_kv": len(keys)}.get(f.name, f.contents())
        if f.name == "llama.attention.layer_norm_rms_epsilon":
            value *= width / wide
        array = f.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(f.name, value, f.types[0], f.types[-1] if array else None)
    for t in reader.tensors:
        x = gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1].astype(int))
        writer.add_tensor(t.name, np.ascontiguousarray(change(t.name, x), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(path, out, kind, importance=None):
    """llama.cpp's quantizer, with the importance matrix of a file."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind.upper())
    if importance:
        tensors = {t.name: t.data for t in gguf.GGUFReader(importance).tensors}
        means = {n[: -len(".in_sum2")]: x / tensors[n.replace(".in_sum2", ".counts")].reshape(-1, 1)
                 for n, x in tensors.items() if n.endswith(".in_sum2")}
        means = {n.encode(): np.ascontiguousarray(x, np.float32) for n, x in means.items()}
        data = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
        for entry, (name, x) in zip(data, means.items()):
            entry.name, entry.size = name, x.size
            entry.data = x.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = data
    if llama_cpp.llama_model_quantize(path.encode(), out.encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp could not quantize to {kind}")


def predictions(path, windows):
    model = llama_cpp.Llama(path, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False,
                            n_threads=2, n_threads_batch=2)
    for window in windows:
        model.reset()
        model.eval(window)
        x = np.array(model.scores[:WINDOW], dtype=np.float32)
        x -= x.max(1, keepdims=True)
        yield x - np.log(np.exp(x).sum(1, keepdims=True))


def windows_of(path):
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    found = []
    for text in PREDICTED:
        tokens = model.tokenize(text.encode(), add_bos=False)
        found += [tokens[i * WINDOW : (i + 1) * WINDOW] for i in range(WINDOWS // 2)]
    return found


def measure(path, windows, base):
    kl, nll = [], []
    for i, q in enumerate(predictions(path, windows)):
        kl.append((np.exp(base[i]) * (base[i] - q)).sum(1))
        nll.append(-q[np.arange(WINDOW - 1), windows[i][1:]])
    return np.concatenate(kl), np.exp(np.concatenate(nll).mean())


def kinds(path):
    return {t.name: t.tensor_type for t in gguf.GGUFReader(path).tensors}


def compare(program, folder, name, model, kind):
    """Prints the four files' rows; False if conquer's are worse, or differ in kinds."""
    windows = windows_of(model)
    base = np.memmap(os.path.join(folder, "base"), np.float32, "w+",
                     shape=(WINDOWS, WINDOW, len_of_vocabulary(model)))
    for i, p in enumerate(predictions(model, windows)):
        base[i] = p
    data, matrix = os.path.join(folder, "learned"), os.path.join(folder, "imatrix.gguf")
    os.makedirs(data, exist_ok=True)
    for i, text in enumerate(LEARNED):
        with open(os.path.join(data, f"{i}.txt"), "w", encoding="utf-8") as f:
            f.write(text)
    good = True
    for learned in ([], ["--importance_data", data, "--importance", matrix]):
        ours, theirs = (os.path.join(folder, n + ".gguf") for n in ("ours", "theirs"))
        subprocess.run([program, "export", "--model_path", model, "--output_path", ours, "--dtype",
                        kind, "--overwrite", *learned], check=True)
        quantize(model, theirs, kind, matrix if learned else None)
        same = kinds(ours) == kinds(theirs)
        size = os.path.getsize(ours) / 1e6
        kl, perplexity = measure(ours, windows, base)
        peer, peers_perplexity = measure(theirs, windows, base)
        # the divergences are of the same tokens, so their difference is known better than they are
        error = (kl - peer).std() / len(kl) ** 0.5
        print(f"{name:6} {kind:7} {'importance' if learned else '':11} {size:7.1f} MB   "
              f"KL {kl.mean():.5f}, llama.cpp {peer.mean():.5f}, difference "
              f"{kl.mean() - peer.mean():+.5f} ± {error:.5f}   perplexity {perplexity:.3f}, "
              f"{peers_perplexity:.3f}{'' if same else '   OTHER KINDS'}", flush=True)
        good = good and same and (kind != "q4_k_m" or kl.mean() <= peer.mean())
    return good


def len_of_vocabulary(path):
    return llama_cpp.Llama(path, vocab_only=True, verbose=False).n_vocab()


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level, text, data):
    pass


def main():
    program, source = sys.argv[1:3]
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    good = True
    with tempfile.TemporaryDirectory() as folder:
        plain, wide = (os.path.join(folder, n + ".gguf") for n in ("plain", "wide"))
        subprocess.run([program, "export", "--model_path", source, "--output_path", plain,
                        "--dtype", "float32"], check=True)
        widened(source, wide)
        for kind in sys.argv[3:] or ["q4_k_m"]:
            for name, model in (("576", plain), ("768", wide)):
                good = compare(program, folder, name, model, kind) and good
    if not good:
        sys.exit("a file is further from the model than llama.cpp's, or has other kinds")


if __name__ == "__main__":
    main()
