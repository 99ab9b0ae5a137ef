"""Speed on the CPU, side by side with transformers: SmolLM2-135M, the same weights, dtype and threads, in one run.

usage: cpu.py CONQUER [--rounds N] [--dtype float32 --dtype bfloat16] [--json FILE]

Each round measures both programs one after the other, so that a machine whose speed drifts treats them alike; the table
shows medians and, in brackets, the least and the most. Prefill is a prompt of 512 tokens up to the first new one; decode
is the mean over 64 new tokens after it; a training step is forward, backward and AdamW on 2 rows of 256 tokens with a loss
on every token.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time

import torch
from transformers import AutoModelForCausalLM

PROMPT, NEW, ROWS, LENGTH, STEPS = 512, 64, 2, 256, 8


def conquer_generate(binary, model, dtype, ids, threads):
    command = [binary, "generate", "--model_path", model, "--token_ids", ",".join(map(str, ids)), "--max_new_tokens",
               str(NEW + 1), "--temperature", "0", "--ignore_eos", "--json", "--dtype", dtype, "--device", "cpu", "--threads",
               str(threads)]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"prefill": out["prefill_tokens_per_second"], "decode": out["decode_tokens_per_second"]}


def conquer_train(binary, model, dtype, threads, text):
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "train", "--model_path", model, "--data_path", text, "--output_path", folder + "/out",
                   "--steps", str(STEPS), "--batch_size", str(ROWS),
                   "--sequence_length", str(LENGTH), "--pack", "--dtype", dtype, "--device", "cpu", "--threads", str(threads),
                   "--report_steps", "1", "--checkpoint_steps", "0", "--validation_fraction", "0"]
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
        generate = lambda n: model.generate(prompt, max_new_tokens=n, min_new_tokens=n, do_sample=False)
        generate(2)
        result["decode"] = NEW / (timed(lambda: generate(NEW + 1)) - timed(lambda: generate(1)))
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conquer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", action="append")
    parser.add_argument("--json")
    args = parser.parse_args()
    threads = os.cpu_count()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(int(time.time()))
    work = tempfile.mkdtemp()
    model = work + "/model"
    subprocess.run([args.conquer, "export", "--model_path", "smollm2-135m", "--output_path", model, "--dtype", "float32"],
                   check=True, capture_output=True)
    text = work + "/text.txt"
    with open(text, "w") as f:
        f.write(subprocess.run(["cat", __file__], capture_output=True, text=True).stdout * 20)
    report = {}
    for dtype in args.dtype or ["float32", "bfloat16"]:
        ours, theirs = {}, {}
        for _ in range(args.rounds):
            ids = torch.randint(0, 49152, (PROMPT,), generator=generator).tolist()
            mine = conquer_generate(args.conquer, model, dtype, ids, threads)
            mine["train"] = conquer_train(args.conquer, model, dtype, threads, text)
            for key, value in mine.items():
                ours.setdefault(key, []).append(value)
            for key, value in peer(model, dtype, ids).items():
                theirs.setdefault(key, []).append(value)
        for key in ("decode", "prefill", "train"):
            m, t = ours[key], theirs[key]
            ratio = statistics.median(a / b for a, b in zip(m, t))
            report[f"{key} {dtype}"] = {"conquer": m, "transformers": t, "ratio": ratio}
            print(f"{key:8} {dtype:9} conquer {statistics.median(m):7.1f} [{min(m):.1f}-{max(m):.1f}]  "
                  f"transformers {statistics.median(t):7.1f} [{min(t):.1f}-{max(t):.1f}] tok/s  ratio {ratio:.2f}", flush=True)
    if args.json:
        json.dump(report, open(args.json, "w"), indent=1)


main()
