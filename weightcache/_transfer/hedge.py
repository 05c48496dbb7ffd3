"""Two connections that fetch the same block: the first one that has it whole wins, and the other one drops its own.

The block belongs to one task, its holder, whose rival has a copy of what there was. What counts as brought is the
holder's; so every byte still belongs to one task only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightcache._store.partials import BLOCK

from .segments import Segment, Task

if TYPE_CHECKING:
    from .mirrors import Mirror


def rival(holder: Task, mirror: Mirror, now: float) -> Task:
    """Return a task that fetches the rest of the block of ``holder``. A rival that it has goes; its bytes stay."""
    block, old = holder.segment.block, holder.rival
    assert block is not None
    if old is not None:
        if old.segment.block is not None and old.segment.block.filled > block.filled:
            block = old.segment.block
        ended(old)
        old.revoke()
    end = min(block.start + BLOCK, holder.segment.end or 0)
    # A copy: the holder goes on to read into its own.
    segment = Segment(block.start, end, block=block.copy())
    task = Task(holder.transfer, mirror, segment, now, mirror.failure_epoch, moved=now, copy=True, had=block.filled)
    holder.transfer.raced += _cost(task)
    holder.races += 1
    holder.rival, task.rival = task, holder
    return task


def won_by(task: Task) -> None:
    """Let a task that has the block whole keep it, and the other one go."""
    other = task.rival
    if other is None:
        return
    if task.copy:
        _hand_over(other)
    else:
        ended(other)
    other.revoke()


def ended(task: Task) -> None:
    """Note that a task goes: what it has of the block is dropped, and the block is the other one's alone."""
    other = task.rival
    if other is None:
        return
    if not task.copy:
        _hand_over(task)
        return
    task.rival = other.rival = None
    task.transfer.raced += task.received - _cost(task)


def _cost(task: Task) -> int:
    """Return how many bytes a rival may fetch in vain."""
    return (task.segment.end or 0) - task.segment.start - task.had


def _hand_over(holder: Task) -> None:
    """Make the rival the holder; the old one keeps what lies beyond the block."""
    heir, transfer = holder.rival, holder.transfer
    assert heir is not None
    heir.rival = holder.rival = None
    heir.copy = False
    held = holder.segment.block.filled if holder.segment.block else 0
    transfer.arrived += (heir.segment.block.filled if heir.segment.block else 0) - held
    transfer.raced += max(0, held - heir.had) - _cost(heir)
    holder.segment.block, holder.segment.start = None, heir.segment.end or 0
