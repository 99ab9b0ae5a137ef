"""Writes measurements of other programs for `conquer bench report`."""
import datetime
import json
import os
import platform
import sys


def save(folder, name, kind, rows, program="", device="cpu"):
    """Writes rows of a kind of results (docs/experiment.md) to FOLDER/NAME.json."""
    import torch
    os.makedirs(folder, exist_ok=True)
    machine = dict(cpu=platform.processor() or platform.machine(), cores=os.cpu_count(),
                   threads=torch.get_num_threads(),
                   memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
                   device=device)
    if device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name()
    path = os.path.join(folder, name + ".json")
    now = datetime.datetime.now(datetime.timezone.utc)
    with open(path, "w") as file:
        json.dump(dict(kind=kind, program=program, command=" ".join(sys.argv),
                       time=now.isoformat(), machine=machine,
                       versions=dict(libtorch=torch.__version__), rows=rows), file, indent=1)
    print("wrote", path)
