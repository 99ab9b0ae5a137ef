"""Writes a GGUF file of a Llama of a given shape with random quantized weights; needs numpy.

    random_gguf.py OUT.gguf [--shape 8b|7b|1.5b|tiny] [--kind q4_k|q6_k|q8_0|q4_0|q4_k_m]

q4_k_m has the mix of llama.cpp's Q4_K_M: half of the v and down projections, and the head, in Q6_K.
The weights have the size of initial weights, so activations stay finite.
"""
import argparse
import struct

import numpy as np

SHAPES = {  # layers, width, feed-forward, heads, key heads, vocabulary
    "8b": (32, 4096, 14336, 32, 8, 128256),
    "7b": (32, 4096, 11008, 32, 32, 32000),
    "1.5b": (28, 1536, 8960, 12, 2, 151936),
    "tiny": (2, 512, 1024, 8, 4, 1024),
}
# ggml's number, bytes and numbers of a block, and where its scales and minima (float16) are
KINDS = {
    "q4_0": (2, 18, 32, (0,), ()),
    "q8_0": (8, 34, 32, (0,), ()),
    "q4_k": (12, 144, 256, (0,), (2,)),
    "q6_k": (14, 210, 256, (208,), ()),
}
# the mean size of a number for a scale of 1, with random bytes
SIZE = {"q4_0": 4.6, "q8_0": 74.0, "q4_k": 250.0, "q6_k": 1180.0}


def blocks(random, kind, rows, columns):
    _, bytes_, numbers, scales, minima = KINDS[kind]
    data = random.integers(0, 256, (rows, columns // numbers, bytes_), dtype=np.uint8)
    size = 0.5 * columns ** -0.5 / SIZE[kind]
    for at, value in [(at, size) for at in scales] + [(at, 7.5 * size) for at in minima]:
        data[:, :, at:at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    return data.reshape(rows, -1)


def string(s):
    return struct.pack("<Q", len(s)) + s.encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--kind", default="q4_k", choices=[*KINDS, "q4_k_m"])
    options = parser.parse_args()
    layers, D, F, H, K, V = SHAPES[options.shape]
    P = D // H
    usual, fine = ("q4_k", "q6_k") if options.kind == "q4_k_m" else (options.kind, options.kind)
    tensors = [("token_embd.weight", V, D, usual), ("output_norm.weight", D, 0, "f32"),
               ("output.weight", V, D, fine)]
    for i in range(layers):
        mixed = fine if i % 2 else usual
        tensors += [(f"blk.{i}.{name}.weight", *rest) for name, *rest in (
            ("attn_norm", D, 0, "f32"), ("ffn_norm", D, 0, "f32"), ("attn_q", H * P, D, usual),
            ("attn_k", K * P, D, usual), ("attn_v", K * P, D, mixed), ("attn_output", D, D, usual),
            ("ffn_gate", F, D, usual), ("ffn_up", F, D, usual), ("ffn_down", D, F, mixed))]
    numbers = [("block_count", layers), ("context_length", 4096), ("embedding_length", D),
               ("feed_forward_length", F), ("attention.head_count", H),
               ("attention.head_count_kv", K), ("rope.dimension_count", P), ("vocab_size", V)]
    meta = [string("general.architecture") + struct.pack("<I", 8) + string("llama")]
    meta += [string("llama." + key) + struct.pack("<II", 4, value) for key, value in numbers]
    meta += [string("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)]
    head, offset = b"", 0
    for name, rows, columns, kind in tensors:
        if kind == "f32":
            head += string(name) + struct.pack("<IQIQ", 1, rows, 0, offset)
            size = rows * 4
        else:
            number, bytes_, per, _, _ = KINDS[kind]
            head += string(name) + struct.pack("<IQQIQ", 2, columns, rows, number, offset)
            size = rows * columns // per * bytes_
        offset += (size + 31) // 32 * 32
    random = np.random.default_rng(1)
    with open(options.out, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)) + b"".join(meta) + head)
        f.write(b"\0" * (-f.tell() % 32))
        for _, rows, columns, kind in tensors:
            data = np.ones(rows, np.float32) if kind == "f32" else blocks(
                random, kind, rows, columns)
            f.write(data.tobytes())
            f.write(b"\0" * (-f.tell() % 32))


if __name__ == "__main__":
    main()
