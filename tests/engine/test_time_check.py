"""`ensure` warns of a download that does not fit into the time of its container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from origin import Origin, broken
from origin import status as answer
from support import blob, one
from weightcache import DownloadError, ensure
from weightcache._engine import time_check
from weightcache._engine.time_check import TimeCheck, WaitCheck
from weightcache._runtime.container_timeout import TimeLimit
from weightcache._store.partial_directory import BLOCK

DATA = blob(100_000)


def check(limit: TimeLimit, total: int, steps: list[tuple[float, int]]) -> list[str]:
    """Return the warnings about a download of which ``steps`` say when how many bytes came."""
    now, said = [0.0], list[str]()
    found = TimeCheck(limit, total, said.append, now=lambda: now[0])
    for at, count in steps:
        now[0] = at
        found.advance(count)
    return said


def test_too_much_for_the_assumed_rate_is_said_before_the_first_byte() -> None:
    [warning] = check(TimeLimit(290, "startup_timeout", used=10), 60_000_000_000, [])
    assert warning == (
        "60.0 GB are still to be downloaded, which takes 600 s at 100.0 MB/s (assumed), and this container is "
        "stopped in 290 s: raise startup_timeout to 1260 s"
    )
    assert check(TimeLimit(600, "startup_timeout"), 60_000_000_000, []) == []


def test_a_slow_mirror_is_noticed_after_five_seconds() -> None:
    limit = TimeLimit(300, "timeout")
    slow = [(1.0, 500_000_000), (2.0, 1_000_000), (5.5, 3_500_000), (6.0, 500_000), (9.0, 3_000_000)]
    [warning] = check(limit, 2_000_000_000, slow)  # the blocks of an earlier download come first
    assert "1.5 GB are still to be downloaded, which takes 1495 s at 1.0 MB/s (measured)" in warning
    assert "stopped in 294 s: raise timeout to 3000 s" in warning
    assert check(limit, 2_000_000_000, [(1.0, 0), (6.0, 100_000_000)]) == []


def test_nothing_at_all_in_five_seconds_is_slow_too() -> None:
    [warning] = check(TimeLimit(300, "timeout"), 1_000_000_000, [(1.0, 10), (7.0, -10)])
    assert "(measured)" in warning


def test_what_an_earlier_download_left_counts_once() -> None:
    now, said = [0.0], list[str]()
    found = TimeCheck(TimeLimit(300, "timeout"), 1_000_000_000, said.append, left=500_000_000, now=lambda: now[0])
    for at, count in ((1.0, 500_000_000), (7.0, 60_000_000)):
        now[0] = at
        found.advance(count)
    assert said == []  # 940 MB are missing, at 10 MB/s
    now[0] = 250.0
    found = TimeCheck(TimeLimit(60, "timeout"), 1_000_000_000, said.append, left=500_000_000, now=lambda: now[0])
    for at, count in ((251.0, 500_000_000), (257.0, 60_000_000)):
        now[0] = at
        found.advance(count)
    assert "940.0 MB are still to be downloaded, which takes 94 s at 10.0 MB/s (measured)" in said[0]


def test_the_wait_for_another_container() -> None:
    now, said = [0.0], list[str]()

    def start(total: int, by: str) -> TimeCheck:
        return TimeCheck(TimeLimit(300, "timeout"), total, said.append, by=by, now=lambda: now[0])

    waiting = WaitCheck(start)
    for at, done in ((0.0, 2_000_000_000), (3.0, 2_003_000_000), (6.0, 2_006_000_000), (9.0, 2_009_000_000)):
        now[0] = at
        waiting.update(4_006_000_000, done, "container ta-1")
    [warning] = said  # the bytes that were there before the wait say nothing about the rate
    assert "2.0 GB are still to be downloaded by container ta-1, which takes 2000 s at 1.0 MB/s (measured)" in warning
    said.clear()
    WaitCheck(start).update(60_000_000_000, 0, "another container")
    assert "60.0 GB are still to be downloaded by another container, which takes 600 s" in said[0]
    WaitCheck(lambda total, by: None).update(60_000_000_000, 0, "another container")
    assert len(said) == 1


def test_ensure_subtracts_what_an_earlier_download_left(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = blob(2 * BLOCK + 1000)
    monkeypatch.setattr(time_check, "ASSUMED", 1000.0)
    origin.put("/a", data, faults=[broken(2 * BLOCK + 500)], always=answer(404))
    with pytest.raises(DownloadError):
        ensure(one(data, origin.url("/a")), root=root, progress=False)
    origin.files["/a"].always = None
    report = ensure(one(data, origin.url("/a")), root=root, progress=False, time_limit=99.0).report
    assert (report["sam2"].outcome, report.warnings) == ("resumed", ())  # 1000 bytes, and not 2 MB


def test_ensure_warns_with_the_time_that_is_given(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    monkeypatch.setattr(time_check, "ASSUMED", 1000.0)
    origin.on_request = lambda _: seen.append("weightcache" in caplog.text or bool(caplog.records))
    seen: list[bool] = []
    report = ensure(manifest, root=root, progress=False, time_limit=99.0).report
    assert seen
    assert all(seen)  # it was said before the first request
    [warning] = report.warnings
    assert "0.1 MB are still to be downloaded, which takes 100 s at 1.0 kB/s (assumed)" in warning
    assert "raise the time limit (on Modal: startup_timeout or timeout) to 240 s" in warning
    assert ensure(manifest, root=root, progress=False, time_limit=0.0).report.warnings == ()  # a hit


def test_elsewhere_there_is_no_limit(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.put("/a", DATA)
    monkeypatch.setattr(time_check, "ASSUMED", 1.0)
    assert ensure(one(DATA, origin.url("/a")), root=root, progress=False).report.warnings == ()


@pytest.mark.parametrize("limit", [-1, float("nan"), "900", True])
def test_a_limit_is_a_number_of_seconds(limit: Any, root: Path) -> None:
    with pytest.raises(ValueError, match="time_limit must be a number of seconds"):
        ensure(one(DATA), root=root, time_limit=limit)
