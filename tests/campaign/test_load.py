"""Load on one root, in the size that every run of the tests can afford; `make campaign` does more."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import load
import load_campaign
import load_one_process
from campaign_table import Limit
from load import ROUNDS, Cycles, many_processes, many_threads
from load_one_process import one_process
from origin import Origin
from weightcache import Manifest, ensure
from weightcache._runtime.writer_identity import Writer


def test_processes_that_start_together(origin: Origin, tmp_path: Path) -> None:
    assert many_processes(tmp_path, origin, processes=8, checkpoints=10) == []


def test_threads_on_a_filled_root(origin: Origin, tmp_path: Path) -> None:
    assert many_threads(tmp_path, origin, threads=100, calls=5) == []


def test_cycles_with_kills(origin: Origin, tmp_path: Path) -> None:
    cycles = Cycles(tmp_path, origin, seed=1)
    cycles.rounds(3, lambda: True)
    assert cycles.problems == []
    assert cycles.done["killed"]
    assert cycles.done["ensure"]


def test_one_process_that_goes_on(origin: Origin, tmp_path: Path) -> None:
    problems, _ = one_process(tmp_path, origin, steps=2)
    assert problems == []


@pytest.mark.parametrize(
    ("leak", "said"),
    [
        ("held.append(b'x' * (1 << 20))", "memory grew from"),
        ("held.append([[number] for number in range(600)])", "objects grew from"),
        ("held.append(open(path))", "descriptors grew from"),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "threads grew from"),
        ("problems.add('model-1')", "it got wrong bytes of model-1"),
        ("sys.exit('ended')", "it failed: ended"),
    ],
)
def test_what_one_process_keeps_is_found(
    leak: str, said: str, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_one_process, "WARM_UP", 1)  # what the first steps load is noise that no leak hides behind
    monkeypatch.setattr(load_one_process, "GROWTH", 4 << 20 if "x" in leak else 1 << 40)
    problems, _ = one_process(tmp_path, origin, steps=8, leak=leak)
    assert any(said in each for each in problems), problems


@pytest.fixture
def here(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cycles:
    """Cycles in this process: each action is an `ensure`."""
    cycles = Cycles(tmp_path, origin, seed=1, checkpoints=2)

    def act(action: str, manifest: Path, container: int, kill_after: float | None) -> None:
        ensure(json.loads(manifest.read_text()), root=tmp_path / "root", progress=False)
        cycles.done[action] += 1

    monkeypatch.setattr(cycles, "_act", act)
    monkeypatch.setattr(load, "DOWNLOAD_RATE", None)
    return cycles


def test_there_are_enough_rounds_to_compare(here: Cycles) -> None:
    assert here.rounds(1, lambda: True) == ROUNDS + 1
    assert here.done.total() == 4 * (ROUNDS + 1)
    assert here.problems == []


@pytest.mark.parametrize(("place", "said"), [("notes", "notes in the temp"), ("root", "files of the root")])
def test_what_grows_from_round_to_round_is_found(place: str, said: str, here: Cycles, tmp_path: Path) -> None:
    real, folder = here.clean, Path(tempfile.gettempdir() if place == "notes" else tmp_path / "root/.weightcache")

    def clean() -> None:
        (folder / os.urandom(8).hex()).touch()
        real()

    here.clean = clean  # type: ignore[method-assign]
    here.rounds(1, lambda: True)
    assert len(here.problems) == ROUNDS
    assert all(said in each for each in here.problems)


def test_partials_that_stay_are_found(here: Cycles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Writer.new(str(tmp_path / "root"))
    other = replace(mine, container="0" * 12)
    [digest, _] = [each.digest for each in Manifest.load(json.loads((tmp_path / "1.json").read_text()))]

    def sweep(*_: object) -> list[str]:
        for each in (mine, other):
            (tmp_path / f"root/.weightcache/partial/{digest}.{each}").mkdir(exist_ok=True)
        return []

    monkeypatch.setattr("weightcache._engine.prune.sweep", sweep)
    here.clean()
    found = sorted((text, Path(path).name) for text, _, path in (each.partition(": ") for each in here.problems))
    assert found == [
        ("a partial is left", f"{digest}.{other}"),
        ("a partial is left", f"{digest}.{mine}"),
        ("a partial of this container is left", f"{digest}.{mine}"),
    ]


def test_wrong_bytes_of_a_hit_are_found(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rotten(*arguments: Any, **options: Any) -> Any:
        found = ensure(*arguments, **options)
        path = found["model-1"]
        path.write_bytes(bytes(path.stat().st_size))
        return found

    monkeypatch.setattr(load, "ensure", rotten)
    assert many_threads(tmp_path, origin, threads=2, calls=1) == ["the threads got wrong bytes of model-1"]


def test_the_row_counts_wrong_results(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_campaign, "many_processes", lambda *_: ["process 3 got wrong bytes of a", "it hangs"])
    monkeypatch.setattr(load_campaign, "many_threads", lambda *_: [])
    monkeypatch.setattr(load_campaign, "one_process", lambda *_: ([], 2048))
    monkeypatch.setattr(Cycles, "rounds", lambda *_: 4)
    rows, failures = load_campaign._measured(tmp_path, origin, 0, Limit(most=0))
    assert [row.failed for row in rows] == [2, 0, 0, 0]
    assert [row.note.rpartition("; ")[2] for row in rows] == ["1 wrong results", *["0 wrong results"] * 3]
    assert len(failures) == 2
