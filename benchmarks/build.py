"""Measure the time to build a module and assign weights: the plain way, and with `skip_init` and `assign_into`.

Each process builds a transformer of 302 million parameters (1.2 GB) and assigns a state dict that is in memory. The
processes take turns; the sum of all weights must be equal.

    python benchmarks/build.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = "torch.nn.Transformer(1024, 16, 12, 12, 3072, batch_first=True)"
HEAD = """\
import json, resource, sys, time
import torch
from weightcache.torch import assign_into, load_state_dict, skip_init
state = load_state_dict(sys.argv[1])
began = time.perf_counter()
"""
TAIL = """
loaded = time.perf_counter() - began
total = sum(float(parameter.detach().double().sum()) for parameter in model.parameters())
print(json.dumps([built, loaded - built, total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3]))
"""
BUILT = "\nbuilt = time.perf_counter() - began\n"
WAYS = {
    "plain: build, `load_state_dict`": f"model = {MODEL}{BUILT}model.load_state_dict(state)",
    "`skip_init`, `load_state_dict`": f"with skip_init():\n    model = {MODEL}{BUILT}model.load_state_dict(state)",
    "plain build, `assign_into`": f"model = {MODEL}{BUILT}assign_into(model, state)",
    "`skip_init`, `assign_into`": f"with skip_init():\n    model = {MODEL}{BUILT}assign_into(model, state)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a module and give it weights.")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes a way (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder, "weights.pt")
        make = f"import torch; torch.manual_seed(0); torch.save({MODEL}.state_dict(), {str(path)!r})"
        subprocess.run([sys.executable, "-c", make], check=True)
        told: dict[str, list[list[float]]] = {name: [] for name in WAYS}
        for _ in range(options.rounds):
            for name, program in WAYS.items():
                command = [sys.executable, "-c", HEAD + program + TAIL, path]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                told[name].append(json.loads(done.stdout))
        size = path.stat().st_size / 1e6
    if len({round(row[2], 3) for rows in told.values() for row in rows}) != 1:
        sys.exit("not all have the same weights")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {size:.0f} MB")
    print("| | build: median, s | weights: median, s | peak memory, MB |\n|---|--:|--:|--:|")
    for name, rows in told.items():
        build, weights = (statistics.median(row[column] for row in rows) for column in (0, 1))
        print(f"| {name} | {build:.2f} | {weights:.2f} | {max(row[3] for row in rows):.0f} |")


if __name__ == "__main__":
    main()
