#!/usr/bin/env python3
"""Compares folders that GPTQ, AWQ, FP8 and compressed-tensors quantized with the peers.

    python tools/parity/quantized_folders.py --conquer build/bin/conquer [--seeds 2] --model ""

Small random Llamas are stored in each format, with random codes, scales and zero points. The
weights that `conquer export` writes must be those of the peers' own dequantization, bit for bit:
FP8 as transformers loads it, compressed-tensors as its package decompresses it, AWQ as autoawq
unpacks it, and GPTQ as its format defines it, because gptqmodel does not install without a GPU. The
negative log-likelihoods of `conquer score` are compared with those of transformers on the
dequantized weights: with --dtype float32, and on the weights as they are stored. Needs torch,
transformers, safetensors, accelerate, compressed-tensors 0.20 and autoawq 0.2.9.
"""
import importlib.util
import json

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from harness import check, conquer, options, run

LIMIT = 2e-5  # of a negative log-likelihood, with float32 weights
ROUNDED = 0.03  # the mean difference with activations of 8 bits, on these random models


def model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=256, intermediate_size=384, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                         vocab_size=320, max_position_embeddings=256, tie_word_embeddings=False,
                         initializer_range=0.06)
    return LlamaForCausalLM(config).eval()


def linears(net):
    return {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Linear)}


def stream(codes, bits):
    """Packs codes [n, m] along the first dimension, as a stream of bits: int32 [n*bits/32, m]."""
    n, m = codes.shape
    each = (codes[:, None, :].astype(np.uint32) >> np.arange(bits)[None, :, None]) & 1
    each = each.reshape(n * bits // 32, 32, m)
    words = (each.astype(np.uint64) << np.arange(32, dtype=np.uint64)[None, :, None]).sum(1)
    return words.astype(np.uint32).view(np.int32)


def gptq(rng, rows, columns, bits, size, order, sym, version, bf16=False):
    size = columns if size == -1 else size
    groups = -(-columns // size)
    group = np.arange(columns) // size
    if order:
        group = group[rng.permutation(columns)]
    codes = rng.integers(0, 2**bits, (rows, columns))
    zero = np.full((rows, groups), 2**(bits - 1)) if sym else \
        rng.integers(1, 2**bits, (rows, groups))
    scale = (rng.uniform(0.5, 1.5, (rows, groups)) * 0.2 / 2**bits)
    scale = torch.tensor(scale).to(torch.bfloat16 if bf16 else torch.float16)
    stored = {"qweight": torch.tensor(stream(codes.T, bits)),
              "qzeros": torch.tensor(stream(zero - (version == 1), bits).T.copy()),
              "scales": scale.T.contiguous(),
              "g_idx": torch.tensor(group.astype(np.int32))}
    if not order:
        del stored["g_idx"]
    level = torch.tensor((codes - zero[:, group]).astype(np.float32))
    return stored, scale.float()[:, group] * level


def awq(rng, rows, columns, size):
    spec = importlib.util.find_spec("awq")
    path = spec.submodule_search_locations[0] + "/utils/packing_utils.py"
    spec = importlib.util.spec_from_file_location("packing_utils", path)
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    any_word = lambda *shape: torch.tensor(rng.integers(-2**31, 2**31, shape).astype(np.int32))
    stored = {"qweight": any_word(columns, rows // 8),
              "qzeros": any_word(columns // size, rows // 8),
              "scales": torch.tensor(rng.uniform(0.5, 1.5, (columns // size, rows)) * 0.01).half()}
    return stored, peer.dequantize_gemm(stored["qweight"], stored["qzeros"], stored["scales"], 4,
                                        size).T


def float8(rng, rows, columns):
    data = rng.integers(0, 256, (rows, columns)).astype(np.uint8)
    data[data & 127 == 127] = 3  # no NaN
    data[:, ::3] &= 0x8f  # subnormal numbers
    return torch.tensor(data).view(torch.float8_e4m3fn)


def write(folder, net, changed, quantization):
    """Writes net with the tensors of some modules replaced."""
    state = {k: v.half() for k, v in net.state_dict().items()}
    for name, stored in changed.items():
        del state[name + ".weight"]
        state |= {f"{name}.{k}": v for k, v in stored.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors",
              {"format": "pt"})
    config = net.config.to_dict() | {"quantization_config": quantization,
                                     "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config, default=str))


def likelihood(net, ids):
    with torch.no_grad():
        logits = net.float()(torch.tensor([ids])).logits[0].double()
    return [-float(torch.log_softmax(row, -1)[n]) for row, n in zip(logits[:-1], ids[1:])]


def compare(kind, folder, net, values, rounding, ids):
    """values: the peers' weights by module, equal to ours after rounding to their dtype."""
    out = folder.with_name(folder.name + "-out")
    conquer("export", "--model_path", folder, "--output_path", out, "--dtype", "float32")
    ours = load_file(out / "model.safetensors")
    worst, count = "", 0
    for name, want in values.items():
        got = ours[name + ".weight"].to(rounding)
        count += got.numel()
        if not torch.equal(got, want.to(rounding)):
            worst = f"{name}: {int((got != want.to(rounding)).sum())} of {got.numel()} differ"
    check(f"{kind}: weights", not worst and "quantization_config" not in
          (out / "config.json").read_text(), worst or f"{count} numbers")
    half = LlamaForCausalLM(net.config).eval()
    half.load_state_dict({k: v.half().float() for k, v in net.state_dict().items()} | ours)
    want = np.array(likelihood(half, ids))
    for dtype, limit in (["--dtype", "float32"], LIMIT), ([], ROUNDED):
        got = conquer("score", "--model_path", folder, "--token_ids", ",".join(map(str, ids)),
                      "--device", "cpu", "--json", *dtype)[0]["token_nll"]
        off = np.abs(np.array(got) - want)
        off = off.max() if dtype else off.mean()
        check(f"{kind}: score {' '.join(dtype)}", off < limit, f"off by {off:.1e}")


def small(folder, kind, seed):
    rng = np.random.default_rng(seed)
    net = model(seed)
    ids = [int(i) for i in rng.integers(0, 320, 40)]
    parts = kind.split("-")
    changed, values, rounding = {}, {}, torch.float32
    body = {n: m for n, m in linears(net).items() if n != "lm_head"}
    if parts[0] == "gptq":
        bits, size = int(parts[1]), int(parts[2].replace("all", "-1"))
        order, sym, bf16 = "act" in parts, "sym" in parts, "bf16" in parts
        version = 2 if "v2" in parts else 1
        rounding = torch.bfloat16 if bf16 else torch.float16
        some = linears(net) if "head" in parts else body
        for name, m in some.items():
            own = {2: 4, 4: 8, 8: 2}[bits] if "dynamic" in parts and "down" in name else bits
            changed[name], values[name] = gptq(rng, *m.weight.shape, own, size,
                                               order or own != bits, sym, version, bf16)
        write(folder, net, changed, {"quant_method": "gptq", "bits": bits, "group_size": size,
                                     "desc_act": order, "sym": sym,
                                     "checkpoint_format": "gptq_v2" if version == 2 else "gptq"})
    elif parts[0] == "awq":
        size = int(parts[1])
        rounding = torch.float16
        for name, m in body.items():
            if "skip" in parts and "k_proj" in name:
                continue
            changed[name], values[name] = awq(rng, *m.weight.shape, size)
        write(folder, net, changed, {"quant_method": "awq", "bits": 4, "group_size": size,
                                     "version": "gemm", "zero_point": True,
                                     "modules_to_not_convert": ["k_proj"] if "skip" in parts
                                     else None})
    else:
        scheme, shape = parts
        for name, m in body.items():
            n, d = m.weight.shape
            grid = {"block": (-(-n // 128), -(-d // 128)), "tensor": (1, ),
                    "channel": (n, 1)}[shape]
            scale = torch.tensor(rng.uniform(0.5, 1.5, grid) * 0.0004).float()
            key = "weight_scale_inv" if scheme == "fp8" else "weight_scale"
            if scheme == "compressed":
                scale = scale.bfloat16()
            changed[name] = {"weight": float8(rng, n, d), key: scale}
            if shape == "tensor":
                changed[name]["input_scale" if scheme != "fp8" else "activation_scale"] = \
                    torch.ones(())
        if scheme == "compressed":
            strategy = {"strategy": shape, "num_bits": 8, "type": "float", "symmetric": True,
                        "dynamic": False}
            if shape == "block":
                strategy["block_structure"] = [128, 128]
            quantization = {"quant_method": "compressed-tensors", "format": "float-quantized",
                            "quantization_status": "compressed", "ignore": ["lm_head"],
                            "config_groups": {"group_0": {
                                "targets": ["Linear"], "weights": strategy,
                                "input_activations": None}}}
        elif scheme == "fbgemm":
            quantization = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"],
                            "activation_scale_ub": 1200.0}
        else:
            quantization = {"quant_method": "fp8", "activation_scheme": "dynamic",
                            "weight_block_size": [128, 128] if shape == "block" else None,
                            "modules_to_not_convert": ["lm_head"]}
        write(folder, net, changed, quantization)
        values = peers(folder, scheme, shape, changed)
        rounding = next(iter(values.values())).dtype
    compare(kind, folder, net, values, rounding, ids)


def peers(folder, scheme, shape, changed):
    if scheme == "fp8":
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        state = loaded.state_dict()
        return {name: state[name + ".weight"] for name in changed}
    if scheme == "fbgemm":  # its kernels need a GPU; they multiply by the scale of the row
        return {n: s["weight"].float() * s["weight_scale"] for n, s in changed.items()}
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    more = {"block_structure": [128, 128]} if shape == "block" else {}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(
        num_bits=8, type="float", strategy=shape, symmetric=True, **more))
    compressor = BaseCompressor.get_value_from_registry("float-quantized")
    return {n: compressor.decompress({k: s[k] for k in ("weight", "weight_scale")},
                                     scheme)["weight"] for n, s in changed.items()}


KINDS = ["gptq-4-128", "gptq-4-128-sym-act", "gptq-4-32-v2", "gptq-4-64-act-head", "gptq-4-all-sym",
         "gptq-2-64", "gptq-3-128", "gptq-3-32-v2-act", "gptq-8-128-sym", "gptq-8-32-act-bf16",
         "gptq-4-128-dynamic", "awq-128", "awq-32-skip", "fp8-block", "fp8-tensor",
         "fbgemm-channel", "compressed-tensor", "compressed-channel", "compressed-block"]

if __name__ == "__main__":
    run(__doc__, KINDS, small, lambda work: None)
