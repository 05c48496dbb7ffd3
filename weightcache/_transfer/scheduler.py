"""Which connection fetches which bytes: all files as one long stream, whose parts are assigned in order.

Bookkeeping only: no thread, no request, and no clock but the ``now`` of the caller, so that a test can drive it through
any order of events. The caller holds the lock of the download.

A download starts with one connection. As soon as that proves slow, it uses up to `Settings.connections`, for all files
together. Blocks wait in memory until they are hashed, so no connection may be further ahead of the hash than a window
of one part for each connection. That bounds the memory in any order of arrival, and cannot deadlock: the next block to
hash always lies in the window.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from weightcache._store.partial_directory import BLOCK

from . import work_stealing
from .file_states import FileQueue
from .file_transfer import FileTransfer
from .mirrors import Mirrors
from .server_state import Servers
from .slow_connection import LinkSpeed
from .transfer_types import PART, Block, BufferPool
from .work_stealing import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from weightcache._runtime.tuning_constants import Settings
    from weightcache.errors import DownloadError

    from .file_transfer import FileTask
    from .mirror_stream import Body, SourceError
    from .transfer_types import Job

_log = logging.getLogger("weightcache")

SPARE_PARTS = (
    2  # of the window, beyond one for each of many: a connection that has finished goes on while the hash lags
)
HASHED_AT_ONCE = 8  # blocks: fewer turns at the lock, 3 % less CPU among 24 connections


class Scheduler:
    """All files of one download.

    Args:
        jobs: The files, in the order in which they are hashed.
        settings: Limits.
        patience: Seconds that a mirror which delivered may send nothing before it is given up.
        jitter: ``random.uniform``, or what a test uses instead.

    Attributes:
        files: The files.
        tasks: What the connections have.
        parallel: Whether one connection proved slow, so that several are used.
        allowed: Connections that may have a task at once.
        pace: What connections did lately.
        error: Why the download failed, if it did.
    """

    def __init__(self, jobs: Sequence[Job], settings: Settings, patience: float, jitter: Callable[..., float]) -> None:
        servers = Servers(settings.connections)
        mirrors = [Mirrors(each.checkpoint, each.file, settings, patience, jitter, servers) for each in jobs]
        self.files = FileQueue(list(map(FileTransfer, jobs, mirrors)), settings.open_files)
        self.parallel = False
        self.allowed = 1
        self.tasks: set[FileTask] = set()
        self.pace = Pace()
        self.error: DownloadError | None = None
        self._settings, self._patience = settings, patience
        self._speed = LinkSpeed(settings.slow_after, settings.fast_rate)
        self._notes: list[str] = []
        self._paused = 0  # connections that wait before they try again
        self._buffers = BufferPool()

    @property
    def is_done(self) -> bool:
        """Whether every file is verified."""
        return self.files.is_done

    def _window(self) -> Iterator[tuple[FileTransfer, int]]:
        """Yield the files in the window, and below which offset of each it ends."""
        return self.files.window((self.allowed + SPARE_PARTS if self.parallel else 1) * PART)

    # Assign tasks to connections -------------------------------------------------------------------------------------

    def assign(self, now: float) -> FileTask | None:
        """Return the next task of an idle connection, or ``None`` if nothing can be assigned now.

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

    def _assign_first(self, now: float) -> FileTask | None:
        """Assign the first segment; that of a file that fails last, since it must not hold up the others."""
        failing: tuple[FileTransfer, int] | None = None
        for transfer, below in self._window():
            if not transfer.opened:
                transfer.open()
                self._verify(transfer)
            if transfer.is_failing and failing is None and transfer.can_assign(below):
                failing = transfer, below
                continue
            # What goes before a file that fails must have room for a block, or it would be given back at once.
            limit = below - BLOCK + 1 if failing else below
            if task := transfer.assign_next(limit, whole=not self.parallel, now=now):
                return self._assigned(task)
        task = failing[0].assign_next(failing[1], whole=not self.parallel, now=now) if failing else None
        return self._assigned(task) if task else None

    def _assigned(self, task: FileTask) -> FileTask:
        if task.segment.on_disk:
            self._buffers.clear()  # the blocks of the partial take the memory of those from mirrors
        return task

    def _assign_help(self, now: float) -> FileTask | None:
        """Let an idle connection help the slowest one."""
        pending = any(transfer.segments for transfer, _ in self._window())
        stolen = work_stealing.steal(self.tasks, self.pace, now, self._settings, pending=pending)
        return stolen or work_stealing.hedge(self.tasks, self.pace, now, self._settings)

    def has_room(self, task: FileTask) -> bool:
        """Whether the next block of a task lies in the window."""
        end = task.segment.start + BLOCK
        return any(each is task.transfer and end <= below for each, below in self._window())

    def is_needed_elsewhere(self, task: FileTask) -> bool:
        """Whether a segment before that of a task is unassigned, so that the window cannot move without it."""
        for transfer, below in self._window():
            if transfer.can_assign(below, without=task):
                return transfer is not task.transfer or transfer.segments[0].start < task.segment.start
            if transfer is task.transfer:
                break
        return False

    def extend(self, task: FileTask) -> bool:
        """Give a finished task what follows it, if that is unassigned and in the window."""
        end = task.segment.end or 0
        if self.error or not any(each is task.transfer and end < below for each, below in self._window()):
            return False
        if not task.transfer.extend(task):
            return False
        if self.parallel:
            task.transfer.shorten(task)
        return True

    def begin_block(self, task: FileTask) -> Block:
        """Return the block that a task reads next, with what there is of it."""
        segment, length = task.segment, task.transfer.length
        block = segment.block
        if block is None:
            left = BLOCK if length is None else min(BLOCK, length - segment.start)
            block = Block(segment.start, self._buffers.take(left))
        task.begin_block(block)
        return block

    # What connections report -----------------------------------------------------------------------------------------

    def on_response(self, task: FileTask, body: Body, now: float) -> bool:
        """Note what a mirror answered. ``False``: this task cannot use it.

        Raises:
            ChangedError: The file is not the one that it was.
        """
        seconds, generation = now - task.started, task.transfer.generation
        task.on_head(now)
        self.pace.on_response(seconds)
        if not self.parallel and self._speed.on_response(seconds):
            self._go_parallel()
        is_usable = task.transfer.on_response(task, body)
        if task.is_answered:
            task.mirror.server.on_response(now, after_refusal=task.mirror.clear_refusal())
        self._trim_window(task.transfer, generation)
        return is_usable

    def on_bytes(self, task: FileTask, count: int, waited: float, now: float) -> None:
        """Note ``count`` bytes that a connection waited for, for ``waited`` seconds."""
        task.transfer.on_bytes(task, count, now)
        if not task.segment.on_disk:
            server = task.mirror.server
            outage = server.on_bytes(now)
            if outage is not None:
                self._note(f"{server.name} sends again, after {outage:.0f} s")
        if not self.parallel and self._speed.on_bytes(count, waited):
            self._go_parallel()

    def _go_parallel(self) -> None:
        self.parallel, self.allowed = self._settings.connections > 1, self._settings.connections
        for task in self.tasks:
            task.transfer.shorten(task)

    def release(self, task: FileTask, now: float) -> None:
        """Note that a connection has ended its task, or given it up."""
        if task in self.tasks:
            self.tasks.discard(task)
            if task.received >= BLOCK and not task.segment.on_disk:
                self.pace.on_segment(task.received / max(now - task.started, 1e-3))
            if task.received and not task.revoked and task.segment.start == task.segment.end:
                task.mirror.server.on_part()
            generation = task.transfer.generation
            task.transfer.release(task)
            self._trim_window(task.transfer, generation)
            self._verify(task.transfer)  # an empty file has no block after which it would be verified

    def on_failure(self, task: FileTask, error: SourceError, now: float) -> float:
        """Note that a request failed; return for how many seconds its connection pauses before it may `resume`."""
        self.tasks.discard(task)
        generation = task.transfer.generation
        decision = task.transfer.on_failure(task, error, now)
        self._trim_window(task.transfer, generation)
        self._verify(task.transfer)
        if decision is None or not decision.pause:
            return 0.0
        task.pause(decision.paused_with)
        self._paused += 1
        server = task.mirror.server
        if decision.outage and server.on_outage(now):
            self._note(f"{server.name} stopped sending ({error}); trying again for up to {self._patience:.0f} s")
        return decision.pause

    def resume(self, task: FileTask) -> None:
        """Note that the pause after a failed task is over."""
        if task.resume():
            self._paused -= 1

    def _note(self, text: str) -> None:
        _log.warning("%s", text)
        self._notes.append(text)

    def take_notes(self) -> list[str]:
        """Return the messages for the user since the last call."""
        notes, self._notes = self._notes, []
        return notes

    # The clock -------------------------------------------------------------------------------------------------------

    def connections_wanted(self) -> int:
        """Return how many connections have something to do."""
        blocks = 0
        for transfer, _ in self._window():
            left = 1 if transfer.length is None else transfer.length - transfer.counts.present
            blocks += max(1, -(-left // BLOCK))
        # If there are many, one more may help with a last block that is slow. Paused connections do not count.
        wanted = blocks + self.parallel + self._paused
        return min(self._settings.connections, self.allowed + self._paused, wanted)

    def update(self, now: float) -> float | None:
        """Check for slow and stalled connections, which report nothing; return in how many seconds to check again."""
        if self.is_done or not self.tasks:
            return None
        settings = self._settings
        if not self.parallel and settings.connections > 1:
            silent = [now - task.last_byte for task in self.tasks if task.is_answered and task.is_reading]
            if silent and max(silent) >= settings.slow_after:
                self._go_parallel()
            return settings.slow_after
        return settings.stalled_after / 4 if len(self.tasks) < self.allowed else None

    # Hash and verify ------------------------------------------------------------------------------------------------

    def next_blocks(self) -> tuple[FileTransfer, list[Block]] | None:
        """Return what is hashed next, as far as it has arrived. It stays in memory until `on_hashed`."""
        transfer = self.files.first
        if transfer is None or not transfer.opened:
            return None
        blocks = transfer.next_blocks(HASHED_AT_ONCE)
        return (transfer, blocks) if blocks else None

    def on_hashed(self, transfer: FileTransfer, blocks: list[Block], digest: object) -> None:
        """Note that ``digest`` has taken in blocks."""
        self._buffers.give_back(blocks)
        if digest is transfer.digest:  # else the file was started again meanwhile
            transfer.on_hashed(blocks)
            self._verify(transfer)

    def _trim_window(self, transfer: FileTransfer, generation: int) -> None:
        """Bound the memory when a file was started again: blocks of later files are further ahead of the hash now."""
        if transfer.generation > generation:
            for later in self.files.after(transfer):
                later.spill()

    def _verify(self, transfer: FileTransfer) -> None:
        generation = transfer.generation
        transfer.verify()
        self._trim_window(transfer, generation)
        if transfer.mirrors.current is None and self.error is None:
            self.error = transfer.mirrors.error()
        self.files.skip_verified()
