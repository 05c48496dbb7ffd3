"""The threads of a download: connections, which bring blocks to the disk, and the hasher, which follows them.

All of them work for one `Scheduler` under one lock. They are daemons: at the end of the interpreter nothing waits for
a mirror. A connection that waits for one when the download ends is left to its timeout, and finds out then; what it
must not do any more, touch the partial, it asks for first.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

from weightcache._runtime.cancel import Cancel, CancelledByCallerError
from weightcache._runtime.threads import may_be_daemons
from weightcache._store.partials import BLOCK

from .segments import Block
from .stream import SourceError, TransientError, WrongBytesError

if TYPE_CHECKING:
    from .client import Client
    from .scheduler import Scheduler
    from .segments import Task
    from .stream import Body

TELL_EVERY = 0.1  # seconds between two wake-ups of the caller to show progress
# One of many connections rests before a read that would bring less than SHORT: to wake up costs more than to copy.
SHORT = 32 << 10  # bytes
REST = 0.008  # seconds, or a quarter of what an answer takes: what comes meanwhile, the kernel holds

clock = time.monotonic


class WorkerState:
    """What the threads of one download share.

    Attributes:
        lock: Held around every use of the scheduler.
        work: Notified when an idle connection may find something to do.
        room: Notified when the window has moved.
        blocks: Notified when the hasher may find something to do.
        news: Notified when the caller may find something to do.
        stop: Set when the download is over, well or not; ends every read and every pause.
        error: What ended it: the first exception of any thread.
    """

    def __init__(self, scheduler: Scheduler, client: Client, stop: Cancel) -> None:
        self.scheduler, self.client, self.stop = scheduler, client, stop
        self.lock = threading.Lock()
        self.idle, self.window, self.hash, self.caller = (threading.Condition(self.lock) for _ in range(4))
        self.stopped = False
        self.error: BaseException | None = None
        self._tell_next = 0.0

    def wake_all(self) -> None:
        """Let everybody look; for what happens seldom."""
        for condition in (self.idle, self.window, self.hash, self.caller):
            condition.notify_all()

    def wake(self) -> None:
        """Let those look who may have something to do now."""
        if self.stopped or self.error or self.scheduler.over or self.scheduler.error:
            self.wake_all()
            return
        self.idle.notify()
        self.window.notify_all()
        self.hash.notify()
        if self.scheduler.next_verified():
            self.caller.notify()

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
            while any(task.writing for task in self.scheduler.tasks):
                self.caller.wait()

    def tell(self, now: float) -> None:
        """Let the caller show progress, now and then."""
        if now >= self._tell_next:
            self._tell_next = now + TELL_EVERY
            self.caller.notify()


class Connection(threading.Thread):
    """Takes one task after another, and brings its blocks to the disk and into memory."""

    def __init__(self, state: WorkerState, number: int) -> None:
        super().__init__(name=f"weightcache-connection-{number}", daemon=may_be_daemons())
        self._state, self._scheduler = state, state.scheduler

    def run(self) -> None:
        try:
            while (task := self._next_task()) is not None:
                self._bring(task)
        except CancelledByCallerError:
            pass
        except BaseException as error:  # noqa: BLE001 (it is the caller's to raise)
            self._state.fail(error)

    def _next_task(self) -> Task | None:
        state = self._state
        with state.lock:
            while not state.stopped and not self._scheduler.over:
                failed = self._scheduler.error
                if task := self._scheduler.assign(clock()):
                    state.idle.notify()  # there may be more
                    return task
                # What was looked at there may have been an empty file, the last one or one that nobody has. Only who
                # saw the change tells all: idle connections would wake each other for as long as a file is closed.
                if self._scheduler.over or self._scheduler.error is not failed:
                    state.wake_all()
                elif self._scheduler.next_verified():
                    state.caller.notify()
                if not self._scheduler.over:
                    state.idle.wait()
            state.wake_all()
            return None

    def _bring(self, task: Task) -> None:
        state, pause = self._state, 0.0
        try:
            if task.segment.kept:
                self._read_kept(task)
            else:
                self._fetch(task)
        except SourceError as error:
            with state.lock:
                pause = self._scheduler.failed(task, error, clock())
                state.caller.notify()  # the user is told of an outage
        finally:
            with state.lock:
                task.writing = False
                self._scheduler.release(task, clock())
                state.wake()
        if pause:
            state.stop.sleep(pause)
        if pause:
            with state.lock:
                self._scheduler.resume(task)
                state.wake()

    def _fetch(self, task: Task) -> None:
        state, transfer = self._state, task.transfer
        with state.lock:
            segment = task.segment
            start, end = segment.position, None if segment.end == transfer.length else segment.end
            task.reading = True
        body = state.client.open(
            task.mirror.url,
            auth=transfer.job.checkpoint.auth,
            hub=task.mirror.hub,
            start=start,
            end=end,
            size=transfer.job.file.size,
        )
        with closing(body), state.stop.interrupting(body.interrupt):
            with state.lock:
                task.interrupt, task.foreign = body.interrupt, body.foreign
                if not self._scheduler.answered(task, body, clock()):
                    return
            while True:
                with state.lock:
                    if not self._goes_on(task, body.end):
                        return
                    block = self._scheduler.begin(task)
                if not self._fill(task, block, body):
                    return
                transfer.job.partial.write(block.start // BLOCK, block.data)

    def _goes_on(self, task: Task, ends: int | None) -> bool:
        """Land what was written, and wait for room for the next block; whether there is one. The lock is held.

        Args:
            task: Whose block.
            ends: Where the response ends, if it says so: one that goes on beyond the task may be of more use.
        """
        state, scheduler = self._state, self._scheduler
        task.reading = False
        if task.writing:
            if not task.transfer.on_written(task):
                return False
            state.hash.notify()
        if task.segment.start == task.segment.end and (task.segment.start == ends or not scheduler.read_on(task)):
            return False
        while not (state.stopped or task.revoked):
            if scheduler.may_begin(task):
                task.reading, task.moved = True, clock()
                return True
            if scheduler.is_needed_elsewhere(task):
                return False
            state.window.wait()
        return False

    def _claim(self, task: Task) -> bool:
        """Whether a connection may touch the partial: the block cannot be taken from it any more. The lock is held."""
        task.reading = False
        if not (self._state.stopped or task.revoked):
            self._scheduler.claim(task)
        return task.writing

    def _fill(self, task: Task, block: Block, body: Body) -> bool:
        """Read a block to its end, or to the end of a stream whose length nobody knew; whether it may be written."""
        state, segment, view = self._state, task.segment, memoryview(block.buffer)
        size = BLOCK if segment.end is None else min(BLOCK, segment.end - block.start)
        declared = task.transfer.job.file.size
        # One that does not say where it ends may send more than it should: that is another file.
        is_last = body.total is None and declared is not None and block.start + size >= declared
        while True:
            began = clock()
            if self._scheduler.parallel and not body.is_ready(min(SHORT, size - block.filled)):
                time.sleep(min(REST, self._scheduler.pace.latency / 4))
            try:
                count = body.read_into(view[block.filled : size])
            except TransientError as error:
                raise TransientError(f"{error} at byte {segment.position} of {task.transfer.length or '?'}") from None
            now = clock()
            with state.lock:
                if task.revoked:
                    return False
                if not count and segment.end is not None:
                    raise task.transfer.ended(task)
                if not count:
                    task.transfer.end(task)
                    return block.filled > 0 and self._claim(task)
                block.filled += count
                self._scheduler.arrive(task, count, now - began, now)
                state.tell(now)
                if block.filled == size and not is_last:
                    return self._claim(task)
            if block.filled == size:
                if body.read_into(memoryview(bytearray(1))):
                    came = task.transfer.foreign(task)
                    raise WrongBytesError(f"{declared} bytes", f"more than {declared} bytes", came)
                with state.lock:
                    return self._claim(task)

    def _read_kept(self, task: Task) -> None:
        """Read blocks that lie in the partial, or in another writer's."""
        state, transfer = self._state, task.transfer
        while True:
            with state.lock:
                if not (self._goes_on(task, task.segment.end) and self._claim(task)):
                    return
                start = task.segment.start
            data = transfer.job.partial.take(start // BLOCK)
            with state.lock:
                if data is None:
                    task.writing = False
                    transfer.on_missing(task)
                    state.idle.notify()
                else:
                    task.segment.block = Block(start, data, len(data))
                    self._scheduler.arrive(task, len(data), 0.0, now := clock())
                    state.tell(now)


class Hasher(threading.Thread):
    """Takes the blocks of all files in order, from memory."""

    def __init__(self, state: WorkerState) -> None:
        super().__init__(name="weightcache-hasher", daemon=may_be_daemons())
        self._state, self._scheduler = state, state.scheduler

    def run(self) -> None:
        state, scheduler = self._state, self._scheduler
        try:
            while True:
                with state.lock:
                    while (found := scheduler.next_blocks()) is None:
                        if state.stopped or scheduler.over:
                            return
                        state.hash.wait()
                    transfer, blocks = found
                    digest = transfer.sha256
                for block in blocks:
                    digest.update(block.data)
                with state.lock:
                    scheduler.hashed(transfer, blocks, digest)
                    state.wake()
        except BaseException as error:  # noqa: BLE001 (it is the caller's to raise)
            state.fail(error)
