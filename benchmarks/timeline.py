"""Measure what `weightcache.timeline` costs a start: its import, the call, a finder call for each module, the end.

CPU time, the median of many repetitions. "import" is in fresh processes, which have imported weightcache and those
modules of the standard library that every heavy library imports too.

    python benchmarks/timeline.py [--rounds N] [--modules N]
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from weightcache import timeline

PHASES = 10
IMPORT = """
import contextlib, importlib.machinery, time, warnings, weightcache
weightcache.ensure
began = time.process_time_ns()
weightcache.timeline
print(time.process_time_ns() - began)
"""


def fresh() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e6


def one_start(modules: int) -> dict[str, float]:
    """Milliseconds of each part of one start."""
    clock, parts = time.process_time_ns, {}
    began = clock()
    recording = timeline()
    parts["the call"] = clock() - began
    finder = next(each for each in sys.meta_path if type(each).__name__ == "ImportSpans")
    with recording._imports._timed():  # noqa: SLF001 (as inside the import of a large library)
        began = clock()
        for _ in range(modules):
            finder.find_spec("a.module", None, None)
        parts[f"{modules} modules"] = clock() - began
    began = clock()
    for number in range(PHASES):
        with recording.phase(f"phase {number}"):
            pass
    parts[f"{PHASES} phases"] = clock() - began
    began = clock()
    with redirect_stderr(io.StringIO()):
        recording.ready()
    parts["ready"] = clock() - began
    return {name: taken / 1e6 for name, taken in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a timeline costs.")
    parser.add_argument("--rounds", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--modules", type=int, default=1100, help="as torch imports (default: %(default)s)")
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    fresh()  # compiles
    imports = [fresh() for _ in range(20)]
    starts = [one_start(options.modules) for _ in range(options.rounds)]
    rows = {"import": statistics.median(imports)}
    rows |= {name: statistics.median(each[name] for each in starts) for name in starts[0]}
    for name, taken in {**rows, "together": sum(rows.values())}.items():
        print(f"{name:>16}  {taken:.3f} ms")


if __name__ == "__main__":
    main()
