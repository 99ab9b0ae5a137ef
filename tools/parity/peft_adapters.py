#!/usr/bin/env python3
"""Compares how conquer reads adapters with PEFT's own reload of them.

    python tools/parity/peft_adapters.py [--conquer BINARY] [--seeds 1]

For random small Llama, Mamba-2 and Bamba models, PEFT makes adapters with each option of LoraConfig
and with other methods, at random ranks, alphas and targets. conquer must give the likelihoods of
PEFT's reload, or refuse the adapter and name the field. Adapters that conquer makes must load in
PEFT by the name of their base. Needs torch, transformers and peft.
"""

import json
import random
import subprocess
import warnings

import peft
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import (AutoModelForCausalLM, AutoTokenizer, BambaConfig, BambaForCausalLM,
                          LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM)
from transformers.utils import logging

from harness import ROOT, check, conquer, options, run

warnings.filterwarnings("ignore")
logging.disable_progress_bar()
IDS = [3, 9, 27, 81, 243, 111, 333, 5, 15, 45, 135, 405, 17, 51, 153]
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "tied": ["q_proj", "down_proj"],
    "mamba2": ["in_proj"],
    "bamba": ["q_proj", "o_proj", "in_proj", "out_proj", "gate_proj", "down_proj"],
}


def base_model(kind, seed):
    torch.manual_seed(seed)
    common = dict(vocab_size=512, hidden_size=64, initializer_range=0.1,
                  tie_word_embeddings=kind == "tied")
    if kind in ("llama", "tied"):
        return LlamaForCausalLM(
            LlamaConfig(**common, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, attention_bias=True))
    if kind == "mamba2":
        return Mamba2ForCausalLM(
            Mamba2Config(**common, num_hidden_layers=3, num_heads=8, head_dim=16, state_size=16,
                         n_groups=1, expand=2, chunk_size=16))
    return BambaForCausalLM(
        BambaConfig(**common, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=16,
                    mamba_d_state=16, mamba_n_groups=1, mamba_expand=2, mamba_chunk_size=16))


def cases(kind, rng):
    """Yields (name, options of LoraConfig or another config, how it is saved)."""
    names = TARGETS[kind]
    some = rng.sample(names, rng.randint(1, len(names)))
    one = some[0]
    embedding = "embeddings" if kind == "mamba2" else "embed_tokens"
    for name, more in {
            "plain": {},
            "all-linear": {} if kind == "mamba2" else {"target_modules": "all-linear"},
            "regular expression": {"target_modules": rf".*layers\.[01]\..*{one}"},
            "rslora": {"use_rslora": True},
            "rank pattern": {"rank_pattern": {one: 3, r"layers\.1\..*": 5}},
            "alpha pattern": {"alpha_pattern": {rf"layers.[02].*{one}": 21, one: 2}},
            "both patterns, rslora": {"rank_pattern": {one: 3}, "use_rslora": True,
                                      "alpha_pattern": {r"^.*\.1\..*": 40}},
            "layers to transform": {"layers_to_transform": [0, 2]},
            "one layer": {"layers_to_transform": 1, "layers_pattern": "layers"},
            "excluded": {"target_modules": names, "exclude_modules": rf".*\.1\..*{one}"},
            "dropout": {"lora_dropout": 0.3},
            "fan_in_fan_out": {"fan_in_fan_out": True},
            "bias all": {"bias": "all"},
            "bias lora_only": {"bias": "lora_only"},
            "init false": {"init_lora_weights": False},
            "init gaussian": {"init_lora_weights": "gaussian"},
            "init orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
            "init mica": {"init_lora_weights": "mica"},
            "init pissa": {"init_lora_weights": "pissa"},
            "init pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
            "init olora": {"init_lora_weights": "olora"},
            "dora": {"use_dora": True},
            "lora_bias": {"lora_bias": True},
            "head saved": {"modules_to_save": ["lm_head"]},
            "embedding saved": {"modules_to_save": [embedding]},
            "both saved": {"modules_to_save": [embedding, "lm_head"]},
            "tied and saved": {"modules_to_save": [embedding], "ensure_weight_tying": True},
            "norms saved": {"modules_to_save": ["norm_f" if kind == "mamba2" else "norm"]},
            "trainable tokens": {"trainable_token_indices": [81, 5]},
            "tokens of both": {"trainable_token_indices": {embedding: [81, 5], "lm_head": [3]}},
            "the same tokens of both": {"trainable_token_indices": {embedding: [81, 5],
                                                                    "lm_head": [81, 5]}},
            "tokens of the head": {"trainable_token_indices": {"lm_head": [81, 5]}},
            "activated": {"alora_invocation_tokens": [81, 243], "task_type": "CAUSAL_LM"},
            "replicated layers": {"layer_replication": [[0, 2], [1, 3]]},
            "head": {"target_modules": some + ["lm_head"]},
            "sequence classification": {"task_type": "SEQ_CLS"},
            "no task": {"task_type": None},
    }.items():
        settings = dict(r=rng.randint(1, 8), lora_alpha=rng.randint(1, 32), target_modules=some,
                        task_type="CAUSAL_LM")
        settings.update(more)
        yield name, LoraConfig, settings, {}
    plain = dict(r=4, lora_alpha=8, target_modules=some, task_type="CAUSAL_LM")
    yield "adapter_model.bin", LoraConfig, plain, {"safe_serialization": False}
    yield "embeddings beside", LoraConfig, plain, {"save_embedding_layers": True}
    for method, more in {"IA3Config": {"feedforward_modules": []}, "LoHaConfig": {},
                         "LoKrConfig": {}, "AdaLoraConfig": {"total_step": 10},
                         "VeraConfig": {}, "OFTConfig": {"oft_block_size": 4}}.items():
        settings = dict(target_modules=[one], task_type="CAUSAL_LM") | more
        yield method, getattr(peft, method), settings, {}
    yield "PromptTuningConfig", peft.PromptTuningConfig, dict(num_virtual_tokens=3,
                                                              task_type="CAUSAL_LM"), {}


def nll(model):
    ids = torch.tensor([IDS])
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:])


def randomize(model, adapter_config):
    """Gives all trained weights values that change the output."""
    for name, p in model.named_parameters():
        if p.requires_grad or "lora_" in name:
            p.data += 0.05 * torch.randn_like(p) * p.std().clamp(min=1.0)


def score(*args):
    done = subprocess.run([
        options.conquer, "score", "--dtype", "float32", "--device", "cpu", "--json", "--token_ids",
        ",".join(map(str, IDS)), *map(str, args)
    ], capture_output=True, text=True)
    return (json.loads(done.stdout)["nll"], "") if done.returncode == 0 else (None, done.stderr)


def read_adapters(folder, kind, seed):
    rng = random.Random(100 * seed + len(kind))
    folder = folder.resolve()
    base = folder / "base"
    base_model(kind, seed).save_pretrained(base)
    before = nll(AutoModelForCausalLM.from_pretrained(base).eval()).item()
    for name, config_class, settings, saving in cases(kind, rng):
        torch.manual_seed(seed)
        adapter = folder / name.replace(" ", "-")
        model = AutoModelForCausalLM.from_pretrained(base)
        try:
            tuned = get_peft_model(model, config_class(**settings))
        except (ValueError, TypeError, ImportError, AttributeError, IndexError) as error:
            print(f"-     {kind}: {name}: PEFT makes none: {str(error)[:90]}")
            continue
        randomize(tuned, settings)
        tuned.save_pretrained(adapter, **saving)
        got, error = score("--model_path", adapter)
        if got is None:
            fields = json.loads((adapter / "adapter_config.json").read_text())
            named = 'tensor "' in error or any(f" {field} is " in error for field in fields)
            check(f"{kind}: {name}: refused by name", named and str(adapter) in error,
                  error.strip()[-150:])
            continue
        reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base),
                                             adapter).eval()
        want = nll(reloaded).item()
        check(f"{kind}: {name}: likelihoods of PEFT's reload", abs(got - want) < 2e-5 * abs(want),
              f"{got:.6f}, PEFT {want:.6f}, the base {before:.6f}")
        both = score("--model_path", base, "--adapter_path", adapter)[0]
        merged = folder / f"{adapter.name}-merged"
        conquer("export", "--model_path", adapter, "--output_path", merged)
        check(f"{kind}: {name}: the same with --adapter_path and exported",
              both == got and abs(score("--model_path", merged)[0] - got) < 2e-5 * abs(got))


def own_adapters(folder, kind, seed):
    """conquer's adapters with default targets load in PEFT, also by the name of their base."""
    folder = folder.resolve()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "text/tokenizer/testdata/smollm")
    base = folder / "tuned-base"
    model = base_model(kind, seed)
    model.resize_token_embeddings(704)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    before = nll(AutoModelForCausalLM.from_pretrained(base).eval()).item()
    first, last = TARGETS[kind][0], TARGETS[kind][-1]
    for name, flags in {
            "plain": [],
            "rsLoRA and patterns": ["--lora_rslora", "--lora_rank_pattern", f"{last}=2",
                                    "--lora_rank_pattern", rf"layers\.[12]\..*=9",
                                    "--lora_alpha_pattern", f"{first}=3"],
            "some layers": ["--lora_layers", "0,2", "--lora_exclude", f"layers.0.mixer.{first}"
                            if kind == "mamba2" else f"layers.0.self_attn.{first}"]
            if kind != "bamba" else ["--lora_layers", "1,2", "--lora_exclude", last],
            "DoRA": ["--lora_dora", "--lora_dropout", "0.2"],
            "PiSSA": ["--lora_init", "pissa"],
            "PiSSA, rsLoRA, patterns": ["--lora_init", "pissa", "--lora_rslora",
                                        "--lora_rank_pattern", f"{first}=6",
                                        "--lora_alpha_pattern", f"{first}=3"],
            "DoRA from PiSSA": ["--lora_init", "pissa", "--lora_dora"],
            "embedding": ["--lora_save", "embeddings" if kind == "mamba2" else "embed_tokens"],
            "head": ["--lora_save", "lm_head"],
            "tokens": ["--lora_tokens", "81,5,27"],
            "tokens further": ["--adapter_path", "own-tokens"],
            "further": ["--adapter_path", "own-plain"],
            "DoRA further": ["--adapter_path", "own-DoRA"],
    }.items():
        adapter = folder / f"own-{name.replace(' ', '-')}"
        rank = [] if "--adapter_path" in flags else ["--lora_rank", "4"]
        done = subprocess.run([
            options.conquer, "train", "--model_path", "tuned-base", "--data_path",
            str(ROOT / "examples/lighthouse/heldout.jsonl"), "--output_path", adapter.name,
            "--steps", "2", "--batch_size", "2", "--learning_rate", "0.05", "--sequence_length",
            "64", "--device", "cpu", *rank, *flags
        ], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            check(f"{kind}: conquer trains an adapter: {name}", False, done.stderr)
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
        missing = [str(w.message) for w in caught if "missing" in str(w.message)]
        want = nll(model).item()
        got, error = score("--model_path", adapter)
        check(f"{kind}: PEFT opens conquer's adapter and its base: {name}",
              got is not None and abs(got - want) < 2e-5 * abs(want) and not missing
              and abs(want - before) > 1e-3,
              f"{got}, PEFT {want}, the base {before} {error} {missing}")


def new_tokens(folder, kind, seed):
    """PEFT gives the base rows for the tokens that conquer adds, and the adapter fills them."""
    folder = folder.resolve()
    base, model = folder / "base-of-700", base_model(kind, seed)
    model.resize_token_embeddings(700)
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(ROOT / "text/tokenizer/testdata/llama3").save_pretrained(base)
    ids, text = [5, 700, 9, 81, 701, 700, 17], "a<lamp>b fog horn"
    save = "lm_head," + ("embeddings" if kind == "mamba2" else "embed_tokens")
    for name, flags in {"rows": [], "embeddings": ["--lora_save", save]}.items():
        adapter = folder / f"new-{name}"
        conquer("train", "--model_path", base, "--data_path",
                ROOT / "examples/lighthouse/heldout.jsonl", "--output_path", adapter, "--steps", 2,
                "--batch_size", 2, "--learning_rate", 0.05, "--sequence_length", 64, "--device",
                "cpu", "--lora_rank", 4, "--add_tokens", "<lamp>,fog horn", *flags)
        tuned = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
        with torch.no_grad():
            logits = tuned(torch.tensor([ids])).logits[0, :-1].float()
        want = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()
        done = conquer("score", "--dtype", "float32", "--device", "cpu", "--json", "--token_ids",
                       ",".join(map(str, ids)), "--model_path", adapter)
        theirs = AutoTokenizer.from_pretrained(adapter)(text).input_ids
        check(f"{kind}: new tokens, {name}", abs(done[0]["nll"] - want) < 2e-5 * want
              and {700, 701} <= set(theirs), f"{done[0]['nll']}, PEFT {want}, {text!r} is {theirs}")


def small(folder, kind, seed):
    read_adapters(folder, kind, seed)
    own_adapters(folder, kind, seed)
    new_tokens(folder, kind, seed)


if __name__ == "__main__":
    run(__doc__, list(TARGETS), small, lambda work: None)
