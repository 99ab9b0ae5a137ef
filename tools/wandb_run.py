#!/usr/bin/env python3
"""Gives a run of `conquer train` to Weights & Biases, with wandb's own library.

    python tools/wandb_run.py OUTPUT_FOLDER [--project conquer] [--name NAME] [--offline]

Reads metrics.jsonl in the run's output folder: every number of every step and validation, and the
answers to --ask. With --offline nothing is sent; `wandb sync` sends it later. Needs wandb 0.31.
"""

import argparse
import json
from pathlib import Path

import wandb

PATHS = {"validation_loss": "validation/loss"}


def values(line):
    """Returns what wandb logs for a line of metrics.jsonl."""
    if "question" in line:
        return {"answers/" + line["question"]: line["answer"]}
    prefix = "validation/" if "validation_loss" in line else "train/"
    return {PATHS.get(key, prefix + key): value for key, value in line.items()
            if key != "step" and value is not None}


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--project", default="conquer")
    p.add_argument("--name")
    p.add_argument("--offline", action="store_true")
    o = p.parse_args()
    config = o.folder / "config.json"
    run = wandb.init(project=o.project, name=o.name or o.folder.resolve().name, dir=o.folder,
                     config=json.loads(config.read_text()) if config.exists() else None,
                     mode="offline" if o.offline else "online")
    with open(o.folder / "metrics.jsonl") as lines:
        for line in map(json.loads, lines):
            run.log(values(line), step=line["step"])
    run.finish()


main()
