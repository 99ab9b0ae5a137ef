#!/usr/bin/env python3
"""Checks that a real MLflow server gets what train --mlflow sends.

    python tools/parity/mlflow_runs.py [--conquer BINARY]

Starts an MLflow server on a free port, trains a small model, and compares what MLflow's own client
reads with metrics.jsonl: every metric of every step, parameters and the status of a run that
finishes, is stopped and resumed, and fails. Needs mlflow 3.17.2, which `make parity` does not
install.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
failures = 0


def check(what, ok, detail=""):
    global failures
    failures += not ok
    print(("ok   " if ok else "FAIL ") + what + ("" if ok else f": {detail}"))


def serve(folder):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = open(folder / "server.log", "w")
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
         "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
         "--artifacts-destination", str(folder / "artifacts")],
        stdout=log, stderr=log, cwd=folder, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(uri + "/health", timeout=1)
            return server, uri
        except OSError:
            time.sleep(0.2)
    os.killpg(server.pid, signal.SIGTERM)
    sys.exit(open(folder / "server.log").read())


def train(conquer, folder, uri, out, *more, stop_after=None):
    command = [conquer, "train", "--architecture", "bamba", "--variant", "bytes", "--tokenizer",
               "char_tokenizer", "--data_path", folder / "poem.txt", "--output_path", folder / out,
               "--pack", "--sequence_length", "32", "--batch_size", "1", "--device", "cpu",
               "--threads", "1", "--mlflow", uri, "--mlflow_experiment", "small models", *more]
    run = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE,
                           stdout=subprocess.DEVNULL, text=True)
    if stop_after:
        metrics = folder / out / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < stop_after:
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
    return run.communicate()[1], run.returncode


def compare(client, folder, out, name):
    """Compares every value of metrics.jsonl with what the server has."""
    run_id = json.loads((folder / out / "mlflow.json").read_text())["run_id"]
    run = client.get_run(run_id)
    names = {"loss": "loss", "learning_rate": "learning_rate", "gradient_norm": "gradient_norm",
             "epoch": "epoch", "memory_bytes": "memory_bytes", "validation_loss": "validation_loss"}
    got = {key: {m.step: m.value for m in client.get_metric_history(run_id, key)}
           for key in names.values()}
    lines = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    wrong = [(line["step"], key, line[key], got[names[key]].get(line["step"]))
             for line in lines for key in names
             if line.get(key) is not None and got[names[key]].get(line["step"]) != line[key]]
    check(f"{name}: every value of {len(lines)} lines", lines and not wrong, wrong[:3])
    return run


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--conquer", default=ROOT / "build/bin/conquer")
    conquer = p.parse_args().conquer
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "poem.txt").write_text("round and round the tower the gulls go round\n" * 60)
        server, uri = serve(folder)
        try:
            client = MlflowClient(uri)
            cases(conquer, folder, uri, client)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    sys.exit(failures > 0)


def cases(conquer, folder, uri, client):
    text, code = train(conquer, folder, uri, "whole", "--steps", 12, "--validation_path",
                       folder / "poem.txt", "--validate_steps", 4, "--learning_rate", "1e-3")
    check("a run ends", code == 0, text)
    run = compare(client, folder, "whole", "a run")
    experiment = client.get_experiment_by_name("small models")
    check("its status, name and experiment",
          (run.info.status, run.info.run_name, run.info.experiment_id)
          == ("FINISHED", "whole", experiment.experiment_id), run.info)
    want = {"steps": "12", "learning_rate": "0.001", "optimizer": "adamw", "pack": "true"}
    check("its parameters", want.items() <= run.data.params.items(), run.data.params)

    text, code = train(conquer, folder, uri, "halves", "--steps", 400, stop_after=20)
    check("a run is stopped", code == 130, text)
    run = compare(client, folder, "halves", "a stopped run")
    check("its status", run.info.status == "KILLED", run.info.status)
    steps = len((folder / "halves/metrics.jsonl").read_text().splitlines())
    text, code = train(conquer, folder, uri, "halves", "--steps", steps + 10, "--resume")
    check("it is resumed", code == 0, text)
    again = compare(client, folder, "halves", "the resumed run")
    check("as the same run", (again.info.run_id, again.info.status)
          == (run.info.run_id, "FINISHED"), again.info)

    text, code = train(conquer, folder, uri, "bad", "--steps", 60, "--learning_rate", "1e30",
                       "--clip", 0, "--schedule", "constant", "--max_skipped_steps", 5)
    check("a run diverges", code == 1, text)
    run = compare(client, folder, "bad", "a run that diverges")
    check("its status, with losses that are not finite", run.info.status == "FAILED",
          run.info.status)

    begin = time.time()
    text, code = train(conquer, folder, "http://me:hidden@127.0.0.1:9", "alone", "--steps", 3)
    check("a run without a server ends", code == 0 and time.time() - begin < 60, text)
    check("and says what is lost, without the password",
          text.count("MLflow at http://127.0.0.1:9 does not take") == 1
          and "values did not reach MLflow at http://127.0.0.1:9" in text
          and "hidden" not in text, text)


main()
