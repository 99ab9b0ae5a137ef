#!/usr/bin/env python3
"""Runs lm-evaluation-harness through `conquer serve` (local-completions one request at a time, in
batches and concurrently, as tokens and as text; local-chat-completions) and compares its numbers
with those of its hf backend in float32 and of `conquer eval`: accuracies to the last digit,
log-likelihoods to 1e-4, generated texts exactly.

    python tools/parity/lm_eval_serve.py --conquer build/bin/conquer
"""

import logging
import os

os.environ["HF_DATASETS_OFFLINE"] = "1"

import harness
from eval_tasks import compare, run
from harness import conquer, options
from serve_clients import KEY, serving

# How local-completions asks.
WAYS = {"single": {}, "batches": {"batch_size": 4}, "concurrent": {"num_concurrent": 8},
        "texts": {"tokenized_requests": False, "batch_size": 2}}
# The runs of tools/fixtures/eval_cases.py, and the way of each.
SCORED = {"hellaswag": "single", "hellaswag-2": "concurrent", "arc_easy-2": "batches",
          "openbookqa": "texts", "piqa": "batches", "winogrande-2": "single", "boolq": "concurrent",
          "lambada_openai": "batches", "truthfulqa_mc1": "concurrent", "gsm8k-2": "concurrent",
          "wikitext": "single", "bodies-2": "concurrent", "animals": "texts",
          "animals_mutual": "concurrent", "animals-half": "batches"}
CHATS = ["chat:gsm8k", "single:gsm8k"]
LIMIT = {"max_gen_toks": 24}  # of generated answers


def clients(url, folder):
    """lm-eval's models that ask the server."""
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
    made = {}
    for way, settings in WAYS.items():
        made[way] = LocalCompletionsAPI(
            model="m", base_url=f"{url}/v1/completions", tokenizer=folder, eos_string="<|im_end|>",
            tokenizer_backend="huggingface", **settings)
    chat = LocalChatCompletion(model="m", base_url=f"{url}/v1/chat/completions",
                               eos_string="<|im_end|>", num_concurrent=2)
    return made, chat


def real(work):
    """The given model, as a folder that transformers reads."""
    import eval_cases
    from lm_eval.models.huggingface import HFLM
    os.environ["OPENAI_API_KEY"] = KEY
    folder = str(work / "model")
    conquer("export", "--model_path", options.model, "--output_path", folder, "--dtype", "float32")
    eval_cases.write(work)
    logging.disable(logging.WARNING)
    hf = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=1)
    with serving(options.conquer, folder) as url:
        ways, chat = clients(url, folder)
        for name, task, tasks, settings in eval_cases.runs(work):
            if name not in SCORED and name not in CHATS:
                continue
            settings = {"bootstrap_iters": 1000, **settings}
            generated = LIMIT if "gsm8k" in name else None
            way = SCORED.get(name, "chat")
            got = eval_cases.evaluate(ways.get(way, chat), task, settings, generated)
            compare(f"{name} ({way}) beside hf", got,
                    eval_cases.evaluate(hf, task, settings, generated))
            extra = ["--gen_kwargs", "max_gen_toks=24"] if generated else []
            compare(f"{name} ({way}) beside conquer eval", got, run(work, tasks, settings, extra))


if __name__ == "__main__":
    harness.run(__doc__, [], None, real)
