"""The crash campaign: a process ends before and after each of its calls, and a fresh one must end right."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from call_layer import WITHOUT_EVENT, Audit, CallLayer, Unsynced
from errno_injection import BrokenError
from forked_child import forked
from scenarios import Scenarios
from weightcache._runtime.writer_identity import note_path

RANDOM = 20  # combinations at each point in which more than two files are torn
TRIES = 20  # kills at a point until it leaves the files that a failure names: two threads differ in their order
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
    dirty: frozenset[tuple[int, bool]]  # the points at which files were not synced, in that run

    def points(self, scenario: str) -> list[Point]:
        return [Point(scenario, call, after) for call in range(1, self.calls + 1) for after in (False, True)]

    def moments(self, scenario: str) -> list[Point]:
        """Return each moment between two calls once: after a call, all is as it is before the next one."""
        return [each for each in self.points(scenario) if each.call % 2 == 0]


class _Watch(CallLayer):
    """Notes at which points files are not synced, instead of ending the process."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.dirty: set[tuple[int, bool]] = set()
        super().__init__(0, after=False, report=-1)

    def moment(self, name: str, *, after: bool) -> None:
        if self.unsynced and present(self._root, self.unsynced):
            self.dirty.add((self.calls, after))


class Left(NamedTuple):
    """What a killed process left: the name of its last call, and the bytes of each file that a power cut may leave."""

    call: str
    cuts: list[tuple[Path, dict[str, bytes]]]  # by fate; what is there is not among them

    @property
    def fates(self) -> list[tuple[str, ...]]:
        return [tuple(each) for _, each in self.cuts]

    def fits(self, fates: Sequence[str]) -> bool:
        """Whether each file of a point is here, and can meet its fate."""
        return len(fates) == len(self.cuts) and all(
            fate == "kept" or fate in cuts for fate, (_, cuts) in zip(fates, self.cuts, strict=True)
        )

    def tear(self, fates: Sequence[str]) -> None:
        for (path, cuts), fate in zip(self.cuts, fates, strict=True):
            if fate != "kept":
                path.write_bytes(cuts[fate])  # in place: another name of the file has the same bytes


class Torn(NamedTuple):
    """What came of the combinations of fates at one point."""

    files: int  # that were not synced
    few: int  # combinations tried in which one file or two lose something
    many: int  # and more than two
    of_many: int  # how many of those there are
    broken: list[tuple[Point, str]]


def surveyed(world: Scenarios, scenario: str) -> Survey:
    """Do a scenario without a fault, and return what there is to try.

    Raises:
        BrokenError: Python saw another number of calls than the layer, or the scenario fails without a fault.
    """
    root = world.prepared(scenario)

    def work(_: int) -> Any:
        audit, layer = Audit(), _Watch(root)
        world.act(scenario, root)
        return Survey(layer.calls, frozenset(layer.dirty)), dict(layer.counts), dict(audit.counts)

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
        BrokenError: A promise is broken, or what the process left is never what the point says.
    """
    for _ in range(TRIES if point.fates else 1):
        root, left = _killed(world, point)
        if not point.fates or left.fits(point.fates):
            break
        shutil.rmtree(os.path.dirname(root))
    else:
        raise BrokenError(
            f"{point}: not tried, as its files were never there in {TRIES} tries: the order of two threads differs. "
            f"The last time, these fates were possible: {left.fates}"
        )
    left.tear(point.fates or ["kept"] * len(left.cuts))
    swept = _judged(world, point, root, left.call)
    shutil.rmtree(os.path.dirname(root))
    return Crash(left.call, swept)


def tear_all(world: Scenarios, point: Point, seed: int, most: int = sys.maxsize) -> Torn:
    """End a process at one point, and judge copies of what it left, each with another combination of fates.

    All combinations of one file or two are tried, then `RANDOM` of the others, and ``most`` at most.

    Raises:
        BrokenError: The process failed before its end.
    """
    root, left = _killed(world, point)
    folder = os.path.dirname(root)
    points = torn(point, left.fates)
    few, many = [each for each in points if each.torn <= 2], [each for each in points if each.torn > 2]
    chosen = (few + sampled(many, RANDOM, seed, ordered=False))[:most]
    broken = list[tuple[Point, str]]()
    kept, notes = f"{folder}-kept", _notes(root)
    os.rename(folder, kept)  # links and notes name the path: each copy takes the place of the original
    for each in chosen:
        # With times, modes and hard links, which `shutil.copytree` makes two files of.
        subprocess.run(["cp", "-a", "--", kept, folder], check=True)
        for path in _notes(root).keys() - notes.keys():
            path.unlink(missing_ok=True)
        for path, text in notes.items():  # which the library removes where the root is gone
            path.write_bytes(text)
        left.tear(each.fates)
        try:
            _judged(world, each, root, left.call)
        except BrokenError as error:
            broken.append((each, str(error)))
        shutil.rmtree(folder)
    shutil.rmtree(kept)
    tried = min(len(few), len(chosen))
    return Torn(len(left.cuts), tried, len(chosen) - tried, len(many), broken)


def _killed(world: Scenarios, point: Point) -> tuple[str, Left]:
    """End a process at a point; return its root, and what it left."""
    root = world.prepared(point.scenario)

    def work(report: int) -> None:
        CallLayer(point.call, after=point.after, report=report)
        world.act(point.scenario, root)

    ended = forked(work)
    if ended.code == 1:
        raise BrokenError(f"{point}: it fails before its end: {ended.report}")
    call, unsynced = ended.report if ended.code == -signal.SIGKILL else ("", {})
    return root, Left(call, [(path, cuts(path.read_bytes(), lost)) for path, lost in present(root, unsynced)])


def _judged(world: Scenarios, point: Point, root: str, call: str) -> bool:
    judged = forked(lambda _: world.judge_crash(point.scenario, root, at_once=not point.after))
    if judged.code:
        raise BrokenError(f"{point} ({call}): {judged.report}")
    return bool(judged.report)


def _notes(root: str) -> dict[Path, bytes]:
    """Return the notes about a root on the container's own disk."""
    found, place = dict[Path, bytes](), Path(note_path(root, ""))
    for path in place.parent.glob(f"{place.name}*"):
        with suppress(FileNotFoundError):  # of a root that is not made yet: another process removes it
            found[path] = path.read_bytes()
    return found


def present(root: str, unsynced: dict[int, Unsynced]) -> list[tuple[Path, Unsynced]]:
    """Return each file in and beside ``root`` that was not synced, by one of its names."""
    found: dict[int, Path] = {}
    for path in sorted(Path(root).parent.rglob("*")):
        with suppress(FileNotFoundError):  # the process may be running
            number = path.lstat().st_ino
            if number in unsynced and path.is_file() and not path.is_symlink():
                found.setdefault(number, path)
    return [(path, unsynced[number]) for number, path in found.items()]


def cut(data: bytes, lost: Unsynced, fate: str) -> bytes:
    """Return what a power cut leaves of a file that has ``data``, of which some was written after its last sync."""
    left = bytearray(data)
    for offset, length, before in lost.writes:
        kept = length // 2 if fate == "half" else 0
        end = min(offset + length, len(left))
        if end > offset + kept:
            there = (before if fate == "old" else b"").ljust(length, b"\0")
            left[offset + kept : end] = there[kept : end - offset]
    return bytes(left[: lost.size] if fate == "missing" else left)


def cuts(data: bytes, lost: Unsynced) -> dict[str, bytes]:
    """Return what each fate leaves, without a fate that leaves what is there, or what another one leaves."""
    found: dict[str, bytes] = {}
    for fate in FATES:
        left = cut(data, lost, fate)
        if left != data and left not in found.values():
            found[fate] = left
    return found


def torn(point: Point, fates: list[tuple[str, ...]]) -> list[Point]:
    """Return each combination of the fates of the files that a point leaves unsynced."""
    combinations = itertools.product(*(("kept", *each) for each in fates))
    return [point._replace(fates=chosen) for chosen in combinations if set(chosen) - {"kept"}]


def sampled(points: list[Point], count: int, seed: int, *, ordered: bool = True) -> list[Point]:
    """Return ``count`` of the points, drawn by the seed, in their order or in that of the draw."""
    chosen = random.Random(seed).sample(range(len(points)), min(count, len(points)))
    return [points[index] for index in (sorted(chosen) if ordered else chosen)]
