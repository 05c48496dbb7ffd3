"""`timeline`: each moment of a start counts for one phase, and what no phase has is `other`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import weightcache
from origin import Origin
from support import blob, one
from weightcache import Timeline, _spans, _timeline, ensure, prefetch_files, timeline
from weightcache.errors import DownloadError

DATA = blob(300_000)


class Clock:
    """A clock that goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_spans, "monotonic", clock)
    monkeypatch.setattr(_timeline, "monotonic", clock)
    return clock


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Timeline]:
    monkeypatch.delenv("MODAL_TASK_ID", raising=False)
    running = timeline()
    yield running
    running.ready()


def seconds(line: Timeline) -> dict[str, float]:
    return {name: phase["seconds"] for name, phase in line.as_dict()["phases"].items()}


def spend(line: Timeline, clock: Clock, name: str, amount: float, size: int = 0) -> None:
    with line.phase(name, size):
        clock.now += amount


def test_phases_and_the_rest_are_all(clock: Clock, line: Timeline, capsys: pytest.CaptureFixture[str]) -> None:
    spend(line, clock, "load", 2.0, size=6_000_000)
    clock.now += 0.5
    with line.phase("to device") as phase:
        clock.now += 1.0
        phase.add(2_000_000)
    spend(line, clock, "load", 1.0, size=3_000_000)
    assert line.ready() is line
    clock.now += 100
    told = json.loads(line.json())
    assert told == line.as_dict()
    assert told.pop("before") > 0
    assert told == {
        "ready": 4.5,
        "other": 0.5,
        "phases": {
            "load": {"seconds": 3.0, "parallel_seconds": 0.0, "bytes": 9_000_000, "bytes_per_second": 3e6},
            "to device": {"seconds": 1.0, "parallel_seconds": 0.0, "bytes": 2_000_000, "bytes_per_second": 2e6},
        },
    }
    text = "ready after 4.50 s: load 3.00 s (9.0 MB, 3.0 MB/s), to device 1.00 s (2.0 MB, 2.0 MB/s), other 0.50 s"
    assert capsys.readouterr().err.startswith(f"weightcache: {text}; before: ")
    line.ready()
    assert capsys.readouterr().err == ""


def test_a_phase_inside_another_counts_once(clock: Clock, line: Timeline) -> None:
    with line.phase("outer"):
        clock.now += 1
        spend(line, clock, "inner", 2)
        clock.now += 4
    assert seconds(line) == {"outer": 5, "inner": 2}


def test_an_exception_ends_its_phase(clock: Clock, line: Timeline) -> None:
    def fail() -> None:
        with line.phase("load"):
            clock.now += 1
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011 (the one above)
        fail()
    clock.now += 1
    assert seconds(line) == {"load": 1}
    assert line.as_dict()["other"] == 1


def in_thread(function: object) -> None:
    thread = threading.Thread(target=function)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_threads_share_the_wall_time(clock: Clock, line: Timeline) -> None:
    """The thread that called `timeline` is first; what others do meanwhile is beside."""
    with line.phase("import"):
        in_thread(lambda: spend(line, clock, "download", 3, size=300))
        clock.now += 1
    in_thread(lambda: spend(line, clock, "download", 2, size=200))
    told = line.as_dict()
    assert told["phases"]["download"] == {
        "seconds": 2.0,
        "parallel_seconds": 3.0,
        "bytes": 500,
        "bytes_per_second": 100.0,
    }
    assert (told["phases"]["import"]["seconds"], told["ready"], told["other"]) == (4.0, 6.0, 0.0)
    assert "; in parallel: download 3.00 s; before" in str(line)


def test_while_it_runs(clock: Clock, line: Timeline) -> None:
    assert timeline() is line
    assert not line.is_over
    with line.phase("load"):
        clock.now += 2
        assert seconds(line) == {"load": 2}
        assert str(line).startswith("2.00 s so far: load 2.00 s, other 0.0 ms")


def test_after_it_is_ready(clock: Clock, line: Timeline) -> None:
    line.ready()
    spend(line, clock, "load", 2)
    assert seconds(line) == {}
    second = timeline()
    assert second is not line
    spend(second, clock, "load", 1)
    second.ready()
    assert seconds(second) == {"load": 1}


def test_one_that_is_never_ready_is_bounded(clock: Clock, line: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_spans, "MAX_SPANS", 3)
    for _ in range(5):
        spend(line, clock, "load", 1)
    assert seconds(line) == {"load": 3}
    assert line.as_dict()["other"] == 2


def test_a_memory_snapshot(clock: Clock, line: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is restored is another one, days later."""
    spend(line, clock, "load", 3)
    clock.now += 86_400
    monkeypatch.setenv("MODAL_TASK_ID", "ta-restored")
    spend(line, clock, "to device", 2)
    line.ready()
    told = line.as_dict()
    assert (told["before"], told["ready"], list(told["phases"])) == (None, 2.0, ["to device"])
    before = told["before_snapshot"]
    assert (before["ready"], before["phases"]["load"]["seconds"]) == (3.0, 3.0)
    assert str(line) == "ready after 2.00 s: to device 2.00 s, other 0.0 ms; before the snapshot: 3.00 s"


@pytest.mark.parametrize("name", ["", " ", "two\nlines", None])
def test_names_of_phases(line: Timeline, name: object) -> None:
    with pytest.raises(ValueError, match="name must be the name of a phase"):
        line.phase(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [-1, 1.5, "1 MB"])
def test_sizes_of_phases(line: Timeline, size: object) -> None:
    with pytest.raises(ValueError, match="size must be a number of bytes"):
        line.phase("load", size)  # type: ignore[arg-type]


def test_no_stderr(line: Timeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    line.ready()
    assert capsys.readouterr().out == ""


def test_a_closed_stderr(line: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "w") as closed:
        pass
    monkeypatch.setattr(sys, "stderr", closed)
    assert line.ready().is_over


def test_a_forked_child_is_no_start(line: Timeline, capfd: pytest.CaptureFixture[str]) -> None:
    sys.stderr.flush()
    code = 9
    if not (child := os.fork()):
        code = 0 if line.ready().is_over and timeline() is not line else 1
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert capfd.readouterr().err == ""
    assert not line.is_over


# What the library records.


def test_a_download_and_a_hit(origin: Origin, root: Path, line: Timeline) -> None:
    origin.put("/a", DATA)
    volume = SimpleNamespace(commit=lambda: None, reload=lambda: None)
    ensure(one(DATA, origin.url("/a")), root=root, volume=volume, lease=None, progress=False)
    phases = line.as_dict()["phases"]
    assert {"inspect", "reload", "download", "commit"} <= set(phases)
    assert phases["download"]["bytes"] == len(DATA)
    ensure(one(DATA, origin.url("/a")), root=root, progress=False)
    told = line.ready().as_dict()
    assert told["phases"]["download"]["bytes"] == len(DATA)
    assert sum(phase["seconds"] for phase in told["phases"].values()) + told["other"] == pytest.approx(told["ready"])


def test_a_download_that_fails(origin: Origin, root: Path, line: Timeline) -> None:
    with pytest.raises(DownloadError):
        ensure(one(DATA, origin.url("/gone")), root=root, progress=False)
    assert line.as_dict()["phases"]["download"]["seconds"] > 0


def test_what_is_adopted_is_verified(origin: Origin, root: Path, line: Timeline) -> None:
    manifest = weightcache.Manifest.load(one(DATA, origin.url("/a")))
    place = root / "sam2" / manifest["sam2"].version
    place.mkdir(parents=True)
    (place / manifest["sam2"].files[0].path).write_bytes(DATA)
    ensure(manifest, root=root, progress=False)
    assert line.as_dict()["phases"]["verify"]["seconds"] > 0


def test_a_prefetch_is_beside_the_sum(tmp_path: Path, line: Timeline) -> None:
    (tmp_path / "a").write_bytes(DATA)
    with prefetch_files(tmp_path / "a", into="memory") as reading:
        assert reading.wait(60)
        took = reading.stats
    told = line.as_dict()["phases"]["prefetch"]
    assert told["seconds"] == 0
    assert told["bytes"] == len(DATA)
    assert told["parallel_seconds"] == pytest.approx(took.seconds, abs=0.05)


def test_nothing_is_recorded_without_a_timeline(tmp_path: Path) -> None:
    code = (
        "import sys, weightcache\nfrom weightcache import _spans\n"
        "before = list(sys.meta_path)\nwith _spans.span('load') as one: one.add(5)\n"
        "assert one is _spans.span('build') and not _spans._active and sys.meta_path == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wait_is_what_was_measured(clock: Clock, line: Timeline) -> None:
    with line.phase("inspect"):
        clock.now += 5
        _spans.add_span("wait", 4.0)
        _spans.add_span("wait", 0.0)
    assert seconds(line) == {"inspect": 1.0, "wait": 4.0}


def test_threads_that_end_it_at_once(line: Timeline, capsys: pytest.CaptureFixture[str]) -> None:
    threads = [threading.Thread(target=line.ready) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err.count("weightcache: ready after") == 1
