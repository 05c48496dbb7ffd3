"""The crash campaign: a process ends before and after each of its calls, and a fresh one must end right."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from call_layer import WITHOUT_EVENT, Audit, CallLayer, Unsynced
from errno_injection import BrokenError
from forked_child import forked
from scenarios import Scenarios

FATES = ("missing", "zero", "old", "half")  # of what was written to a file and not synced; else all of it is there


class Point(NamedTuple):
    """A call that a process does not survive, and what becomes of each file that was not synced then."""

    scenario: str
    call: int
    after: bool
    fates: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.scenario, str(self.call), "after" if self.after else "before", *self.fates])

    @property
    def torn(self) -> int:
        """How many files lose what was not synced."""
        return len(self.fates) - self.fates.count("kept")

    @classmethod
    def parse(cls, text: str) -> Point:
        scenario, call, when, *fates = text.split()
        return cls(scenario, int(call), when == "after", tuple(fates))


class Crash(NamedTuple):
    """What came of one point."""

    call: str  # the name of the call, or empty where the process ended before it
    swept: bool  # whether only a later prune removed all that was left


class Survey(NamedTuple):
    """What a scenario does where nothing fails."""

    calls: int
    unsynced: list[tuple[Point, list[tuple[str, ...]]]]  # points at which files are not synced, and the fates of each

    def points(self, scenario: str) -> list[Point]:
        return [Point(scenario, call, after) for call in range(1, self.calls + 1) for after in (False, True)]


class _Watch(CallLayer):
    """Notes at which points files are not synced, instead of ending the process.

    After a call, all is as it is before the next one. The two are judged in different ways, and each state is noted
    once, for one of them in turn.
    """

    def __init__(self, scenario: str, folder: str) -> None:
        self._scenario, self._folder = scenario, folder
        self.found: list[tuple[Point, list[tuple[str, ...]]]] = []
        self._fates: list[tuple[str, ...]] = []  # of each file that is not synced
        super().__init__(0, after=False, report=-1)

    def moment(self, name: str, *, after: bool) -> None:
        if after:  # before a call, all is as it was after the last one
            files = present(self._folder, self.unsynced) if self.unsynced else []
            self._fates = [possible_fates(lost) for _, lost in files]
        if self._fates and self.calls % 2 == 0:
            self.found.append((Point(self._scenario, self.calls, after), self._fates))


def surveyed(world: Scenarios, scenario: str) -> Survey:
    """Do a scenario without a fault, and return what there is to try.

    Raises:
        BrokenError: Python saw another number of calls than the layer, or the scenario fails without a fault.
    """
    root = world.prepared(scenario)

    def work(_: int) -> Any:
        audit, layer = Audit(), _Watch(scenario, os.path.dirname(root))
        world.act(scenario, root)
        return Survey(layer.calls, layer.found), dict(layer.counts), dict(audit.counts)

    ended = forked(work)
    shutil.rmtree(os.path.dirname(root))
    if ended.code:
        raise BrokenError(f"{scenario} fails without a fault: {ended.report}")
    survey: Survey
    survey, counts, seen = ended.report
    with_event = {kind: count for kind, count in counts.items() if kind not in WITHOUT_EVENT}
    if with_event != seen:
        raise BrokenError(f"{scenario}: the layer counts {with_event}, and Python saw {seen}")
    return survey


def crash(world: Scenarios, point: Point) -> Crash:
    """End a process at one point, and check that fresh processes end right.

    Raises:
        BrokenError: A promise is broken.
    """
    root = world.prepared(point.scenario)

    def work(report: int) -> None:
        CallLayer(point.call, after=point.after, report=report)
        world.act(point.scenario, root)

    ended = forked(work)
    if ended.code == 1:
        raise BrokenError(f"{point}: it fails before its end: {ended.report}")
    call, unsynced = ended.report if ended.code == -signal.SIGKILL else ("", {})
    files = present(os.path.dirname(root), unsynced)
    for (path, lost), fate in zip(files, point.fates, strict=False):
        tear(path, lost, fate)
    judged = forked(lambda _: world.judge_crash(point.scenario, root, at_once=not point.after))
    if judged.code:
        raise BrokenError(f"{point} ({call}): {judged.report}")
    shutil.rmtree(os.path.dirname(root))
    return Crash(call, judged.report)


def present(folder: str, unsynced: dict[int, Unsynced]) -> list[tuple[Path, Unsynced]]:
    """Return each file in ``folder`` that was not synced, by one of its names."""
    found: dict[int, Path] = {}
    for path in sorted(Path(folder).rglob("*")):
        with suppress(FileNotFoundError):  # the process may be running
            number = path.lstat().st_ino
            if number in unsynced and path.is_file() and not path.is_symlink():
                found.setdefault(number, path)
    return [(path, unsynced[number]) for number, path in found.items()]


def tear(path: Path, lost: Unsynced, fate: str) -> None:
    """Do to a file what a power cut may do to what was written after its last sync."""
    with path.open("r+b") as stream:
        for offset, length, before in lost.writes:
            kept = length // 2 if fate == "half" else 0
            stream.seek(offset + kept)
            stream.write((before if fate == "old" else b"").ljust(length, b"\0")[kept:])
        if fate == "missing":
            stream.truncate(lost.size)


def possible_fates(lost: Unsynced) -> tuple[str, ...]:
    """Return the fates that leave different bytes."""
    grown = any(offset + length > lost.size for offset, length, _ in lost.writes)
    replaced = any(before.strip(b"\0") for *_, before in lost.writes)
    unlike = {"missing": grown, "old": replaced}  # others than `zero`
    return tuple(fate for fate in FATES if unlike.get(fate, True))


def torn(point: Point, fates: list[tuple[str, ...]]) -> list[Point]:
    """Return each combination of the fates of the files that a point leaves unsynced."""
    combinations = itertools.product(*(("kept", *each) for each in fates))
    return [point._replace(fates=chosen) for chosen in combinations if set(chosen) - {"kept"}]


def sampled(points: list[Point], count: int, seed: int, *, ordered: bool = True) -> list[Point]:
    """Return ``count`` of the points, drawn by the seed, in their order or in that of the draw."""
    chosen = random.Random(seed).sample(range(len(points)), min(count, len(points)))
    return [points[index] for index in (sorted(chosen) if ordered else chosen)]
