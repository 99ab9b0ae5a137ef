"""Times conquer and transformers on one GPU, in one run: the table of docs/performance.md.

    gpu.py BINARY [work ...] [--results FOLDER]

work: decode7b decode7b-b8 decode7b-b32 decode7b-16k decode8b bamba9b train1b lora7b train7b
trainbamba1b (default: all; work that does not fit the card says so).

Weights and tokens are random, of the named sizes; weights are bfloat16. Decoding: a prompt of 1,024
tokens, then 128 new ones (64 after 32 prompts, or after one of 16,000); milliseconds per token are
of the steps alone. transformers runs as installed (eager), and Llama also with a static cache and
torch.compile, as its documentation recommends; --no_compile leaves that out, which compiles for a
minute. Training: AdamW on 4 x 2,048 tokens (train7b: 2), conquer with float32 master weights and,
if marked stochastic, without. --results writes FOLDER/speed_gpu.json for `conquer bench report`.
"""
import argparse
import gc
import json
import statistics
import subprocess
import sys
import time

from results import save

LLAMA7B = dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=16384)
LLAMA8B = dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192)
LLAMA1B = dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
               num_attention_heads=32, num_key_value_heads=8, head_dim=64,
               max_position_embeddings=8192, tie_word_embeddings=True)
BAMBA9B = dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=8, attn_layer_indices=[9, 18, 27])
BAMBA1B = dict(vocab_size=128256, hidden_size=2048, intermediate_size=5632, num_hidden_layers=16,
               num_attention_heads=32, num_key_value_heads=8, attn_layer_indices=[8],
               mamba_n_heads=64, mamba_d_head=64, mamba_d_state=128, mamba_expand=2,
               tie_word_embeddings=True)
rows = []


def report(work, who, how, **figures):
    rows.append(dict(work=work, who=who, how=how, **figures))
    print(
        f"{work:12s} {who:13s} {how:28s} " + "  ".join(f"{k} {v:,.2f}"
                                                       for k, v in figures.items() if v),
        flush=True)


def conquer(binary, *arguments):
    done = subprocess.run([
        binary, "bench", *map(str, arguments), "--device", "cuda", "--dtype", "bfloat16", "--json"
    ], capture_output=True, text=True)
    if done.returncode:
        print("conquer:", done.stderr.strip()[-300:], flush=True)
        return []
    return [json.loads(line) for line in done.stdout.splitlines()]


def decode(binary, work, architecture, variant, batch, length, new):
    for r in conquer(binary, "inference", "--architecture", architecture, "--variant", variant,
                     "--batch_size", batch, "--seq_len", length, "--max_new_tokens", new,
                     "--repeat", 2, "--skip_nokvcache_runs"):
        report(work, "conquer", {
            "none": "eager",
            "graph": "recorded"
        }[r["compile"]], token_ms=r["single_token_ms"], prefill_ms=r["first_token_ms"],
               peak_gb=r["peak_bytes"] / 1e9)


def decode_peer(work, make, batch, length, new, **options):
    import torch
    torch.cuda.reset_peak_memory_stats()
    model = make()
    ids = torch.randint(0, 32000, (batch, length), device="cuda")

    def run(n):
        torch.cuda.synchronize()
        began = time.time()
        with torch.no_grad():
            model.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, **options)
        torch.cuda.synchronize()
        return (time.time() - began) * 1e3

    began = time.time()
    run(8), run(new)
    warm = time.time() - began
    one, all_ = min(run(1) for _ in range(2)), min(run(new) for _ in range(2))
    how = "static cache, torch.compile" if options else "eager"
    report(work, "transformers", how, token_ms=(all_ - one) / (new - 1), prefill_ms=one,
           peak_gb=torch.cuda.max_memory_allocated() / 1e9, warm_s=warm)
    del model
    free()


def free():
    import torch
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()


def train(binary, work, variant, batch, *options):
    architecture = "bamba" if "bamba" in work else "llama"
    for r in conquer(binary, "train", "--architecture", architecture, "--variant", variant,
                     "--batch_size", batch, "--steps", 6, *options):
        report(work, "conquer", " ".join(o for o in options if o.startswith("--"))
               or "float32 master weights", tok_per_s=r["tokens_per_s"], step_ms=r["step_ms"],
               peak_gb=r["peak_bytes"] / 1e9)


def train_peer(work, config, batch, compiled, lora=False):
    import torch
    from transformers import BambaConfig, BambaForCausalLM, LlamaConfig, LlamaForCausalLM
    torch.cuda.reset_peak_memory_stats()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = BambaForCausalLM(BambaConfig(
            **config)) if config is BAMBA1B else LlamaForCausalLM(LlamaConfig(**config))
    model.train()
    model.config.use_cache = False
    if lora:
        from peft import LoraConfig, get_peft_model
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules=targets, lora_dropout=0.0))
    step = torch.compile(model) if compiled else model
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5,
                             fused=True)
    ids = torch.randint(0, config["vocab_size"], (batch, 2048), device="cuda")
    times = []
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.time()
        step(input_ids=ids, labels=ids).loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        times.append(time.time() - began)
    seconds = statistics.median(times[2:])
    report(work, "transformers", "torch.compile" if compiled else "eager",
           tok_per_s=batch * 2048 / seconds, step_ms=seconds * 1e3,
           peak_gb=torch.cuda.max_memory_allocated() / 1e9, warm_s=times[0])
    del model, step, adam
    free()


def llama(config):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return LlamaForCausalLM(LlamaConfig(**config)).eval()


def bamba():
    import torch
    from transformers import BambaConfig, BambaForCausalLM
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return BambaForCausalLM(BambaConfig(**BAMBA9B)).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("work", nargs="*")
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--no_peers", action="store_true")
    parser.add_argument("--results")
    o = parser.parse_args()
    static = {} if o.no_compile else dict(cache_implementation="static")
    llama7b = lambda: llama(LLAMA7B)

    def decoding(work, architecture, variant, batch, length, new, make):
        decode(o.binary, work, architecture, variant, batch, length, new)
        if o.no_peers:
            return
        decode_peer(work, make, batch, length, min(new, 32) if make is bamba else new)
        if static and make is not bamba:
            decode_peer(work, make, batch, length, new, **static)

    def training(work, variant, config, batch, lora, *more):
        for options in more:
            train(o.binary, work, variant, batch, *options)
        if o.no_peers:
            return
        train_peer(work, config, batch, False, lora)
        if not o.no_compile and not lora and config is not BAMBA1B:
            train_peer(work, config, batch, True)

    works = {
        "decode7b": lambda: decoding("decode7b", "llama", "7b", 1, 1024, 128, llama7b),
        "decode7b-b8": lambda: decoding("decode7b-b8", "llama", "7b", 8, 1024, 128, llama7b),
        "decode7b-b32": lambda: decoding("decode7b-b32", "llama", "7b", 32, 1024, 64, llama7b),
        "decode7b-16k": lambda: decoding("decode7b-16k", "llama", "7b", 1, 16000, 64, llama7b),
        "decode8b": lambda: decoding("decode8b", "llama", "3-8b", 1, 1024, 128, lambda: llama(
            LLAMA8B)),
        "bamba9b": lambda: decoding("bamba9b", "bamba", "9b", 1, 1024, 128, bamba),
        "train1b": lambda: training("train1b", "3.2-1b", LLAMA1B, 4, False, (),
                                    ("--stochastic_rounding", )),
        "lora7b": lambda: training("lora7b", "7b", LLAMA7B, 4, True, ("--lora_rank", "16")),
        "train7b": lambda: training("train7b", "7b", LLAMA7B, 2, False,
                                    ("--stochastic_rounding", )),
        "trainbamba1b": lambda: training("trainbamba1b", "1b", BAMBA1B, 4, False, (),
                                         ("--stochastic_rounding", )),
    }
    import torch
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    for work in o.work or works:
        try:
            works[work]()
        except Exception as e:  # work that does not fit the card does not stop the rest
            print(work, "failed:", repr(e)[:200], flush=True)
            free()
    print(json.dumps(rows))
    if o.results:
        units = dict(token_ms="ms per token", prefill_ms="ms to the first token", step_ms=
                     "ms per step", tok_per_s="tokens/s", peak_gb="GB")
        save(o.results, "speed_gpu", "speed", [
            dict(program=f"{row['who']}, {row['how']}", task=row["work"], dtype="bfloat16",
                 device="cuda", unit=unit, value=row[key])
            for key, unit in units.items() for row in rows if row.get(key)
        ], device="cuda")


if __name__ == "__main__":
    sys.exit(main())
