#!/usr/bin/env python3
"""Compares conquer's generated text, scores, exports and adapters with transformers and PEFT.

    python tools/parity/generate_greedy.py [--conquer BINARY] [--model smollm2-135m] [--seeds 1]

Random small models of every kind in tools/fixtures/llama.py give the same greedy tokens and each
token's log-likelihood within 1e-4, also with a sliding window and with the settings of a
generation_config.json; the same holds with a random PEFT adapter and with that adapter
merged by `conquer export`. The exported folder of the real model loads in transformers, generates
the same greedy text with and without the chat template, one by one and in a batch, and scores a
text within 1e-3. Exporting the export changes no bit. Needs torch, transformers, peft and
safetensors.
"""

import json

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import check, conquer, options, run
import llama as fixtures

PROMPTS = [
    "Once upon a time", "The three primary colours are", "def fibonacci(n):\n", "Ünïcödé 世界 🙂 and",
    "Water boils at", "List of countries:\n1."
]


def token_nll(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return -logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def scores_agree(what, model, ids, *flags, tolerance=1e-4):
    want = token_nll(model, ids)
    got = torch.tensor(
        conquer("score", "--token_ids", ",".join(map(str, ids)), "--device", "cpu", "--json",
                *flags)[0]["token_nll"])
    worst = ((got - want).abs() / want.abs().clamp(min=1)).max().item()
    check(what, worst < tolerance, f"worst {worst:.1e}")


def greedy(model, ids, n, **more):
    x = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n,
                             do_sample=False, **more)
    return out[0, len(ids):].tolist()


def sliding_window(what, model, ids, window, stride, *flags):
    """The loop of transformers' guide to the perplexity of models with a fixed length."""
    want, previous = [], 1
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        want.append(token_nll(model, ids[begin:end])[previous - begin - 1:])
        previous = end
        if end == len(ids):
            break
    want = torch.cat(want)
    got = conquer("score", "--token_ids", ",".join(map(str, ids)), "--device", "cpu", "--json",
                  "--window", window, "--stride", stride, *flags)[0]
    worst = ((torch.tensor(got["token_nll"]) - want).abs() / want.abs().clamp(min=1)).max().item()
    check(what, worst < 1e-4 and abs(got["nll"] - want.mean().item()) < 1e-4,
          f"worst {worst:.1e}")


def settings(what, folder, model, ids, n=24):
    """The settings of a generation_config.json that hold for greedy texts too."""
    file = folder / "generation_config.json"
    before = file.read_bytes() if file.exists() else None
    plain = greedy(model, ids, n)
    for values in ({"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2},
                   {"suppress_tokens": plain[:3], "begin_suppress_tokens": plain[3:5]},
                   {"bad_words_ids": [plain[:1], plain[1:3]]},
                   {"eos_token_id": plain[4], "min_new_tokens": 9},
                   {"eos_token_id": [plain[4], plain[5]], "min_length": len(ids) + 7},
                   {"do_sample": False, "temperature": 0.3, "top_k": -1, "typical_p": 0.5}):
        file.write_text(json.dumps(values))
        got = conquer("generate", "--model_path", folder, "--token_ids", ",".join(map(str, ids)),
                      "--max_new_tokens", n, "--device", "cpu", "--json")[0]
        more = {k: v for k, v in values.items()
                if k not in ("do_sample", "temperature", "top_k", "typical_p")}
        check(f"{what}: {', '.join(values)}", got["token_ids"] == greedy(model, ids, n, **more))
    file.unlink() if before is None else file.write_bytes(before)


def small(folder, kind, seed):
    fixtures.write(folder, kind, seed, vary=seed > 0)
    expected = load_file(folder / "expected.safetensors")
    (folder / "expected.safetensors").unlink()
    ids = expected["ids"].tolist()
    name = f"{kind}, seed {seed}"
    text = ",".join(map(str, ids))
    got = conquer("generate", "--model_path", folder, "--token_ids", text, "--max_new_tokens",
                  len(expected["greedy"]), "--device", "cpu", "--json")
    check(f"{name}: greedy tokens", got[0]["token_ids"] == expected["greedy"].tolist())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    long = torch.randint(0, model.config.vocab_size, (100,)).tolist()
    scores_agree(f"{name}: log-likelihoods", model, long, "--model_path", folder)
    for window, stride in ((32, 10), (48, 47), (16, 1)):
        sliding_window(f"{name}: window {window}, stride {stride}", model, long, window, stride,
                       "--model_path", folder)
    settings(name, folder, model, ids)

    from peft import LoraConfig, get_peft_model
    modules = ["q_proj", "v_proj", "down_proj"] if seed % 2 else "all-linear"
    tuned = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for n, p in tuned.named_parameters():
            if "lora_" in n:
                p.normal_(0, 0.2)
    tuned.save_pretrained(folder / "adapter")
    scores_agree(f"{name}: with an adapter", tuned, long, "--model_path", folder, "--adapter_path",
                 folder / "adapter")
    conquer("export", "--model_path", folder, "--adapter_path", folder / "adapter", "--output_path",
            folder / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)
    worst = (merged(torch.tensor([long])).logits -
             tuned(torch.tensor([long])).logits).abs().max().item()
    check(f"{name}: exported with the adapter merged", worst < 1e-3, f"worst logit {worst:.1e}")


def real(folder):
    first, second = folder / "first", folder / "second"
    conquer("export", "--model_path", options.model, "--output_path", first, "--shard_size",
            "200MB")
    conquer("export", "--model_path", first, "--output_path", second, "--shard_size", "200MB")
    same = all((second / f.name).read_bytes() == f.read_bytes() for f in first.iterdir())
    check("exporting the export changes no bit", same
          and len(list(first.iterdir())) == len(list(second.iterdir())))

    model = AutoModelForCausalLM.from_pretrained(first, dtype=torch.float32)
    tok = AutoTokenizer.from_pretrained(first)
    flags = [f for p in PROMPTS for f in ("--prompt", p)]
    batch = conquer("generate", "--model_path", options.model, "--dtype", "float32", "--device",
                    "cpu", "--max_new_tokens", 32, "--json", *flags)
    for prompt, got in zip(PROMPTS, batch):
        ids = tok(prompt)["input_ids"]
        want = greedy(model, ids, 32)
        check(f"greedy after {prompt!r}, in a batch", got["token_ids"] == want
              and got["prompt_tokens"] == len(ids))
        check("  its text", got["text"] == tok.decode(want, skip_special_tokens=True))
    for i, prompt in enumerate(PROMPTS[:2]):
        alone = conquer("generate", "--model_path", first, "--device", "cpu", "--prompt", prompt,
                        "--max_new_tokens", 32, "--json", f"--use_cache={'false' if i else 'true'}")
        check(f"greedy after {prompt!r}, alone, from the exported folder",
              alone[0]["token_ids"] == batch[i]["token_ids"])
    penalty = conquer("generate", "--model_path", first, "--device", "cpu", "--prompt", PROMPTS[0],
                      "--max_new_tokens", 32, "--json", "--repetition_penalty", 1.3)
    check(
        "greedy with a repetition penalty",
        penalty[0]["token_ids"] == greedy(model,
                                          tok(PROMPTS[0])["input_ids"], 32, repetition_penalty=1.3))
    if tok.chat_template:
        question = "What is the capital of France?"
        ids = tok.apply_chat_template([{
            "role": "user",
            "content": question
        }], add_generation_prompt=True, return_dict=False)
        got = conquer("generate", "--model_path", options.model, "--dtype", "float32", "--device",
                      "cpu", "--chat", "--prompt", question, "--max_new_tokens", 32, "--json")
        check("greedy answer through the chat template",
              got[0]["token_ids"] == greedy(model, ids, 32))
    text = open(__file__).read()[:4000]
    file = folder / "text.txt"
    file.write_text(text)
    got = conquer("score", "--model_path", options.model, "--dtype", "float32", "--device", "cpu",
                  "--text_file", file, "--json")[0]
    x = tok(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(x, labels=x).loss.item()
    check("score of a text",
          abs(got["nll"] - loss) < 1e-3 and got["tokens"] == x.shape[1] - 1,
          f"{got['nll']:.6f} and {loss:.6f}")


if __name__ == "__main__":
    run(__doc__, fixtures.KINDS, small, real)
