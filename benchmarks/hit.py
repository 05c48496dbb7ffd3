"""Measure a hit: weightcache and its peers, in one run on one machine.

Each figure of the first table is a fresh process that asks for two checkpoints that already exist. It measures its own
time from before the import until both paths are known. The contestants take turns, so that noise affects all equally.
Files have 1 MB: the time of a hit does not depend on the size unless a tool hashes, as pooch does.

    python benchmarks/hit.py [--runs N] [--json FILE]

A peer that is not installed is named in the output; ``pip install -e '.[bench]'`` installs them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

NAMES = {"groundingdino": "groundingdino_swint_ogc.pth", "sam2-large": "sam2_hiera_large.pt"}
SIZE = 1_000_000
COMMIT = "0" * 40  # of a repository on the Hub that does not exist

# Every child prints its seconds last. sys and time are there before any clock; argv[1] is the working directory.
WEIGHTCACHE = """\
import sys, time
{before}
root, manifest = sys.argv[1] + "/root", sys.argv[1] + "/weights.toml"
began = time.perf_counter()
from weightcache import ensure
weights = ensure(manifest, root=root)
paths = [str(weights[name]) for name in weights]
seconds = time.perf_counter() - began
import os
assert {{each.outcome for each in weights.report.values()}} == {{"hit"}} and all(map(os.path.isfile, paths))
print(seconds)
"""

EXISTS = """\
import json, sys, time
paths = json.load(open(sys.argv[1] + "/paths.json"))
began = time.perf_counter()
import os
there = [os.path.exists(path) for path in paths]
seconds = time.perf_counter() - began
assert all(there)
print(seconds)
"""

POOCH = """\
import json, sys, time
known = json.load(open(sys.argv[1] + "/known.json"))
began = time.perf_counter()
import pooch
pooch.get_logger().disabled = True
paths = [pooch.retrieve("http://127.0.0.1:9/" + file, "sha256:" + sha256, fname=file, path=sys.argv[1] + "/pooch")
         for file, sha256 in known.items()]
seconds = time.perf_counter() - began
print(seconds)
"""

HUB = """\
import json, os, sys, time
known = json.load(open(sys.argv[1] + "/known.json"))
began = time.perf_counter()
from huggingface_hub import hf_hub_download
paths = [hf_hub_download("org/" + file.partition(".")[0], file, cache_dir=sys.argv[1] + "/hub", local_files_only=True)
         for file in known]
seconds = time.perf_counter() - began
assert all(map(os.path.isfile, paths))
print(seconds)
"""

CONTESTANTS = {  # what it is called → the module it needs, its program
    "weightcache, bare process": ("weightcache", WEIGHTCACHE.format(before="")),
    "weightcache, standard library loaded": (
        "weightcache",
        WEIGHTCACHE.format(
            before="import asyncio, dataclasses, hashlib, json, logging, pathlib, tomllib, urllib.parse"
        ),
    ),
    "weightcache, after import modal": ("modal", WEIGHTCACHE.format(before="import modal")),
    "os.path.exists": ("os", EXISTS),
    "pooch.retrieve": ("pooch", POOCH),
    "hf_hub_download, local only": ("huggingface_hub", HUB),
}

STEADY = """\
import sys, time
from weightcache import Manifest, ensure
root, manifest = sys.argv[1] + "/root", Manifest.load(sys.argv[1] + "/weights.toml")
batches = []
for _ in range(30):
    began = time.perf_counter()
    for _ in range(200):
        ensure(manifest, root=root)
    batches.append((time.perf_counter() - began) / 200)
print(min(batches))
"""

DIRECTORY = """\
import json, sys, time
from weightcache import Manifest, ensure, status
root, path = sys.argv[1] + "/root", sys.argv[1] + "/weights.toml"
manifest = Manifest.load(path)
def least(call):
    times = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
assert [each.state for each in status(manifest, root=root)] == ["ready"]
print(json.dumps({
    "parse": least(lambda: Manifest.load(path)),
    "status": least(lambda: status(manifest, root=root)),
    "hit": least(lambda: ensure(manifest, root=root)),
}))
"""


def child(program: str, directory: Path) -> str:
    # Bytecode as in any installed environment, also where PYTHONDONTWRITEBYTECODE or an editable install withholds it:
    # else every process would compile what was not compiled at installation, and that would be the whole figure.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(directory.parent / "bytecode")
    command = [sys.executable, "-c", program, directory]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if answer.returncode:
        sys.exit(f"a child failed:\n{answer.stderr}")
    return answer.stdout.splitlines()[-1]


def adopt(manifest: Path, root: Path, bodies: dict[str, dict[str, bytes]]) -> list[str]:
    """Write the files into the version directories, let `ensure` hash and adopt them, and return the paths."""
    from weightcache import Manifest, ensure

    for checkpoint in Manifest.load(manifest):
        place = root / checkpoint.name / checkpoint.version
        for path, body in bodies[checkpoint.name].items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(body)
    return [str(path) for path in ensure(manifest, root=root, progress=False).values()]


def write_two_checkpoints(directory: Path) -> None:
    """Write the same two files in the layout of each contestant after a download."""
    chance = random.Random(0)
    bodies = {name: {file: chance.randbytes(SIZE)} for name, file in NAMES.items()}
    known = {file: hashlib.sha256(body).hexdigest() for files in bodies.values() for file, body in files.items()}
    (directory / "known.json").write_text(json.dumps(known))
    lines = ["version = 1"]
    for name, file in NAMES.items():
        url = f"https://example.org/{file}"
        lines += ["", f"[checkpoints.{name}]", f'urls = ["{url}"]', f'sha256 = "{known[file]}"', f"size = {SIZE}"]
    (directory / "weights.toml").write_text("\n".join(lines) + "\n")
    paths = adopt(directory / "weights.toml", directory / "root", bodies)
    (directory / "paths.json").write_text(json.dumps(paths))

    (directory / "pooch").mkdir()
    for files in bodies.values():
        for file, body in files.items():
            (directory / "pooch" / file).write_bytes(body)
            home = directory / "hub" / f"models--org--{file.partition('.')[0]}"
            for folder in ("blobs", f"snapshots/{COMMIT}", "refs"):
                (home / folder).mkdir(parents=True)
            (home / "blobs" / known[file]).write_bytes(body)
            (home / "snapshots" / COMMIT / file).symlink_to(f"../../blobs/{known[file]}")
            (home / "refs" / "main").write_text(COMMIT)


def write_many_files(directory: Path, count: int) -> None:
    """Write one directory checkpoint of ``count`` small files."""
    files = {f"shard-{number // 1000:03}/{number:06}.bin": b"%d" % number for number in range(count)}
    lines = ["[checkpoints.many]", "urls = []", "[checkpoints.many.files]"]
    for path, body in files.items():
        lines.append(f'"{path}" = {{ sha256 = "{hashlib.sha256(body).hexdigest()}", size = {len(body)} }}')
    directory.mkdir()
    (directory / "weights.toml").write_text("\n".join(lines) + "\n")
    adopt(directory / "weights.toml", directory / "root", {"many": files})


def version(module: str) -> str:
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine() -> dict[str, object]:
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("weightcache", "modal", "pooch", "huggingface_hub")},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "loadavg": os.getloadavg(),
    }


def fresh_processes(directory: Path, runs: int) -> dict[str, dict[str, float] | None]:
    """Time every contestant ``runs`` times, taking turns; ``None`` for one that is not installed."""
    write_two_checkpoints(directory)
    present = {name: program for name, (module, program) in CONTESTANTS.items() if find_spec(module)}
    times: dict[str, list[float]] = {name: [] for name in present}
    for turn in range(runs + 1):
        for name, program in present.items():
            seconds = float(child(program, directory))
            if turn:  # the first turn writes bytecode and fills the page cache
                times[name].append(seconds)
    return {
        name: {"min": min(times[name]), "median": statistics.median(times[name])} if name in times else None
        for name in CONTESTANTS
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description="What a hit costs, beside its peers.")
    arguments.add_argument("--runs", type=int, default=25, help="fresh processes a contestant (default: %(default)s)")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = arguments.parse_args()
    if options.runs < 1:
        arguments.error("--runs: want 1 or more")
    result: dict[str, object] = {"benchmark": "hit", "machine": machine(), "runs": options.runs}

    with tempfile.TemporaryDirectory(prefix="weightcache-bench-") as temporary:
        two = Path(temporary, "two")
        two.mkdir()
        began = time.monotonic()
        fresh = result["fresh process, two checkpoints, s"] = fresh_processes(two, options.runs)
        print(f"Two checkpoints of {SIZE / 1e6:.0f} MB that are there; fresh processes, own import included, ms")
        print(f"{'':34}{'min':>9}{'median':>9}   of {options.runs}, {time.monotonic() - began:.0f} s")
        for name, told in fresh.items():
            module = CONTESTANTS[name][0]
            if told is None:
                print(f"{name:34}{'missing: ' + module + ' is not installed':>18}")
            else:
                print(f"{name:34}{1e3 * told['min']:9.2f}{1e3 * told['median']:9.2f}")

        steady = result["again in one process, with a Manifest, s"] = float(child(STEADY, two))
        print(f"\nThe same call again in one process, with a Manifest: {1e6 * steady:.1f} µs (best batch of 30)")

        many: dict[str, dict[str, float]] = {}
        print("\nOne directory checkpoint of many files, µs a file (ms in all), best of 5")
        print(f"{'files':>8}{'parse':>18}{'status':>18}{'hit':>18}")
        for count in (10_000, 20_000):
            directory = Path(temporary, str(count))
            write_many_files(directory, count)
            told = many[str(count)] = json.loads(child(DIRECTORY, directory))
            cells = (f"{1e6 * seconds / count:.2f} ({1e3 * seconds:.0f})" for seconds in told.values())
            print(f"{count:8}" + "".join(f"{cell:>18}" for cell in cells))
        result["directory of many files, s"] = many

    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
