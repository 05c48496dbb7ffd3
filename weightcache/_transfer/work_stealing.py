"""How an idle connection helps a slow one: it steals a share of the slow one's segment, or hedges its block.

A share is cut off at a block. What is left to a connection that delivers 6 kB/s is then one block, three minutes of
work. Another connection fetches that block as well, from where it is, and the first of the two that has it whole wins.
A hedged request costs at most what the loser received of the block since it began, and no file pays more than
`Settings.hedge_bytes` for all of its hedged requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightcache._store.partial_directory import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weightcache._runtime.tuning_constants import Settings

    from .file_transfer import FileTask


@dataclass
class Pace:
    """What connections did lately.

    Attributes:
        latency: Seconds from a request to its response.
        rate: Bytes a second, or 0 if no connection has delivered a block yet.
    """

    latency: float = 0.05
    rate: float = 0.0

    def on_response(self, seconds: float) -> None:
        self.latency += (seconds - self.latency) / 4

    def on_segment(self, rate: float) -> None:
        self.rate += (rate - self.rate) / 4 if self.rate else rate


def steal(tasks: Iterable[FileTask], pace: Pace, now: float, settings: Settings, *, pending: bool) -> FileTask | None:
    """Split the segment of the connection that an idle one helps most, and return the idle one's task.

    Args:
        tasks: What all connections have.
        pace: What is usual.
        now: The time.
        settings: Limits.
        pending: Whether there are unassigned segments, for later.
    """
    best: tuple[float, FileTask, int] | None = None
    for task in tasks:
        found = _worth_stealing(task, pace, now, settings, pending=pending)
        if found is not None and (best is None or found[0] > best[0]):
            best = found[0], task, found[1]
    return best[1].transfer.steal(best[1], best[2], now) if best is not None else None


def _worth_stealing(
    task: FileTask, pace: Pace, now: float, settings: Settings, *, pending: bool
) -> tuple[float, int] | None:
    """Return the seconds that a split saves, and where to cut; ``None`` if it saves nothing."""
    segment = task.segment
    if segment.end is None or not _may_be_helped(task):
        return None
    age, silent = now - task.started, now - task.last_byte
    is_stalled = task.is_reading and silent >= max(settings.stalled_after, 4 * pace.latency)
    if is_stalled and task.inherited and not task.received:
        return None  # the second stall in a row: the mirror is slow, and its timeout decides
    is_stalled = is_stalled and task.rival is None
    # The rate of a recent connection is still ramping up. And a cut costs a connection: only if no other work is left.
    is_recent = age < settings.stalled_after if pending else age < 4 * pace.latency
    rate = 0.0 if is_stalled else pace.rate if is_recent else task.received / age
    if not is_stalled and (not rate or (pending and rate > pace.rate / 4)):
        return None
    start = segment.start if is_stalled else segment.start + BLOCK
    left, usual = segment.end - start, max(pace.rate, rate, 1.0)
    keep = int(rate * (pace.latency * usual + left) / (usual + rate))
    cut = start + -(-keep // BLOCK) * BLOCK
    gain = (segment.end - cut) / rate - 2 * pace.latency if rate else float("inf")
    return (gain, cut) if cut < segment.end and gain > 0 else None


def hedge(tasks: Iterable[FileTask], pace: Pace, now: float, settings: Settings) -> FileTask | None:
    """Hedge the block that would take longest, if it takes much longer than usual."""
    late = ((_excess(task, pace, now, settings), task) for task in tasks)
    seconds, slowest = max(late, key=lambda each: each[0], default=(0.0, None))
    return slowest.transfer.add_hedge(slowest, now) if slowest is not None and seconds > 0 else None


def _may_be_helped(task: FileTask) -> bool:
    mirror = task.transfer.mirrors.current
    if mirror is None or task.segment.on_disk or task.revoked or task.is_hedge:
        return False
    return task.transfer.parallel and mirror.server.has_room()


def _excess(task: FileTask, pace: Pace, now: float, settings: Settings) -> float:
    """Return how many seconds the block of a task still takes, or 0 if that is not much longer than usual."""
    segment, block, rival = task.segment, task.segment.block, task.rival
    if block is None or segment.end is None or not task.is_reading or not _may_be_helped(task):
        return 0.0
    if task.counts.hedged > settings.hedge_bytes - BLOCK:
        return 0.0
    size, age = min(BLOCK, segment.end - block.start), now - task.block_started
    if task.block_started < task.started or age < max(settings.hedge_min_age, 8 * pace.latency):
        return 0.0
    left, got = size - block.filled, block.filled - task.block_prefix
    if not got:
        return 0.0  # a stalled connection: see `steal`
    seconds = left * age / got
    if rival is not None:
        # The hedge may be slow, too. Each next one gets twice the time: if all are slow, none must be replaced.
        age = now - rival.started
        if not rival.received or age < max(settings.stalled_after, 8 * pace.latency) * 2**task.hedges:
            return 0.0
        left = size - (rival.segment.block.filled if rival.segment.block else 0)
        seconds = min(seconds, left * age / rival.received)
    usual = 2 * pace.latency + left / pace.rate if pace.rate else settings.hedge_usual / settings.hedge_slowdown
    return seconds if seconds > settings.hedge_slowdown * usual + settings.hedge_min_gain else 0.0
