"""How somebody idle helps a slow connection: it takes over a share of what that has left, or races it for a block.

A share is cut off at a block. What remains to a connection that gives 6 kB/s is then one block, three minutes of work:
another connection fetches that as well, from where it is, and the first of the two that has it whole wins. A race costs
at most what the loser received of the block since it began, and no file pays more than `Settings.hedge_bytes` for all
of its races.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightcache._store.partials import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weightcache._runtime.settings import Settings

    from .segments import Task


@dataclass
class Pace:
    """What connections did lately: seconds to an answer, and bytes a second, or 0 if none has brought a block yet."""

    latency: float = 0.05
    rate: float = 0.0

    def note(self, rate: float) -> None:
        self.rate += (rate - self.rate) / 4 if self.rate else rate


def split(tasks: Iterable[Task], pace: Pace, now: float, settings: Settings, *, pending: bool) -> Task | None:
    """Split what the slowest connection has left, if somebody idle would end it sooner.

    Args:
        tasks: What all connections have.
        pace: What is usual.
        now: The time.
        settings: Limits.
        pending: Whether there is more to hand out, later.
    """
    best: tuple[float, Task, int] | None = None
    for task in tasks:
        segment = task.segment
        if segment.end is None or not _may_be_helped(task):
            continue
        age, stalled = (
            now - task.began,
            task.reading and now - task.moved >= max(settings.stalled_after, 4 * pace.latency),
        )
        if stalled and task.inherited and not task.received:
            continue  # the second one in a row: its own timeout speaks for the mirror
        stalled = stalled and task.rival is None
        # A young one has hardly begun to be fast. And a cut costs a connection: only where no other work is left.
        young = age < settings.stalled_after if pending else age < 4 * pace.latency
        rate = 0.0 if stalled else pace.rate if young else task.received / age
        if not stalled and (not rate or (pending and rate > pace.rate / 4)):
            continue
        start = segment.start if stalled else segment.start + BLOCK
        left, usual = segment.end - start, max(pace.rate, rate, 1.0)
        keep = int(rate * (pace.latency * usual + left) / (usual + rate))
        cut = start + -(-keep // BLOCK) * BLOCK
        gain = (segment.end - cut) / rate - 2 * pace.latency if rate else float("inf")
        if cut < segment.end and gain > 0 and (best is None or gain > best[0]):
            best = gain, task, cut
    if best is None:
        return None
    _, victim, cut = best
    rest = victim.transfer.cut(victim, cut)
    if cut == victim.segment.start:
        # A copy: the victim may still be reading into its own.
        rest.block = victim.segment.block and victim.segment.block.copy()
        victim.segment.block = None
        victim.revoke()
    task = victim.transfer.assign(rest, victim.transfer.mirrors.current or victim.mirror, whole=False, now=now)
    task.inherited = victim.revoked
    return task


def race(tasks: Iterable[Task], pace: Pace, now: float, settings: Settings) -> Task | None:
    """Begin a race for the block that would take longest, if it takes much longer than it usually does."""
    best = max(
        ((_too_long(task, pace, now, settings), task) for task in tasks), key=lambda each: each[0], default=(0.0, None)
    )
    return best[1].transfer.race(best[1], now) if best[1] is not None and best[0] > 0 else None


def _may_be_helped(task: Task) -> bool:
    mirror = task.transfer.mirrors.current
    if mirror is None or task.segment.kept or task.revoked or task.copy:
        return False
    return task.transfer.parallel and mirror.server.has_room()


def _too_long(task: Task, pace: Pace, now: float, settings: Settings) -> float:
    """Return for how many seconds a task will be at its block, or 0 if that is not for too long."""
    segment, block, rival = task.segment, task.segment.block, task.rival
    if block is None or segment.end is None or not task.reading or not _may_be_helped(task):
        return 0.0
    if task.transfer.raced > settings.hedge_bytes - BLOCK:
        return 0.0
    size, age = min(BLOCK, segment.end - block.start), now - task.since
    if task.since < task.began or age < max(settings.hedge_min_age, 8 * pace.latency):
        return 0.0
    left, got = size - block.filled, block.filled - task.had
    if not got:
        return 0.0  # it is taken over, if anything helps: see `split`
    seconds = left * age / got
    if rival is not None:
        # It may be a slow one, too. Each next one gets twice the time: where all are slow, none must be replaced.
        age = now - rival.began
        if not rival.received or age < max(settings.stalled_after, 8 * pace.latency) * 2**task.races:
            return 0.0
        left = size - (rival.segment.block.filled if rival.segment.block else 0)
        seconds = min(seconds, left * age / rival.received)
    usual = 2 * pace.latency + left / pace.rate if pace.rate else settings.hedge_usual / settings.hedge_slowdown
    return seconds if seconds > settings.hedge_slowdown * usual + settings.hedge_min_gain else 0.0
