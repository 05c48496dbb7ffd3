"""Hedged requests: two connections fetch the same block, and the first one that has it whole wins.

The block belongs to one task, the primary. The hedge starts with a copy of what there was of the block. Only the bytes
of the primary count as present, so that every byte belongs to one task only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightcache._store.partial_directory import BLOCK

from .segment_assignment import FileT, Task
from .transfer_types import Segment

if TYPE_CHECKING:
    from .mirror_state import Mirror


def start(primary: Task[FileT], mirror: Mirror, now: float) -> Task[FileT]:
    """Return a task that fetches the rest of the block of ``primary``. An earlier hedge ends; its bytes are kept."""
    block, old = primary.segment.block, primary.rival
    assert block is not None
    if old is not None:
        if old.segment.block is not None and old.segment.block.filled > block.filled:
            block = old.segment.block
        on_ended(old)
        old.revoke()
    end = min(block.start + BLOCK, primary.segment.end or 0)
    # A copy: the primary goes on reading into its own buffer.
    segment = Segment(block.start, end, block=block.copy())
    task = Task(
        primary.transfer,
        primary.counts,
        mirror,
        segment,
        now,
        mirror.failure_epoch,
        is_hedge=True,
        block_prefix=block.filled,
    )
    primary.counts.on_hedged(_cost(task))
    primary.pair(task)
    return task


def on_complete(task: Task[FileT]) -> None:
    """Let a task that has the block whole keep it, and end the other one."""
    other = task.rival
    if other is None:
        return
    if task.is_hedge:
        _hand_over(other)
    else:
        on_ended(other)
    other.revoke()


def on_ended(task: Task[FileT]) -> None:
    """Note that a task ends: what it has of the block is dropped, and the other task owns the block."""
    if task.rival is None:
        return
    if not task.is_hedge:
        _hand_over(task)
        return
    task.unpair()
    task.counts.on_hedged(task.received - _cost(task))


def _cost(task: Task[FileT]) -> int:
    """Return how many bytes a hedge may fetch in vain."""
    return (task.segment.end or 0) - task.segment.start - task.block_prefix


def _hand_over(primary: Task[FileT]) -> None:
    """Make the hedge the primary. The old primary keeps what lies beyond the block."""
    heir, counts = primary.rival, primary.counts
    assert heir is not None
    primary.unpair()
    heir.promote()
    held = primary.segment.block.filled if primary.segment.block else 0
    counts.on_present((heir.segment.block.filled if heir.segment.block else 0) - held)
    counts.on_hedged(max(0, held - heir.block_prefix) - _cost(heir))
    primary.segment.advance(heir.segment.end or 0)
