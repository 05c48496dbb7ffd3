"""The last line of `ensure`: what was fetched, from where, how fast, and what the next start finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from weightcache import CheckpointReport, Report
from weightcache.cli.summary import duration, summary

A, B = "https://huggingface.co/x", "https://dl.example.com/y"


def report(*each: CheckpointReport, **more: Any) -> Report:
    return Report({f"c{at}": one for at, one in enumerate(each)}, **more)


def fetched(*sources: str, outcome: Any = "downloaded") -> CheckpointReport:
    return CheckpointReport(outcome, 400_000_000, 4.0, sources)


HIT, COPIED = CheckpointReport(), CheckpointReport("copied")
HUB = "huggingface.co"
NEXT = "the next start is a hit"
DONE = f", committed; {NEXT}"


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (report(HIT, HIT, HIT), "3 checkpoints ready: all hits, 4.0 s"),
        (report(HIT), "1 checkpoint ready: a hit, 4.0 s"),
        (
            report(fetched(A), fetched(B), fetched(A, outcome="resumed"), committed=True),
            f"3 checkpoints ready: 1.2 GB fetched from {HUB} and dl.example.com in 4.0 s (300.0 MB/s){DONE}",
        ),
        (
            report(HIT, HIT, COPIED, fetched(f"hf://org/name@{'0' * 40}")),
            f"4 checkpoints ready: 2 found ready, 1 copied, 400.0 MB fetched from {HUB} in 4.0 s (100.0 MB/s); {NEXT}",
        ),
        (
            report(CheckpointReport("waited"), waited=3.0),
            f"1 checkpoint ready: 1 installed by another process in 4.0 s; {NEXT}",
        ),
        (
            report(fetched("file:///a/b"), waited=3.0),
            f"1 checkpoint ready: 400.0 MB fetched from this machine in 4.0 s (400.0 MB/s); {NEXT}",
        ),
        (
            report(fetched(*(f"https://h{at}/x" for at in range(5)))),
            f"1 checkpoint ready: 400.0 MB fetched from h0, h1, h2 and 2 more in 4.0 s (100.0 MB/s); {NEXT}",
        ),
    ],
)
def test_the_line(made: Report, line: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert summary(made, str(root), 4.0, has_volume=False) == line


@pytest.mark.parametrize(
    ("committed", "has_volume", "end"),
    [
        (True, True, DONE),
        (False, True, ", not committed: the commit failed, and no other container has it; run this again"),
        (None, True, f", nothing to commit; {NEXT}"),
        (None, False, f"; {NEXT}"),
    ],
)
def test_whether_it_was_committed(committed: bool | None, has_volume: bool, end: str, root: Path) -> None:
    made = report(fetched(A), committed=committed)
    assert summary(made, str(root), 4.0, has_volume=has_volume).endswith(f"(100.0 MB/s){end}")


def test_a_root_that_nothing_keeps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = report(COPIED)
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    assert summary(made, str(root), 1.0, has_volume=False).endswith(
        ", on no Volume: it is lost when this container stops"
    )
    monkeypatch.setattr("weightcache._coordination.mount_check.MODAL_VOLUMES", f"{root.parent.resolve()}/")
    assert summary(made, str(root), 1.0, has_volume=False).endswith(
        ", not committed: no other container has it before a commit"
    )


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.0008, 0.0999, 0.1, 12.34)] == ["0.8 ms", "99.9 ms", "0.1 s", "12.3 s"]
