"""The threads of a download: connections, which bring blocks to the disk, and the hasher, which follows them.

All of them work for one `Schedule` under one lock. They are daemons: at the end of the interpreter nothing waits for
a mirror. A connection that waits for one when the download ends is left to its timeout, and finds out then; what it
must not do any more, touch the partial, it asks for first.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

from weightcache._runtime.cancel import Cancel, CancelledByCallerError
from weightcache._runtime.threads import daemon_threads_allowed
from weightcache._store.partials import BLOCK

from .segments import Block
from .stream import SourceError, TransientError, WrongBytesError

if TYPE_CHECKING:
    from .client import Client
    from .scheduler import Schedule
    from .segments import Task
    from .stream import Body

TELL_EVERY = 0.1  # seconds between two wake-ups of the caller to show progress
# One of many connections rests before a read that would bring less than SHORT: to wake up costs more than to copy.
SHORT = 32 << 10  # bytes
REST = 0.008  # seconds, or a quarter of what an answer takes: what comes meanwhile, the kernel holds

clock = time.monotonic


class Shared:
    """What the threads of one download share.

    Attributes:
        lock: Held around every use of the schedule.
        work: Notified when an idle connection may find something to do.
        room: Notified when the window has moved.
        blocks: Notified when the hasher may find something to do.
        news: Notified when the caller may find something to do.
        stop: Set when the download is over, well or not; ends every read and every pause.
        error: What ended it: the first exception of any thread.
    """

    def __init__(self, schedule: Schedule, client: Client, stop: Cancel) -> None:
        self.schedule, self.client, self.stop = schedule, client, stop
        self.lock = threading.Lock()
        self.work, self.room, self.blocks, self.news = (threading.Condition(self.lock) for _ in range(4))
        self.stopped = False
        self.error: BaseException | None = None
        self._tell_next = 0.0

    def wake_all(self) -> None:
        """Let everybody look; for what happens seldom."""
        for condition in (self.work, self.room, self.blocks, self.news):
            condition.notify_all()

    def wake(self) -> None:
        """Let those look who may have something to do now."""
        if self.stopped or self.error or self.schedule.over or self.schedule.error:
            self.wake_all()
            return
        self.work.notify()
        self.room.notify_all()
        self.blocks.notify()
        if self.schedule.next_verified():
            self.news.notify()

    def fail(self, error: BaseException) -> None:
        """End the download with an exception."""
        with self.lock:
            self.error = self.error or error
            self.wake_all()

    def end(self) -> None:
        """End all threads; return when none of them can touch a partial any more."""
        with self.lock:
            self.stopped = True
            self.wake_all()
        self.stop.set()
        with self.lock:
            while any(task.writing for task in self.schedule.tasks):
                self.news.wait()

    def tell(self, now: float) -> None:
        """Let the caller show progress, now and then."""
        if now >= self._tell_next:
            self._tell_next = now + TELL_EVERY
            self.news.notify()


class Connection(threading.Thread):
    """Takes one task after another, and brings its blocks to the disk and into memory."""

    def __init__(self, shared: Shared, number: int) -> None:
        super().__init__(name=f"weightcache-connection-{number}", daemon=daemon_threads_allowed())
        self._shared, self._schedule = shared, shared.schedule

    def run(self) -> None:
        try:
            while (task := self._next_task()) is not None:
                self._bring(task)
        except CancelledByCallerError:
            pass
        except BaseException as error:  # noqa: BLE001 (it is the caller's to raise)
            self._shared.fail(error)

    def _next_task(self) -> Task | None:
        shared = self._shared
        with shared.lock:
            while not shared.stopped and not self._schedule.over:
                failed = self._schedule.error
                if task := self._schedule.take(clock()):
                    shared.work.notify()  # there may be more
                    return task
                # What was looked at there may have been an empty file, the last one or one that nobody has. Only who
                # saw the change tells all: idle connections would wake each other for as long as a file is closed.
                if self._schedule.over or self._schedule.error is not failed:
                    shared.wake_all()
                elif self._schedule.next_verified():
                    shared.news.notify()
                if not self._schedule.over:
                    shared.work.wait()
            shared.wake_all()
            return None

    def _bring(self, task: Task) -> None:
        shared, pause = self._shared, 0.0
        try:
            if task.piece.kept:
                self._read_kept(task)
            else:
                self._fetch(task)
        except SourceError as error:
            with shared.lock:
                pause = self._schedule.failed(task, error, clock())
                shared.news.notify()  # the user is told of an outage
        finally:
            with shared.lock:
                task.writing = False
                self._schedule.release(task, clock())
                shared.wake()
        if pause:
            shared.stop.sleep(pause)
        if pause:
            with shared.lock:
                self._schedule.resume(task)
                shared.wake()

    def _fetch(self, task: Task) -> None:
        shared, transfer = self._shared, task.transfer
        with shared.lock:
            piece = task.piece
            start, end = piece.position, None if piece.end == transfer.length else piece.end
            task.reading = True
        body = shared.client.open(
            task.mirror.url,
            auth=transfer.job.checkpoint.auth,
            hub=task.mirror.hub,
            start=start,
            end=end,
            size=transfer.job.file.size,
        )
        with closing(body), shared.stop.interrupting(body.interrupt):
            with shared.lock:
                task.interrupt, task.foreign = body.interrupt, body.foreign
                if not self._schedule.answered(task, body, clock()):
                    return
            while True:
                with shared.lock:
                    if not self._goes_on(task, body.end):
                        return
                    block = self._schedule.begin(task)
                if not self._fill(task, block, body):
                    return
                transfer.job.partial.write(block.start // BLOCK, block.data)

    def _goes_on(self, task: Task, ends: int | None) -> bool:
        """Land what was written, and wait for room for the next block; whether there is one. The lock is held.

        Args:
            task: Whose block.
            ends: Where the response ends, if it says so: one that goes on beyond the task may be of more use.
        """
        shared, schedule = self._shared, self._schedule
        task.reading = False
        if task.writing:
            if not task.transfer.land(task):
                return False
            shared.blocks.notify()
        if task.piece.start == task.piece.end and (task.piece.start == ends or not schedule.read_on(task)):
            return False
        while not (shared.stopped or task.revoked):
            if schedule.may_begin(task):
                task.reading, task.moved = True, clock()
                return True
            if schedule.is_needed_elsewhere(task):
                return False
            shared.room.wait()
        return False

    def _claim(self, task: Task) -> bool:
        """Whether a connection may touch the partial: the block cannot be taken from it any more. The lock is held."""
        task.reading = False
        if not (self._shared.stopped or task.revoked):
            self._schedule.claim(task)
        return task.writing

    def _fill(self, task: Task, block: Block, body: Body) -> bool:
        """Read a block to its end, or to the end of a stream whose length nobody knew; whether it may be written."""
        shared, piece, view = self._shared, task.piece, memoryview(block.buffer)
        size = BLOCK if piece.end is None else min(BLOCK, piece.end - block.start)
        declared = task.transfer.job.file.size
        # One that does not say where it ends may send more than it should: that is another file.
        is_last = body.total is None and declared is not None and block.start + size >= declared
        while True:
            began = clock()
            if self._schedule.many and not body.is_ready(min(SHORT, size - block.filled)):
                time.sleep(min(REST, self._schedule.pace.latency / 4))
            try:
                count = body.read_into(view[block.filled : size])
            except TransientError as error:
                raise TransientError(f"{error} at byte {piece.position} of {task.transfer.length or '?'}") from None
            now = clock()
            with shared.lock:
                if task.revoked:
                    return False
                if not count and piece.end is not None:
                    raise task.transfer.ended(task)
                if not count:
                    task.transfer.end(task)
                    return block.filled > 0 and self._claim(task)
                block.filled += count
                self._schedule.arrive(task, count, now - began, now)
                shared.tell(now)
                if block.filled == size and not is_last:
                    return self._claim(task)
            if block.filled == size:
                if body.read_into(memoryview(bytearray(1))):
                    came = task.transfer.foreign(task)
                    raise WrongBytesError(f"{declared} bytes", f"more than {declared} bytes", came)
                with shared.lock:
                    return self._claim(task)

    def _read_kept(self, task: Task) -> None:
        """Read blocks that lie in the partial, or in another writer's."""
        shared, transfer = self._shared, task.transfer
        while True:
            with shared.lock:
                if not (self._goes_on(task, task.piece.end) and self._claim(task)):
                    return
                start = task.piece.start
            data = transfer.job.partial.read_block(start // BLOCK)
            with shared.lock:
                if data is None:
                    task.writing = False
                    transfer.lack(task)
                    shared.work.notify()
                else:
                    task.piece.block = Block(start, data, len(data))
                    self._schedule.arrive(task, len(data), 0.0, now := clock())
                    shared.tell(now)


class Hasher(threading.Thread):
    """Takes the blocks of all files in order, from memory."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(name="weightcache-hasher", daemon=daemon_threads_allowed())
        self._shared, self._schedule = shared, shared.schedule

    def run(self) -> None:
        shared, schedule = self._shared, self._schedule
        try:
            while True:
                with shared.lock:
                    while (found := schedule.next_blocks()) is None:
                        if shared.stopped or schedule.over:
                            return
                        shared.blocks.wait()
                    transfer, blocks = found
                    digest = transfer.sha256
                for block in blocks:
                    digest.update(block.data)
                with shared.lock:
                    schedule.hashed(transfer, blocks, digest)
                    shared.wake()
        except BaseException as error:  # noqa: BLE001 (it is the caller's to raise)
            shared.fail(error)
