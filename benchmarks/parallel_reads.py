"""Measure how many parallel reads are best, and what the rule that adapts costs: on several storages, in one run.

In each place, every setting of ``threads`` reads the same file, and the settings take turns. ``adapt`` is the default
of `prefetch`. For each setting it prints the least and the median of the seconds, both divided by those of the best
fixed setting, and the CPU seconds of the process.

With ``--direct`` it measures O_DIRECT instead: plain threads that read into memory, with and without it.

    python benchmarks/parallel_reads.py [--rounds N] [--mb N] [--only PLACE] [--direct] [--json FILE]

The slow volume needs FUSE (see ``slowvol``), and gVisor Debian's apt (see ``tests/system/in_gvisor.py``).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from slowvol import SlowVolume, available  # noqa: E402
from weightcache import prefetch_files  # noqa: E402

RUNNER = HERE.parent / "tests" / "system" / "in_gvisor.py"
CHUNK = 8 << 20
READAHEAD = 1 << 20  # bytes, of the slow volume
FIXED = (1, 2, 4, 8, 16)
VOLUMES: dict[str, dict[str, Any]] = {
    "volume": {},
    "narrow": {"total": 600e6},
    "blocks": {"block": 1 << 20, "latency": 0.020},
}
GVISORS = {"gvisor12": "bookworm", "gvisor13": "trixie"}
PLACES = (*VOLUMES, "cold", "warm", "tmpfs", *GVISORS, "gvisor-memory")

Seconds = tuple[float, float]  # wall, CPU


def timed(work: Callable[[], None]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def prefetched(path: str, into: str, threads: int | None) -> Seconds:
    def work() -> None:
        with prefetch_files(path, into=into, threads=threads) as reading:
            assert reading.wait(), reading.stats

    return timed(work)


def plainly(path: str, threads: int, *, direct: bool) -> Seconds:
    """Read a file into one piece of memory with plain threads."""
    size = os.path.getsize(path) // CHUNK * CHUNK  # O_DIRECT reads whole sectors

    def work() -> None:
        file = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        memory = memoryview(mmap.mmap(-1, size))
        starts = iter(range(0, size, CHUNK))
        lock = threading.Lock()

        def read() -> None:
            while True:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                done = 0
                while done < CHUNK:
                    done += os.preadv(file, [memory[start + done : start + CHUNK]], start + done)

        workers = [threading.Thread(target=read) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        os.close(file)

    return timed(work)


def contestants(path: str, *, direct: bool) -> dict[str, Callable[[], Seconds]]:
    if direct:
        return {
            f"{threads} reads{', direct' * way}": lambda threads=threads, way=way: plainly(path, threads, direct=way)
            for threads in (1, 4, 16)
            for way in (False, True)
        }
    return {
        f"{into}, {threads or 'adapt'}": lambda into=into, threads=threads: prefetched(path, into, threads)
        for into in ("cache", "memory")
        for threads in (*FIXED, None)
    }


def measure(path: Path, forget: Callable[[], object], rounds: int, *, direct: bool) -> dict[str, list[Seconds]]:
    """Let the contestants take turns; each round begins with another one."""
    ways = contestants(str(path), direct=direct)
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            forget()
            try:
                seconds = ways[name]()
            except OSError as error:  # O_DIRECT is not possible here
                print(f"{name}: {error}", file=sys.stderr)
                continue
            if turn:  # the first turn warms up
                found[name].append(seconds)
    return {name: seconds for name, seconds in found.items() if seconds}


def drop(path: Path) -> None:
    """Remove a file from the page cache."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def measure_in(place: str, memory: Path, disk: Path, options: argparse.Namespace) -> dict[str, list[Seconds]]:
    rounds, direct = options.rounds, options.direct
    if place in VOLUMES:
        if reason := available():
            print(f"{place}: not measured: {reason}")
            return {}
        with SlowVolume(memory, readahead=READAHEAD, **VOLUMES[place]) as volume:
            return measure(volume.path / "weights", volume.evict, rounds, direct=direct)
    if place.startswith("gvisor"):
        inside = [sys.executable, str(Path(__file__).resolve()), "--rounds", str(rounds)]
        inside += ["--direct"] * direct + ["--inside", str(disk / "weights")]
        inside += ["--copy"] * (place == "gvisor-memory")
        release = GVISORS.get(place, "trixie")
        command = [sys.executable, str(RUNNER), "--build", release, "--command", *inside]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
        told = [line for line in said.splitlines() if line.startswith("{")]
        if not told:
            print(f"{place}: not measured: {said.strip()[-300:]}")
        return json.loads(told[0]) if told else {}
    path = (memory if place == "tmpfs" else disk) / "weights"
    return measure(path, (lambda: drop(path)) if place == "cold" else (lambda: None), rounds, direct=direct)


def inside(options: argparse.Namespace) -> None:
    """Measure in the sandbox, and print JSON."""
    path = options.inside
    if options.copy:  # into the sandbox's own memory
        path = Path("/dev/shm/weights")
        path.write_bytes(options.inside.read_bytes())
    print(json.dumps(measure(path, lambda: None, options.rounds, direct=options.direct)))


def show(place: str, found: dict[str, list[Seconds]]) -> None:
    print(f"\n### {place}\n")
    print("| | least, s | median, s | of the best: least | median | CPU, s, median |")
    print("|---|--:|--:|--:|--:|--:|")
    for group in dict.fromkeys(name.split(",")[0] for name in found):
        rows = {name: seconds for name, seconds in found.items() if name.split(",")[0] == group}
        fixed = {name: seconds for name, seconds in rows.items() if "adapt" not in name}
        best_least = min(min(wall for wall, _ in seconds) for seconds in fixed.values())
        best_median = min(statistics.median(wall for wall, _ in seconds) for seconds in fixed.values())
        for name, seconds in rows.items():
            least, median = min(wall for wall, _ in seconds), statistics.median(wall for wall, _ in seconds)
            cpu = statistics.median(cpu for _, cpu in seconds)
            bold = "**" if "adapt" in name else ""
            ratios = f"{least / best_least:.2f} | {median / best_median:.2f}"
            print(f"| {bold}{name}{bold} | {least:.3f} | {median:.3f} | {ratios} | {cpu:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="How many parallel reads are best.")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--mb", type=int, default=300, help="size of the file in MB (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=PLACES, help="only this place; may be repeated")
    parser.add_argument("--direct", action="store_true", help="measure O_DIRECT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--copy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options)
        return
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {options.mb} MB")
    print("load average before: {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()))
    result = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, tempfile.TemporaryDirectory() as disk:
        data = os.urandom(1 << 20) * options.mb
        for folder in (memory, disk):
            with open(f"{folder}/weights", "wb") as file:
                file.write(memoryview(data)[: options.mb * 1_000_000])
                file.flush()
                os.fsync(file.fileno())
        del data
        for place in options.only or PLACES:
            result[place] = measure_in(place, Path(memory), Path(disk), options)
            if result[place]:
                show(place, result[place])
    with suppress(OSError):
        print("\nload average after: {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
