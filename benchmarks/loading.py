"""Measure loading weights from a volume into memory: weightcache and its peers, in one run on one machine.

Each figure is a fresh process that loads the same 888 MB in about 900 tensors, from a slow volume that forgot them (see
``slowvol``) or from a disk whose cache was dropped. The processes of the contestants take turns. The clock of "load"
runs from after the imports until one number of every page of every tensor was read, so that nothing is left to be
mapped in later; "whole" is the process from start to end, interpreter and imports included. The sum of all numbers read
must be the same for all.

    python benchmarks/loading.py [--rounds N] [--only volume|blocks|narrow|disk] [--json FILE] [--picture FILE.svg]

It needs torch, safetensors and, for one contestant, runai-model-streamer (``pip install torch==2.13.0`` and then
``pip install -e '.[bench]'``); FUSE (root, /dev/fuse, libfuse3-dev, a C compiler). Where FUSE is not permitted it says
so, and measures the disk.
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
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parent))
from slowvol import SlowVolume, available

READAHEAD = 1 << 20  # bytes, of the mount: what a client of a network volume sets, rather than the kernel's 128 KiB

# Every child prints seconds and sum last. argv[1] is the file.
TAIL = """
total, count = 0.0, 0
for tensor in state.values():
    flat = tensor.reshape(-1)
    total += float(flat[:: 4096 // flat.element_size()].double().sum())
    count += 1
seconds = time.perf_counter() - began
print(json.dumps([seconds, round(total, 6), count]))
"""
IMPORTS = "import json, sys, time\npath = sys.argv[1]\n"
CLOCK = "began = time.perf_counter()\n"

CONTESTANTS: dict[str, tuple[str, str, str]] = {  # name → suffix, module that it needs, program
    "torch.load": (
        "pt",
        "torch",
        IMPORTS + "import torch\n" + CLOCK + "state = torch.load(path, map_location='cpu', weights_only=True)['model']",
    ),
    "torch.load(mmap=True)": (
        "pt",
        "torch",
        IMPORTS + "import torch\n" + CLOCK + "state = torch.load(path, mmap=True, weights_only=True)['model']",
    ),
    "weightcache, into memory": (
        "pt",
        "torch",
        IMPORTS
        + "from weightcache import prefetch_files\nhandle = prefetch_files(path, into='memory')\nimport torch\n"
        + "from weightcache.torch import load_state_dict\n"
        + CLOCK
        + "state = load_state_dict(path, prefetched=handle)['model']",
    ),
    "weightcache, into cache, then torch.load": (
        "pt",
        "torch",
        IMPORTS
        + "from weightcache import prefetch_files\nhandle = prefetch_files(path)\nimport torch\n"
        + CLOCK
        + "state = torch.load(path, map_location='cpu', weights_only=True)['model']",
    ),
    "weightcache, load_state_dict alone": (
        "pt",
        "torch",
        IMPORTS
        + "import torch\nfrom weightcache.torch import load_state_dict\n"
        + CLOCK
        + "state = load_state_dict(path)['model']",
    ),
    "safetensors load_file": (
        "safetensors",
        "safetensors",
        IMPORTS + "from safetensors.torch import load_file\n" + CLOCK + "state = load_file(path)",
    ),
    "runai streamer, 16 at once": (
        "safetensors",
        "runai_model_streamer",
        # Its own size of chunks is its fastest here, and what it hands out need not be copied.
        "import os\nos.environ['RUNAI_STREAMER_CONCURRENCY'] = '16'\n"
        + IMPORTS
        + "from runai_model_streamer import SafetensorsStreamer\n"
        + CLOCK
        + "with SafetensorsStreamer() as streamer:\n"
        + "    streamer.stream_file(path)\n"
        + "    state = dict(streamer.get_tensors())",
    ),
    "weightcache, .safetensors into memory": (
        "safetensors",
        "safetensors",
        IMPORTS
        + "from weightcache import prefetch_files\nhandle = prefetch_files(path, into='memory')\nimport torch\n"
        + "from weightcache.torch import load_state_dict\n"
        + CLOCK
        + "state = load_state_dict(path, prefetched=handle)",
    ),
    "weightcache, .safetensors, load_state_dict alone": (
        "safetensors",
        "safetensors",
        IMPORTS
        + "import torch\nfrom weightcache.torch import load_state_dict\n"
        + CLOCK
        + "state = load_state_dict(path)",
    ),
}
BASE = "torch.load"


@dataclass
class Case:
    """The storage that the files are loaded from."""

    title: str
    settings: dict[str, Any] | None  # of the slow volume; None for the disk


CASES = {
    "volume": Case("8 MiB blocks, 10 ms, 150 MB/s a stream, 1.2 GB/s in all", {}),
    "blocks": Case("1 MiB blocks, 20 ms, 150 MB/s a stream, 1.2 GB/s in all", {"block": 1 << 20, "latency": 0.020}),
    "narrow": Case("8 MiB blocks, 10 ms, 150 MB/s a stream, 600 MB/s in all", {"total": 600e6}),
    "disk": Case("this machine's disk, its cache dropped", None),
}

MAKE = """\
import sys, torch
from safetensors.torch import save_file
torch.manual_seed(0)
state, left, number = {}, 888_000_000 // 4, 0
while left:
    size = min(left, (64, 256, 1024, 65536, 262144, 589824, 1048576)[number % 7] if number % 9 else 1600)
    state[f"blocks.{number}.weight"] = torch.randn(size)
    left, number = left - size, number + 1
torch.save({"model": state}, sys.argv[1] + "/weights.pt")
save_file(state, sys.argv[1] + "/weights.safetensors")
print(number)
"""


def run(program: str, path: Path) -> tuple[float, float, list[float]]:
    """Return load seconds, whole seconds, and what was read."""
    began = time.perf_counter()
    command = [sys.executable, "-c", program + "\n" + TAIL.lstrip("\n"), path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"a child failed:\n{program}\n{done.stderr}")
    load, *read = json.loads(done.stdout.splitlines()[-1])
    return load, whole, read


def drop_from_page_cache(path: Path) -> None:
    """Remove a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(case: Case, folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    present = {name: told for name, told in CONTESTANTS.items() if find_spec(told[1])}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in present}
    sums = set()
    volume = nullcontext() if case.settings is None else SlowVolume(folder, readahead=READAHEAD, **case.settings)
    with volume as mounted:
        for turn in range(rounds + 1):
            for name, (suffix, _, program) in present.items():
                path = (folder if mounted is None else mounted.path) / f"weights.{suffix}"
                forget: Callable[[], None] = (
                    (lambda path=path: drop_from_page_cache(path)) if mounted is None else mounted.evict
                )
                forget()
                load, whole, read = run(program, path)
                sums.add(tuple(read))
                if turn:  # the first turn fills the page cache with the libraries
                    times[name].append((load, whole))
    if len(sums) != 1:
        sys.exit(f"not all loaded the same: {sums}")
    base = times[BASE]
    return {
        name: {
            "load": statistics.median(load for load, _ in times[name]),
            "whole": statistics.median(whole for _, whole in times[name]),
            "least load": min(load for load, _ in times[name]),
            "least whole": min(whole for _, whole in times[name]),
            "load ratio": statistics.median(o[0] / b[0] for o, b in zip(times[name], base, strict=True)),
            "whole ratio": statistics.median(o[1] / b[1] for o, b in zip(times[name], base, strict=True)),
        }
        if name in times
        else {}
        for name in CONTESTANTS
    }


def show(case: Case, told: dict[str, dict[str, Any]], rounds: int) -> None:
    print(f"\n### {case.title}, {rounds} rounds\n")
    print("| | load: median, s | least | of torch.load | whole: median, s | least | of torch.load |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, row in told.items():
        if not row:
            print(f"| {name} | not installed | | | | | |")
            continue
        keys = ("load", "least load", "load ratio", "whole", "least whole", "whole ratio")
        bold = "**" if name.startswith("weightcache") else ""
        print(f"| {bold}{name}{bold} | " + " | ".join(f"{row[key]:.2f}" for key in keys) + " |")


def picture(path: Path, case: Case, told: dict[str, dict[str, Any]]) -> None:
    """Draw whole processes as bars: what is before the load, and the load."""
    from picture_style import Bar, bars, figure, legend, save

    rows = [
        Bar(
            name,
            {"interpreter and imports": row["whole"] - row["load"], "load": row["load"]},
            ours=name.startswith("weightcache"),
            total=f"{row['whole']:.1f} s",
        )
        for name, row in told.items()
        if row
    ]
    title = "888 MB from a cold volume"
    told_in_words = "; ".join(f"{row.title}: {row.total}, of which load {row.parts['load']:.1f}" for row in rows)
    with figure(0.5 * len(rows) + 1.4) as (drawn, axes):
        bars(axes, rows)
        axes.set_title(title, fontsize=12.5, fontweight="bold")
        legend(axes, list(rows[0].parts))
        save(drawn, path, title=title, description=f"Medians. {told_in_words}. {case.title}.")


def main() -> None:
    parser = argparse.ArgumentParser(description="From a volume into memory, beside the peers.")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes a contestant (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=CASES, help="only this case; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the first case as SVG")
    options = parser.parse_args()
    chosen = {name: CASES[name] for name in options.only or CASES}
    if reason := available():
        print(f"no slow volume: {reason}; measuring what is left")
        chosen = {name: case for name, case in chosen.items() if case.settings is None}
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {stamp}")
    print("load average before: {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()))
    result: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="loading-") as memory,
        tempfile.TemporaryDirectory() as disk,
    ):
        for name, case in chosen.items():
            folder = Path(disk if case.settings is None else memory)
            if not any(folder.iterdir()):
                made = subprocess.run([sys.executable, "-c", MAKE, folder], capture_output=True, text=True, check=True)
                print(f"{made.stdout.strip()} tensors, {(folder / 'weights.pt').stat().st_size / 1e6:.0f} MB in a file")
            result[name] = measure(case, folder, options.rounds)
            show(case, result[name], options.rounds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.picture and result:
        first = next(iter(result))
        picture(options.picture, CASES[first], result[first])


if __name__ == "__main__":
    main()
