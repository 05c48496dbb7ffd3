"""Measure loading a directory of safetensors shards from a slow volume: weightcache beside its peers, in one run.

Each figure is a fresh process that loads all shards from a volume that forgot them (see ``slowvol``). The processes of
the contestants take turns. The clock of "load" runs from after the imports until one number of every page of every
tensor was read. "Peak" is the most memory that the process held after its imports, beyond what it held then, divided by
the size of the model. The sum of all numbers read must be the same for all.

"Quarters" are four processes at the same time, each of which loads its quarter of every matrix; it is the bytes that
the four read from the volume, divided by the size of the model. "One small file" is the time of a call of
`load_state_dict` divided by that of the plain call on the same file, taken in turns in one process.

    python benchmarks/loading_shards.py [--rounds N] [--shards 4,16] [--megabytes 888,3500] [--skip NAME] [--json FILE]

It needs what ``loading.py`` needs. The files lie in memory, so it needs the largest model twice.
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
import time
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from slowvol import SlowVolume, available

READAHEAD = 1 << 20  # bytes, as in loading.py

HEAD = """\
import json, os, resource, sys, time
folder, rank = sys.argv[1], int(sys.argv[2])
paths = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".safetensors"))
def memory(key):
    [line] = [line for line in open("/proc/self/status") if line.startswith(key)]
    return int(line.split()[1]) * 1024
"""
CLOCK = """
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before, began = memory("VmRSS"), time.perf_counter()
"""
SUM = """
def add(tensor):
    flat = tensor.reshape(-1)
    return float(flat[:: 4096 // flat.element_size()].double().sum())
"""
ALL = "total = sum(add(state[name]) for name in sorted(state))\ncount = len(state)\n"
TAIL = """
seconds = time.perf_counter() - began
print(json.dumps([seconds, memory("VmHWM") - before, round(total, 3), count]))
"""
RUNAI = """\
os.environ['RUNAI_STREAMER_CONCURRENCY'] = '{at_once}'
import torch
from runai_model_streamer import SafetensorsStreamer
{clock}
with SafetensorsStreamer() as streamer:
    streamer.stream_files(paths)
    state = dict(streamer.get_tensors())
"""
OURS = "import torch\nfrom weightcache.torch import iter_tensors, load_state_dict\n"
PREFETCHED = "from weightcache import prefetch_files\nreading = prefetch_files(*paths, into='memory')\n"

CONTESTANTS: dict[str, tuple[str, str]] = {  # name → module that it needs, program
    "safetensors load_file, in a loop": (
        "safetensors",
        "import torch\nfrom safetensors.torch import load_file\n"
        + CLOCK
        + "state = {}\nfor path in paths:\n    state |= load_file(path)\n"
        + ALL,
    ),
    **{
        f"runai streamer, {at_once} at once": (
            "runai_model_streamer",
            RUNAI.format(at_once=at_once, clock=CLOCK) + ALL,
        )
        for at_once in (8, 16, 32)
    },
    "weightcache, load_state_dict": ("torch", OURS + CLOCK + "state = load_state_dict(folder)\n" + ALL),
    "weightcache, load_state_dict, prefetched": (
        "torch",
        PREFETCHED + OURS + CLOCK + "state = load_state_dict(folder, prefetched=reading)\n" + ALL,
    ),
    "weightcache, iter_tensors, each dropped": (
        "torch",
        OURS
        + CLOCK
        + "sums = {name: add(tensor) for name, tensor in iter_tensors(folder)}\n"
        + "total, count = sum(sums[name] for name in sorted(sums)), len(sums)\n",
    ),
}
BASE = next(iter(CONTESTANTS))

QUARTER = (
    OURS
    + """
from safetensors import safe_open
shapes = {}
for path in paths:
    with safe_open(path, "pt") as file:
        shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}
slices = {name: (number % len(shape), rank, 4) for number, (name, shape) in enumerate(shapes.items()) if len(shape) > 1}
"""
    + CLOCK
    + "state = load_state_dict(folder, slices=slices)\n"
    + ALL
)

MAKE = """\
import sys, torch
from safetensors.torch import save_file
folder, shards, megabytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
number = 0
for shard in range(1, shards + 1):
    state, left = {}, megabytes * 1_000_000 // 2 // shards
    while left > 4096:  # as in a transformer: matrices of a few shapes, and a norm for each
        rows = min((4096, 1024, 11008, 4096)[number % 4], left // 2048)
        if not rows // 4:
            break
        state[f"layers.{number}.weight"] = torch.randn(rows // 4 * 4, 2048).bfloat16()
        state[f"layers.{number}.norm"] = torch.randn(2048).bfloat16()
        left, number = left - rows // 4 * 4 * 2048 - 2048, number + 1
    save_file(state, f"{folder}/model-{shard:05}-of-{shards:05}.safetensors")
"""

SMALL = """\
import json, os, statistics, sys, time, torch
from safetensors.torch import load_file, save_file
from weightcache.torch import load_state_dict
state = {f"layers.{number}.weight": torch.randn(64, 256) for number in range(30)}
figures = {}
for name, plain in (("small.safetensors", load_file), ("small.pt", lambda path: torch.load(path, weights_only=True))):
    path = f"{sys.argv[1]}/{name}"
    (save_file if name.endswith("s") else torch.save)(state, path)
    times = {plain: [], load_state_dict: []}
    for turn in range(300):
        for load in times:
            began = time.perf_counter()
            state = load(path)
            total = sum(float(tensor.sum()) for tensor in state.values())  # a mapping is not read before
            if turn >= 20:
                times[load].append(time.perf_counter() - began)
    figures[name] = [statistics.median(taken) for taken in times.values()]
print(json.dumps(figures))
"""


def start(program: str, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(folder), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    out, errors = process.communicate()
    if process.returncode:
        sys.exit(f"a child failed:\n{errors}")
    return json.loads(out.splitlines()[-1])


def contest(volume: SlowVolume, size: int, rounds: int, names: list[str]) -> dict[str, dict[str, float]]:
    """Return load seconds, their ratio to the loop of load_file in the same round, peak memory and bytes read."""
    runs: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    sums = set()
    for _ in range(rounds):
        for name in names:
            volume.evict()
            volume.reset()
            program = HEAD + SUM + CONTESTANTS[name][1] + TAIL
            load, peak, *read = result(start(program, volume.path, 0))
            sums.add(tuple(read))
            runs[name].append((load, peak / size, volume.stats()["bytes_fetched"] / size))
    if len(sums) != 1:
        sys.exit(f"not all loaded the same: {sums}")
    base = runs.get(BASE)
    return {
        name: {
            "load": statistics.median(each[0] for each in taken),
            "least": min(each[0] for each in taken),
            "ratio": statistics.median(a[0] / b[0] for a, b in zip(taken, base, strict=True)) if base else 0.0,
            "peak": max(each[1] for each in taken),
            "fetched": max(each[2] for each in taken),
        }
        for name, taken in runs.items()
    }


def quarters(volume: SlowVolume, size: int) -> dict[str, float]:
    """Return what four processes read and fetch together, in sizes of the model, and their seconds."""
    volume.evict()
    volume.reset()
    began = time.perf_counter()
    running = [start(HEAD + SUM + QUARTER + TAIL, volume.path, rank) for rank in range(4)]
    figures = [result(process) for process in running]
    found = volume.stats()
    return {
        "whole": time.perf_counter() - began,
        "load": max(each[0] for each in figures),
        "peak of one": max(each[1] for each in figures) / size,
        **{key.replace("_", " "): found[key] / size for key in ("bytes_read", "bytes_fetched") if key in found},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Shards from a volume into memory, beside the peers.")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes a contestant (default: %(default)s)")
    parser.add_argument("--shards", default="4,16", help="cases, with commas between (default: %(default)s)")
    parser.add_argument("--megabytes", default="888,3500", help="sizes of the model (default: %(default)s)")
    parser.add_argument("--skip", action="append", default=[], help="leave out contestants with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    if reason := available():
        sys.exit(f"no slow volume: {reason}")
    names = [
        name
        for name, (module, _) in CONTESTANTS.items()
        if find_spec(module) and not any(part in name for part in options.skip)
    ]
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {stamp}")
    print("load average before: {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()))
    figures: dict[str, Any] = {}
    for megabytes in map(int, options.megabytes.split(",")):
        for shards in map(int, options.shards.split(",")):
            with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="loading-") as folder:
                subprocess.run([sys.executable, "-c", MAKE, folder, str(shards), str(megabytes)], check=True)
                size = sum(path.stat().st_size for path in Path(folder).iterdir())
                title = f"{size / 1e6:.0f} MB in {shards} shards"
                with SlowVolume(folder, readahead=READAHEAD) as volume:
                    figures[title] = rows = contest(volume, size, options.rounds, names)
                    figures[f"{title}, quarters"] = four = quarters(volume, size)
            print(f"\n### {title}, {options.rounds} rounds\n")
            print(
                "| | load: median, s | least | of the loop | peak memory | bytes fetched |\n|---|--:|--:|--:|--:|--:|"
            )
            for name, row in rows.items():
                print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |")
            print("\nquarters: " + ", ".join(f"{key} {value:.2f}" for key, value in four.items()), flush=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        figures["small"] = small = result(start(SMALL, Path(folder)))
    for name, (plain, ours) in small.items():
        print(f"{name}: {plain * 1e3:.2f} ms plainly, {ours * 1e3:.2f} ms, {ours / plain:.2f} times")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
