"""Make the fixtures of the checkpoint package's tests beside this file.

    python testdata/checkpoint/make_fixtures.py

  types.gguf      a tiny llama with a tensor of each type that is decoded, written by the gguf package
  types.json      what they are in Hugging Face's order by that package's own dequantize: shape, SHA-256 of the bytes as
                  float32, bfloat16 and float16 (rounded by torch), and the first numbers
  dtypes.safetensors, dtypes.json
                  a tensor of each dtype, written by the safetensors package; the same facts
  sharded/        a tiny Llama written by transformers in several shards
  pickles/, pickles.json
                  what torch.save writes, in two shards with an index: each dtype, slices and transposes of shared storage,
                  a module's state_dict, parameters, two protocols; the same facts

  quantized.safetensors
                  numbers of many magnitudes, ties among them, and what the gguf package quantizes them to

Needs gguf 0.19, safetensors 0.8, torch 2.11, transformers 5.23, numpy.
"""

import hashlib
import json
import os
import shutil

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from safetensors.torch import save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(20)

# Where a block holds float16 scales, by byte offset; the rest of a block may be any bits.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}


def stored(kind, rows, columns):
    """Random bytes of a type: every quantized value, and scales of every magnitude, subnormal ones included."""
    if kind == T.F32:
        return rng.standard_normal((rows, columns), dtype=np.float32)
    if kind == T.F16:
        return rng.standard_normal((rows, columns), dtype=np.float32).astype(np.float16)
    if kind == T.BF16:
        return gguf.quantize(rng.standard_normal((rows, columns), dtype=np.float32), T.BF16)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for offset in SCALES[kind]:
        scale = rng.standard_normal(len(blocks)) * 2.0 ** rng.integers(-26, 4, len(blocks))
        blocks[:, offset : offset + 2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, columns // block * size)


def permute(weights, heads):
    """llama.cpp's convert_hf_to_gguf.py: LlamaModel.permute."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def facts(tensor):
    digest = lambda t: hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    result = {"shape": list(tensor.shape), "sha256": {"own": digest(tensor.reshape(-1))}, "first": tensor.flatten()[:4].tolist()}
    if tensor.dtype == torch.float32:
        result["sha256"] |= {str(d)[6:]: digest(tensor.reshape(-1).to(d)) for d in (torch.float32, torch.bfloat16, torch.float16)}
    return result


def types():
    heads, kv_heads, head_dim, hidden, ffn, vocab = 2, 1, 16, 256, 32, 48
    writer = gguf.GGUFWriter(os.path.join(HERE, "types.gguf"), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(2)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["<unk>", "<s>", "</s>"] + [chr(97 + i) for i in range(vocab - 3)])
    writer.add_token_types([2, 3, 3] + [1] * (vocab - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    q, kv = heads * head_dim, kv_heads * head_dim
    tensors = [("token_embd", "model.embed_tokens", T.Q6_K, vocab, hidden), ("output", "lm_head", T.Q8_0, vocab, hidden)]
    kinds = [[T.Q4_K, T.Q5_K, T.Q6_K, T.Q5_1, T.Q8_0, T.Q4_0, T.Q5_0], [T.Q4_1, T.F16, T.BF16, T.F32, T.Q4_1, T.Q5_1, T.Q4_1]]
    for layer, (tq, tk, tv, to, tg, tu, td) in enumerate(kinds):
        for name, hf, kind, rows, columns in [
            ("attn_q", "self_attn.q_proj", tq, q, hidden), ("attn_k", "self_attn.k_proj", tk, kv, hidden),
            ("attn_v", "self_attn.v_proj", tv, kv, hidden), ("attn_output", "self_attn.o_proj", to, hidden, q),
            ("ffn_gate", "mlp.gate_proj", tg, ffn, hidden), ("ffn_up", "mlp.up_proj", tu, ffn, hidden),
            ("ffn_down", "mlp.down_proj", td, hidden, ffn),
        ]:
            tensors.append((f"blk.{layer}.{name}", f"model.layers.{layer}.{hf}", kind, rows, columns))
    expected = {}
    for name, hf, kind, rows, columns in tensors:
        data = stored(kind, rows, columns)
        values = gguf.dequantize(data, kind)
        if kind in (T.F16, T.BF16):  # these are given as they are
            values = torch.tensor(values).to(torch.float16 if kind == T.F16 else torch.bfloat16)
        else:
            values = torch.tensor(values)
        expected[hf + ".weight"] = {"stored": kind.name} | facts(values)
        if "attn_q" in name or "attn_k" in name:
            data = permute(data, heads if "attn_q" in name else kv_heads)
        writer.add_tensor(name + ".weight", data, raw_dtype=kind)
    norms = [("output_norm", "model.norm")]
    for layer in range(2):
        norms += [(f"blk.{layer}.attn_norm", f"model.layers.{layer}.input_layernorm"),
                  (f"blk.{layer}.ffn_norm", f"model.layers.{layer}.post_attention_layernorm")]
    for name, hf in norms:
        data = stored(T.F32, 1, hidden)[0]
        expected[hf + ".weight"] = {"stored": "F32"} | facts(torch.tensor(data))
        writer.add_tensor(name + ".weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    dump("types.json", expected)


def dtypes():
    torch.manual_seed(3)
    tensors = {
        "f64": torch.randn(2, 3, dtype=torch.float64), "f32": torch.randn(5, 3), "f16": torch.randn(7).half(),
        "bf16": torch.randn(3, 1, 3).bfloat16(), "i64": torch.tensor([-1, 2**62]), "i32": torch.tensor([[-(2**31), 7]], dtype=torch.int32),
        "u8": torch.arange(5, dtype=torch.uint8), "bool": torch.tensor([True, False, True]), "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4), "i8": torch.tensor([-1, 1], dtype=torch.int8), "f8": torch.ones(3).to(torch.float8_e4m3fn),
    }
    save_file(tensors, os.path.join(HERE, "dtypes.safetensors"), metadata={"format": "pt"})
    dump("dtypes.json", {name: facts(t) for name, t in tensors.items() if name not in ("i8", "f8")})


def sharded():
    torch.manual_seed(4)
    folder = os.path.join(HERE, "sharded")
    shutil.rmtree(folder, ignore_errors=True)
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config).bfloat16()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder, max_shard_size="4KB")


def pickles():
    torch.manual_seed(5)
    folder = os.path.join(HERE, "pickles")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    base = torch.randn(6, 10)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    first = {
        "f64": torch.randn(2, 3, dtype=torch.float64), "f16": torch.randn(7).half(), "bf16": torch.randn(3, 1, 3).bfloat16(),
        "i64": torch.tensor([-1, 2**62]), "i32": torch.tensor([[-(2**31), 7]], dtype=torch.int32), "u8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "base": base,
        "transposed": base.t(), "slice": base[2:4, 3:8], "turned": base.view(2, 3, 10)[1:, :, ::3].permute(2, 0, 1), "row": base[4],
        "parameter": torch.nn.Parameter(torch.randn(4)), "step": 7, "note": "not a tensor",
    }
    second = module.state_dict()
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    torch.save(first, os.path.join(folder, files[0]))
    torch.save({"epoch": 3, "lr": 1e-3, "state_dict": second}, os.path.join(folder, files[1]), pickle_protocol=4)
    expected = {k: facts(v.detach()) for d in (first, second) for k, v in d.items() if isinstance(v, torch.Tensor)}
    with open(os.path.join(folder, "pytorch_model.bin.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": {k: files[k in second] for k in expected}}, f, indent=1)
    dump("pickles.json", expected)


def quantized():
    r = np.random.default_rng(6)
    rows = [r.standard_normal((40, 64)) * 2.0 ** r.integers(-30, 12, (40, 1)), r.integers(-8, 9, (12, 64)) / 4, r.integers(-127, 128, (8, 64)),
            np.zeros((1, 64)), np.full((1, 64), -3.0), np.full((1, 64), 1e-30)]
    values = np.concatenate(rows).astype(np.float32)
    tensors = {"input": torch.tensor(values)} | {k.name: torch.tensor(gguf.quantize(values, k)) for k in (T.Q8_0, T.Q4_0)}
    save_file(tensors, os.path.join(HERE, "quantized.safetensors"), metadata={"format": "pt"})


def dump(name, value):
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


types()
dtypes()
sharded()
pickles()
quantized()
