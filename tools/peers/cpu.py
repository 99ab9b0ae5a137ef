"""Speed on the CPU beside transformers: SmolLM2-135M with the same weights, dtype and threads.

usage: cpu.py CONQUER BENCHMARK [--rounds N] [--dtype float32 --dtype bfloat16] [--json FILE]
              [--results FOLDER]

CONQUER is the program, BENCHMARK the compiled tests of package generate. Each round measures both
sides in turn, so that a machine whose speed drifts affects both. The table has medians and, in
brackets, minimum and maximum. Both sides are warm. Prefill is a prompt of 512 tokens up to the
first new token, decode the mean over 64 new tokens after it; each is the best of three. A training
step is forward pass, backward pass and AdamW on 2 rows of 256 tokens with a loss on every token; it
is the median of six. --results writes FOLDER/speed_cpu.json for `conquer bench report`.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM, __version__

from results import save

PROMPT, NEW, ROWS, LENGTH, STEPS = 512, 64, 2, 256, 8


def conquer_generate(benchmark, model, dtype):
    command = [
        benchmark, "-test.run", "^$", "-test.bench", f"BenchmarkGenerate/{dtype}$",
        "-test.benchtime", "3x"
    ]
    out = subprocess.run(command, check=True, capture_output=True, text=True,
                         env=dict(os.environ, CONQUER_BENCH_MODEL=model)).stdout
    rate = lambda name: float(re.search(rf"([0-9.]+) {name}_tok/s", out)[1])
    return {"prefill": rate("prefill"), "decode": rate("decode")}


def conquer_train(binary, model, dtype, threads, text):
    with tempfile.TemporaryDirectory() as folder:
        command = [
            binary, "train", "--model_path", model, "--data_path", text, "--output_path",
            folder + "/out", "--steps",
            str(STEPS), "--batch_size",
            str(ROWS), "--sequence_length",
            str(LENGTH), "--pack", "--dtype", dtype, "--device", "cpu", "--threads",
            str(threads), "--report_steps", "1", "--checkpoint_steps", "0", "--validation_fraction",
            "0"
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        rows = [json.loads(line) for line in open(folder + "/out/metrics.jsonl")]
    rates = [row["tokens"] / row["seconds"] for row in rows if "loss" in row]
    return statistics.median(rates[2:])


def peer(model_path, dtype, ids):
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype)).eval()
    prompt = torch.tensor([ids])

    def timed(f):
        start = time.perf_counter()
        f()
        return time.perf_counter() - start

    result = {}
    with torch.no_grad():
        prefill = lambda: model(prompt, use_cache=True, logits_to_keep=1)
        prefill()
        result["prefill"] = PROMPT / min(timed(prefill) for _ in range(3))
        generate = lambda n: model.generate(prompt, max_new_tokens=n, min_new_tokens=n, do_sample=
                                            False)
        generate(2)
        result["decode"] = max(NEW / (timed(lambda: generate(NEW + 1)) - timed(lambda: generate(1)))
                               for _ in range(3))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step():
        x = torch.randint(0, model.config.vocab_size, (ROWS, LENGTH))
        model(input_ids=x, labels=x, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    result["train"] = ROWS * LENGTH / statistics.median([timed(step) for _ in range(STEPS)][2:])
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conquer")
    parser.add_argument("benchmark")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", action="append")
    parser.add_argument("--json")
    parser.add_argument("--results")
    args = parser.parse_args()
    threads = os.cpu_count()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(int(time.time()))
    work = tempfile.mkdtemp()
    model = work + "/model"
    subprocess.run([
        args.conquer, "export", "--model_path", "smollm2-135m", "--output_path", model, "--dtype",
        "float32"
    ], check=True, capture_output=True)
    text = work + "/text.txt"
    with open(text, "w") as f:
        f.write(open(__file__).read() * 20)
    report = {}
    for dtype in args.dtype or ["float32", "bfloat16"]:
        ours, theirs = {}, {}
        for _ in range(args.rounds):
            ids = torch.randint(0, 49152, (PROMPT,), generator=generator).tolist()
            mine = conquer_generate(args.benchmark, model, dtype)
            mine["train"] = conquer_train(args.conquer, model, dtype, threads, text)
            for key, value in mine.items():
                ours.setdefault(key, []).append(value)
            for key, value in peer(model, dtype, ids).items():
                theirs.setdefault(key, []).append(value)
        for key in ("decode", "prefill", "train"):
            m, t = ours[key], theirs[key]
            ratio = statistics.median(a / b for a, b in zip(m, t))
            report[f"{key} {dtype}"] = {"conquer": m, "transformers": t, "ratio": ratio}
            print(
                f"{key:8} {dtype:9}"
                f" conquer {statistics.median(m):7.1f} [{min(m):.1f}-{max(m):.1f}] "
                f" transformers {statistics.median(t):7.1f} [{min(t):.1f}-{max(t):.1f}] tok/s "
                f" ratio {ratio:.2f}",
                flush=True)
    if args.json:
        json.dump(report, open(args.json, "w"), indent=1)
    if args.results:
        programs = {"conquer": "conquer", "transformers": f"transformers {__version__}"}
        save(args.results, "speed_cpu", "speed", [
            dict(program=name, task=task.split()[0], dtype=task.split()[1], device="cpu",
                 unit="tokens/s", value=statistics.median(figures[side]))
            for task, figures in report.items() for side, name in programs.items()
        ])


main()
