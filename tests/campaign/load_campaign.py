"""The load campaign: many processes and many threads on one root, then cycles with kills until the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from campaign_table import Limit, Row
from load import Cycles, many_processes, many_threads
from load_one_process import GROWTH, one_process
from local_folder import local_folder
from origin import Origin

PROCESSES, CHECKPOINTS = 64, 50
THREADS, HITS = 500, 20  # hits of each thread
STEPS = 100  # of one process
BETWEEN = 20  # actions until what is left is measured


def rows(seed: int, seconds: float) -> tuple[list[Row], list[str]]:
    """Run the campaign, the cycles for what the other two leave of the time, and at least four rounds of them."""
    limit = Limit(until=time.monotonic() + seconds)
    with local_folder("load-") as folder, Origin() as origin:
        return _measured(folder, origin, seed, limit)


def _measured(folder: Path, origin: Origin, seed: int, limit: Limit) -> tuple[list[Row], list[str]]:
    found, failures = list[Row](), list[str]()

    def part(name: str, work: Callable[[Path], tuple[int, str, list[str]]]) -> None:
        (folder / name).mkdir()
        tried, note, problems = work(folder / name)
        note += f"; {sum('wrong bytes' in each for each in problems)} wrong results"
        found.append(Row("load", name, tried, len(problems), note))
        failures.extend(f"load, {name}, seed {seed}: {each}" for each in problems)

    def processes(inner: Path) -> tuple[int, str, list[str]]:
        problems = many_processes(inner, origin, PROCESSES, CHECKPOINTS, seed)
        return PROCESSES * CHECKPOINTS, f"{PROCESSES} at once, {CHECKPOINTS} checkpoints each, one empty root", problems

    def threads(inner: Path) -> tuple[int, str, list[str]]:
        problems = many_threads(inner, origin, THREADS, HITS, seed)
        return THREADS * HITS, f"{THREADS} at once, {HITS} hits each, one filled root", problems

    def steady(inner: Path) -> tuple[int, str, list[str]]:
        problems, grown = one_process(inner, origin, STEPS, seed)
        memory = f"{grown / 1024:.0f} KiB more memory, and {GROWTH >> 20} MiB are allowed"
        return STEPS, f"one process downloads, hits, rehashes, publishes and prunes; {memory}", problems

    def cycles(inner: Path) -> tuple[int, str, list[str]]:
        running = Cycles(inner, origin, seed)
        rounds = running.rounds(BETWEEN, lambda: limit.reached(0))
        done = ", ".join(f"{count} {action}" for action, count in sorted(running.done.items()))
        return running.done.total(), f"{done}; measured after each of {rounds} rounds", running.problems

    part("processes", processes)
    part("threads", threads)
    part("one process", steady)
    part("cycles", cycles)
    return found, failures
