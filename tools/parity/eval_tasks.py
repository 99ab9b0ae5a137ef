#!/usr/bin/env python3
"""Compares conquer eval with lm-evaluation-harness (its hf backend, float32) on local data of each
task's shape: accuracies to the last digit, log-likelihoods to 1e-4, generated texts exactly.

    python tools/parity/eval_tasks.py --conquer build/bin/conquer
"""

import json
import logging
import os

os.environ["HF_DATASETS_OFFLINE"] = "1"

import harness
from harness import check, conquer, options


def arguments(folder, tasks, settings):
    """conquer's command line for a run of the fixtures."""
    import eval_cases
    args = ["--tasks", ",".join(str(folder / "data" / t) if t.endswith(".yaml") else t
                                for t in tasks)]
    names = [t for t in tasks if not t.endswith(".yaml")]
    if tasks == ["bodies.yaml"]:
        names = [f"mmlu_{s}" for s in eval_cases.MMLU]
    for name in names:
        args += ["--data", f"{name}={folder / 'data' / name.replace('mmlu_', 'mmlu/')}"]
    for name in ("num_fewshot", "limit", "bootstrap_iters", "system_instruction"):
        if settings.get(name) is not None:
            args += [f"--{name}={settings[name]}"]
    for name in ("apply_chat_template", "fewshot_as_multiturn"):
        if settings.get(name) is not None:
            args += [f"--{name}={str(settings[name]).lower()}"]
    return args


def near(a, b, tolerance):
    return isinstance(a, (int, float)) and abs(a - b) <= tolerance * max(1, abs(b))


def compare(name, got, want):
    """Compares the results of a run and each answer."""
    worst, ok = 0.0, True
    for task, samples in want["samples"].items():
        mine = got["samples"][task]
        ok = ok and len(mine) == len(samples)
        for a, b in zip(mine, samples):
            for x, y in zip(a["filtered_resps"], b["filtered_resps"]):
                if isinstance(y, (tuple, list)):
                    ok, x, y = ok and x[1] == y[1], x[0], y[0]
                if isinstance(y, float):
                    worst = max(worst, abs(x - y) / max(1, abs(y)))
                elif x != y:
                    ok = False
                    print(f"      {x!r}\n      {y!r}")
    for task, metrics in want["results"].items():
        for key, value in metrics.items():
            if "," not in key:
                continue
            exact = key.split(",")[0].startswith(("acc", "exact_match"))
            x = got["results"][task].get(key)
            same = x == value if isinstance(value, str) else near(x, value,
                                                                  1e-12 if exact else 1e-3)
            if not same:
                ok = False
                print(f"      {task} {key}: {x}, lm-eval {value}")
    check(f"lm-eval {name}", ok and worst <= 1e-4, f"log-likelihoods differ by {worst:.1e}")


def real(work):
    """The given model, as a folder that transformers reads."""
    import eval_cases
    from lm_eval.models.huggingface import HFLM
    logging.disable(logging.WARNING)
    conquer("export", "--model_path", options.model, "--output_path", work / "model", "--dtype",
            "float32")
    peer = HFLM(pretrained=str(work / "model"), dtype="float32", device="cpu", batch_size=1)
    eval_cases.write(work)
    for name, task, tasks, settings in eval_cases.runs(work):
        settings = {"bootstrap_iters": 1000, **settings}
        want = eval_cases.evaluate(peer, task, settings, {"max_gen_toks": 24}
                                   if "gsm8k" in name else None)
        extra = ["--gen_kwargs", "max_gen_toks=24"] if "gsm8k" in name else []
        compare(name, run(work, tasks, settings, extra), want)


def run(work, tasks, settings, extra):
    out = work / "results.json"
    conquer("eval", "--model_path", work / "model", *arguments(work, tasks, settings),
            "--log_samples", "--output_path", out, "--device", "cpu", *extra)
    return json.loads(out.read_text())


if __name__ == "__main__":
    harness.run(__doc__, [], None, real)
