"""Load on one root, in the size that every run of the tests can afford; `make campaign` does more."""

from __future__ import annotations

from pathlib import Path

from load import Cycles, many_processes, many_threads
from origin import Origin


def test_processes_that_start_together(origin: Origin, tmp_path: Path) -> None:
    assert many_processes(tmp_path, origin, processes=8, checkpoints=10) == []


def test_threads_on_a_filled_root(origin: Origin, tmp_path: Path) -> None:
    assert many_threads(tmp_path, origin, threads=100, calls=5) == []


def test_cycles_with_kills(origin: Origin, tmp_path: Path) -> None:
    cycles = Cycles(tmp_path, origin, seed=1)
    for _ in range(2):
        cycles.run(5)
        cycles.clean()
    assert cycles.problems == []
    assert cycles.done["killed"]
    assert cycles.done["ensure"]
