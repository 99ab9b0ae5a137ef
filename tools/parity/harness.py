"""Shared by the comparisons with the conquer binary: command line, checks and exit code."""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "fixtures"))
failures = []
options = argparse.Namespace()  # set by run


def check(what, ok, detail=""):
    print(("ok    " if ok else "FAIL  ") + what + (f"  {detail}" if detail else ""), flush=True)
    if not ok:
        failures.append(what)


def conquer(*args):
    """Runs the binary; with --json returns the objects that it prints, one per line."""
    done = subprocess.run([options.conquer, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"conquer {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()] if "--json" in args else []


def run(doc, kinds, small, real):
    """Calls small(folder, kind, seed) for each kind of small model, and real(folder) for the given
    model."""
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conquer", default=str(ROOT / "build" / "bin" / "conquer"))
    parser.add_argument("--model", default="smollm2-135m", help="the real model; empty for none")
    parser.add_argument("--seeds", type=int, default=1)
    parser.parse_args(namespace=options)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        for seed in range(options.seeds):
            for kind in kinds:
                folder = work / f"{kind}-{seed}"
                folder.mkdir()
                small(folder, kind, seed)
        if options.model:
            real(work)
    sys.exit(f"{len(failures)} comparisons failed" if failures else None)
