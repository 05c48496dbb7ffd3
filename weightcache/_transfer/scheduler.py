"""Which connection brings which bytes: all files as one long stream, its parts handed out in order.

Bookkeeping alone: no thread, no request, and no clock but the ``now`` of the caller, so that a test can drive it
through any order of events. Whoever calls holds the engine's lock.

A download starts with one connection. As soon as that proves slow, it uses up to `Settings.connections`, for all files
together. Blocks wait in memory until they are hashed, so no connection may be further ahead of the hash than a window
of one part for each connection. That bounds the memory in any order of arrival, and cannot deadlock: the next block to
hash always lies in the window.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING

from weightcache._store.partials import BLOCK

from . import work_stealing
from .file_transfer import FileTransfer
from .mirrors import Mirrors
from .segments import PART, Block
from .server import Servers
from .work_stealing import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from weightcache._runtime.settings import Settings
    from weightcache.errors import DownloadError

    from .segments import Job, Task
    from .stream import Body, SourceError

_log = logging.getLogger("weightcache")

# How these were found: docs/decisions/0008-when-one-connection-becomes-many.md
SPARE_PARTS = 2  # of the window, beyond one for each of many: who has finished goes on while the hash catches up
ANSWER = 0.001  # seconds of every answer that are no sign of a slow link
RUN = 8  # blocks that the hasher takes at once: fewer turns at the lock, 3 % less CPU among 24 connections


class Scheduler:
    """All files of one download."""

    def __init__(self, jobs: Sequence[Job], settings: Settings, patience: float, jitter: Callable[..., float]) -> None:
        servers = Servers(settings.connections)
        self.transfers = [
            FileTransfer(job, Mirrors(job.checkpoint, job.file, settings, patience, jitter, servers)) for job in jobs
        ]
        self.parallel = False  # whether one connection proved slow
        self.allowed = 1  # connections
        self.tasks: set[Task] = set()
        self.error: DownloadError | None = None
        self.notes: list[str] = []  # what a user who watches is to see
        self._settings, self._limit, self._patience = settings, settings.connections, patience
        self._pausing = 0  # connections that wait before they try again
        self._first = 0  # the first transfer that is not verified
        self._finished = 0  # transfers whose files are closed
        self._waited = self._brought = 0.0  # seconds and bytes of the probation
        self.pace = Pace()
        self._free: list[bytearray] = []  # of BLOCK bytes; used again, because fresh pages cost as much as the copy

    @property
    def over(self) -> bool:
        return self._first == len(self.transfers)

    def _reachable(self) -> Iterator[tuple[FileTransfer, int]]:
        """Yield the transfers that may be worked on, and below which position of each the window ends."""
        room = (self.allowed + SPARE_PARTS if self.parallel else 1) * PART
        last = min(len(self.transfers), self._finished + self._settings.open_files)
        for transfer in islice(self.transfers, self._first, last):
            yield transfer, transfer.hashed + room
            if transfer.length is None:
                return
            room -= transfer.length - transfer.hashed
            if room <= 0:
                return

    def assign(self, now: float) -> Task | None:
        """Return what a connection is to bring next, or ``None`` if there is nothing for it now.

        Raises:
            StorageError: A partial cannot be opened.
            VanishedError: A partial was swept or taken.
        """
        if self.error or len(self.tasks) >= self.allowed:
            return None
        task = self._assign_first(now) or self._assign_help(now)
        if task is not None:
            self.tasks.add(task)
        return task

    def _assign_first(self, now: float) -> Task | None:
        """Hand out the first segment; that of a file that fails last, since it must not keep the others waiting."""
        failing: tuple[FileTransfer, int] | None = None
        for transfer, below in self._reachable():
            if not transfer.opened:
                transfer.open()
                self._verify(transfer)
            if transfer.is_failing and failing is None and transfer.can_assign(below):
                failing = transfer, below
                continue
            # What goes before a file that fails must have room for a block, or it would be given back at once.
            if task := transfer.assign_next(below - BLOCK + 1 if failing else below, whole=not self.parallel, now=now):
                return self._taken(task)
        task = failing[0].assign_next(failing[1], whole=not self.parallel, now=now) if failing else None
        return self._taken(task) if task else None

    def _taken(self, task: Task) -> Task:
        if task.segment.kept:
            self._free.clear()  # kept blocks take the place of those in memory
        return task

    def _assign_help(self, now: float) -> Task | None:
        """Let somebody idle help the slowest connection."""
        pending = any(transfer.segments for transfer, _ in self._reachable())
        return work_stealing.split(self.tasks, self.pace, now, self._settings, pending=pending) or work_stealing.race(
            self.tasks, self.pace, now, self._settings
        )

    def may_begin(self, task: Task) -> bool:
        """Whether the next block of a task lies in the window."""
        return any(
            transfer is task.transfer and task.segment.start + BLOCK <= below for transfer, below in self._reachable()
        )

    def is_needed_elsewhere(self, task: Task) -> bool:
        """Whether a segment before a task, without which the window never moves, is nobody's."""
        for transfer, below in self._reachable():
            if transfer.can_assign(below, without=task):
                return transfer is not task.transfer or transfer.segments[0].start < task.segment.start
            if transfer is task.transfer:
                break
        return False

    def begin(self, task: Task) -> Block:
        """Give a task the block to fill."""
        segment, length = task.segment, task.transfer.length
        if segment.block is None:
            if length is not None and length - segment.start < BLOCK:
                buffer = bytearray(length - segment.start)
                del self._free[-1:]  # it takes the place of one
            else:
                buffer = self._free.pop() if self._free else bytearray(BLOCK)
            segment.block = Block(segment.start, buffer)
        task.since, task.had = task.moved, segment.block.filled
        return segment.block

    def answered(self, task: Task, body: Body, now: float) -> bool:
        """Note what a mirror answered. ``False``: it is of no use to this task.

        Raises:
            ChangedError: The file is not the one that it was.
        """
        seconds, task.moved, begun = now - task.began, now, task.transfer.begun
        self.pace.latency += (seconds - self.pace.latency) / 4
        self._watch(0, max(0.0, seconds - ANSWER))
        is_of_use = task.transfer.answered(task, body)
        if task.answered:
            server, mirror = task.mirror.server, task.mirror
            server.answered(now)
            server.limited, mirror.refused = server.limited or mirror.refused, False
        self._trim_window(task.transfer, begun)
        return is_of_use

    def arrive(self, task: Task, count: int, waited: float, now: float) -> None:
        """Note ``count`` bytes that a connection waited for, for ``waited`` seconds."""
        task.transfer.arrive(task, count)
        task.moved = now
        if not task.segment.kept:
            server = task.mirror.server
            server.moved = now
            if server.outage is not None:
                self._note(f"{server.name} gives again what is asked of it, after {now - server.outage:.0f} s")
                server.outage = None
        self._watch(count, waited)

    def _note(self, text: str) -> None:
        _log.warning("%s", text)
        self.notes.append(text)

    def claim(self, task: Task) -> None:
        """Note that a task has its block whole, and writes it."""
        task.writing = True
        task.transfer.claim(task)

    def _watch(self, count: int, waited: float) -> None:
        self._brought += count
        self._waited += waited
        if self._waited >= self._settings.slow_after:
            slow = self._brought < self._settings.fast_rate * self._waited
            self._brought = self._waited = 0.0
            if slow and not self.parallel:
                self._go_parallel()

    def _go_parallel(self) -> None:
        self.parallel, self.allowed = self._limit > 1, self._limit
        for task in self.tasks:
            task.transfer.shorten(task)

    def wanted(self) -> int:
        """Return for how many connections there is something to do."""
        blocks = 0
        for transfer, _ in self._reachable():
            left = 1 if transfer.length is None else transfer.length - transfer.arrived
            blocks += max(1, -(-left // BLOCK))
        # One more of many is there for a last block that is slow. A pause keeps nobody from the rest.
        return min(self._limit, self.allowed + self._pausing, blocks + self.parallel + self._pausing)

    def look(self, now: float) -> float | None:
        """Look at the clock: may a connection that brings nothing be slow, or stalled? Return when to look again."""
        if self.over or not self.tasks:
            return None
        silent = [now - task.moved for task in self.tasks if task.answered and task.reading]
        if not self.parallel and self._limit > 1:
            if silent and max(silent) >= self._settings.slow_after:
                self._go_parallel()
            return self._settings.slow_after
        return self._settings.stalled_after / 4 if len(self.tasks) < self.allowed else None

    def read_on(self, task: Task) -> bool:
        """Give a finished task what follows it, if that is nobody's and in the window."""
        if self.error or not any(t is task.transfer and (task.segment.end or 0) < b for t, b in self._reachable()):
            return False
        if not task.transfer.read_on(task):
            return False
        if self.parallel:
            task.transfer.shorten(task)
        return True

    def release(self, task: Task, now: float) -> None:
        """Note that a connection has ended its task, or given it up."""
        if task in self.tasks:
            self.tasks.discard(task)
            if task.received >= BLOCK and not task.segment.kept:
                self.pace.note(task.received / max(now - task.began, 1e-3))
            if task.received and not task.revoked and task.segment.start == task.segment.end:
                task.mirror.server.gave_a_part()
            begun = task.transfer.begun
            task.transfer.release(task)
            self._trim_window(task.transfer, begun)
            self._verify(task.transfer)  # an empty file has no block to be judged after

    def failed(self, task: Task, error: SourceError, now: float) -> float:
        """Note that a request failed; return for how many seconds its connection pauses before it may `resume`."""
        self.tasks.discard(task)
        begun = task.transfer.begun
        decision = task.transfer.failed(task, error, now)
        self._trim_window(task.transfer, begun)
        self._verify(task.transfer)
        if decision is None or not decision.pause:
            return 0.0
        if decision.holds is not None:
            decision.holds.pausing += 1
        task.holds, task.paused = decision.holds, True
        self._pausing += 1
        if decision.outage and task.mirror.server.outage is None:
            task.mirror.server.outage = now
            name, patience = task.mirror.server.name, self._patience
            self._note(f"{name} gives nothing any more ({error}); it is tried again for up to {patience:.0f} s")
        return decision.pause

    def resume(self, task: Task) -> None:
        """Note that the pause after a failed task is over."""
        if task.paused:
            self._pausing -= 1
            task.paused = False
        if task.holds is not None:
            task.holds.pausing -= 1
            task.holds = None

    def next_blocks(self) -> tuple[FileTransfer, list[Block]] | None:
        """Return what the hash takes in next, as far as it is here. It stays in memory until it is `hashed`."""
        transfer = None if self.over else self.transfers[self._first]
        if transfer is None or not transfer.opened:
            return None
        blocks, position = list[Block](), transfer.hashed
        while len(blocks) < RUN and (block := transfer.landed.get(position)):
            blocks.append(block)
            position += block.filled
        return (transfer, blocks) if blocks else None

    def hashed(self, transfer: FileTransfer, blocks: list[Block], digest: object) -> None:
        """Note that ``digest`` has taken blocks in."""
        self._free += [
            block.buffer for block in blocks if isinstance(block.buffer, bytearray) and len(block.buffer) == BLOCK
        ]
        if digest is transfer.sha256:  # and the file was not begun again meanwhile
            for block in blocks:
                del transfer.landed[block.start]
                transfer.hashed += block.filled
            self._verify(transfer)

    def _trim_window(self, transfer: FileTransfer, begun: int) -> None:
        """Keep the memory in bounds where a file was begun again: what is ahead is further ahead now."""
        if transfer.begun > begun:
            index = self.transfers.index(transfer, self._first)
            for later in self.transfers[index + 1 : self._finished + self._settings.open_files]:
                if later.opened and not later.verified:
                    later.spill()

    def _verify(self, transfer: FileTransfer) -> None:
        begun = transfer.begun
        transfer.verify()
        self._trim_window(transfer, begun)
        if transfer.mirrors.current is None and self.error is None:
            self.error = transfer.mirrors.error()
        while not self.over and self.transfers[self._first].verified:
            self._first += 1

    def open_transfers(self) -> list[FileTransfer]:
        """Return what is being fetched, or waits to be closed."""
        return [
            each for each in self.transfers[self._finished : self._finished + self._settings.open_files] if each.opened
        ]

    def next_verified(self) -> FileTransfer | None:
        """Return the next verified transfer whose file is to be closed."""
        return self.transfers[self._finished] if self._finished < self._first else None

    def finished(self) -> None:
        """Note that the file of `next_verified` is closed."""
        self._finished += 1
