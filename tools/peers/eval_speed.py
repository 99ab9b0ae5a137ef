#!/usr/bin/env python3
"""Times requests of hellaswag's shape: conquer eval beside lm-evaluation-harness with transformers,
float32 on the CPU. The model is a folder that both read.

    tools/peers/eval_speed.py build/bin/conquer MODEL [BATCH_SIZE]
"""

import json
import logging
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["HF_DATASETS_OFFLINE"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "fixtures"))
import eval_cases

WORDS = ("the man woman dog boat river takes walks over under bread bicycle slowly then puts on a "
         "large small red jacket and starts to climb cut paint wash wall with his her brush while "
         "people watch from street camera shows close up of hands they smile again before leaving "
         "room water tree snow hill board tells how make it").split()
DOCUMENTS = 24


def write(folder):
    """Contexts of 28 to 60 words and four endings of 12 to 30, about as in hellaswag."""
    r = random.Random(5)

    def text(n):
        words = " ".join(r.choice(WORDS) for _ in range(n))
        return words[0].upper() + words[1:] + "."

    rows = [{"activity_label": text(2)[:-1], "ctx_a": f"{text(r.randint(15, 30))} "
             f"{text(r.randint(8, 25))}", "ctx_b": r.choice(["he", "she", "they", "a man"]),
             "endings": [text(r.randint(12, 30)) for _ in range(4)], "label": str(r.randrange(4))}
            for _ in range(DOCUMENTS)]
    folder.mkdir(parents=True)
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(conquer, model, batch_size=1):
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        write(work / "data" / "hellaswag")
        for _ in range(3):
            out = subprocess.run(
                [conquer, "eval", "--model_path", model, "--tasks", "hellaswag", "--data",
                 f"hellaswag={work / 'data' / 'hellaswag'}", "--dtype", "float32", "--device",
                 "cpu", "--json"], check=True, capture_output=True, text=True).stdout
            took = json.loads(out)["config"]["total_evaluation_time_seconds"]
            print(f"conquer: {4 * DOCUMENTS} requests in {took:.2f} s", flush=True)
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.models.huggingface import HFLM
        peer = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=int(batch_size))
        task = ConfigurableTask(config=eval_cases.local(work, "hellaswag"))
        task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(1234)
        task.build_all_requests()
        peer.loglikelihood(task.instances[:4], disable_tqdm=True)
        began = time.time()
        peer.loglikelihood(task.instances, disable_tqdm=True)
        print(f"lm-eval, batch size {batch_size}: {len(task.instances)} requests in "
              f"{time.time() - began:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
