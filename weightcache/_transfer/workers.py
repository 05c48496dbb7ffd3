"""The threads of a download: connections, which move blocks from mirrors to the disk, and the hasher, which follows.

All of them work for one `Scheduler` under one lock. They are daemons, so that the interpreter can end without waiting
for a mirror. A connection that waits for a mirror when the download ends is left to its timeout. It claims each block
before it writes to the partial, and no block can be claimed after the end.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

from weightcache._runtime.cancel import CancelledByCallerError
from weightcache._runtime.start_threads import daemon_threads_allowed
from weightcache._store.partial_directory import BLOCK

from .mirror_stream import SourceError, TransientError, WrongBytesError
from .transfer_types import Block

if TYPE_CHECKING:
    from .file_transfer import FileTask
    from .mirror_stream import Body
    from .shared_state import WorkerState

# One of many connections sleeps before a read that would return less than SHORT: a wake-up costs more than the copy.
SHORT = 32 << 10  # bytes
NAP = 0.008  # seconds, or a quarter of the latency; the kernel keeps what arrives meanwhile

clock = time.monotonic


class Connection(threading.Thread):
    """Works on one task after another: reads its blocks into memory, and writes them to the disk."""

    def __init__(self, state: WorkerState, number: int) -> None:
        super().__init__(name=f"weightcache-connection-{number}", daemon=daemon_threads_allowed())
        self._state, self._scheduler = state, state.scheduler

    def run(self) -> None:
        try:
            while (task := self._next_task()) is not None:
                self._work_on(task)
        except CancelledByCallerError:
            pass
        except BaseException as error:  # noqa: BLE001 (the caller raises it)
            self._state.fail(error)

    def _next_task(self) -> FileTask | None:
        state = self._state
        with state.lock:
            while not state.stopped and not self._scheduler.is_done:
                failed = self._scheduler.error
                if task := self._scheduler.assign(clock()):
                    state.idle.notify()  # there may be more tasks
                    return task
                # The scheduler may have opened an empty file, the last one, or one that no mirror has. Only the thread
                # that saw the change wakes the others: else idle connections would wake each other without end.
                if self._scheduler.is_done or self._scheduler.error is not failed:
                    state.wake_all()
                elif self._scheduler.files.next_verified():
                    state.caller.notify()
                if not self._scheduler.is_done:
                    state.idle.wait()
            state.wake_all()
            return None

    def _work_on(self, task: FileTask) -> None:
        state, pause = self._state, 0.0
        try:
            if task.segment.on_disk:
                self._read_from_disk(task)
            else:
                self._download(task)
        except SourceError as error:
            with state.lock:
                pause = self._scheduler.on_failure(task, error, clock())
                state.caller.notify()  # it shows the user that a server is out
        finally:
            with state.lock:
                task.end()
                self._scheduler.release(task, clock())
                state.wake()
        if pause:
            state.stop.sleep(pause)
            with state.lock:
                self._scheduler.resume(task)
                state.wake()

    def _download(self, task: FileTask) -> None:
        state, transfer = self._state, task.transfer
        with state.lock:
            segment = task.segment
            start, end = segment.position, None if segment.end == transfer.length else segment.end
            task.on_requested()
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
                task.attach(body)
                if not self._scheduler.on_response(task, body, clock()):
                    return
            while True:
                with state.lock:
                    if not self._may_go_on(task, body.end):
                        return
                    block = self._scheduler.begin_block(task)
                if not self._fill(task, block, body):
                    return
                transfer.job.partial.write(block.start // BLOCK, block.data)

    def _may_go_on(self, task: FileTask, response_end: int | None) -> bool:
        """Note what was written, and wait until the next block lies in the window; whether there is one.

        The lock is held.

        Args:
            task: The task.
            response_end: Where the response ends, if it says so. One that goes on beyond the task can be used for what
                follows.
        """
        state, scheduler = self._state, self._scheduler
        if task.is_writing:
            if not task.transfer.on_written(task):
                return False
            state.hash.notify()
        else:
            task.on_wait()
        start, end = task.segment.start, task.segment.end
        if start == end and (start == response_end or not scheduler.extend(task)):
            return False
        while not (state.stopped or task.revoked):
            if scheduler.has_room(task):
                task.on_room(clock())
                return True
            if scheduler.is_needed_elsewhere(task):
                return False
            state.window.wait()
        return False

    def _claim(self, task: FileTask) -> bool:
        """Whether a connection may write the block: it cannot be taken from it any more. The lock is held."""
        if self._state.stopped or task.revoked:
            task.on_wait()
            return False
        task.transfer.claim(task)
        return True

    def _fill(self, task: FileTask, block: Block, body: Body) -> bool:
        """Read a block to its end, or to the end of a stream of unknown length; whether it may be written."""
        state, segment, view = self._state, task.segment, memoryview(block.buffer)
        size = BLOCK if segment.end is None else min(BLOCK, segment.end - block.start)
        declared = task.transfer.job.file.size
        # A response that does not say where it ends may send more than it should: that is another file.
        is_last = body.total is None and declared is not None and block.start + size >= declared
        while True:
            started = clock()
            if self._scheduler.parallel and not body.is_ready(min(SHORT, size - block.filled)):
                time.sleep(min(NAP, self._scheduler.pace.latency / 4))
            try:
                count = body.read_into(view[block.filled : size])
            except TransientError as error:
                raise TransientError(f"{error} at byte {segment.position} of {task.transfer.length or '?'}") from None
            now = clock()
            with state.lock:
                if task.revoked:
                    return False
                if not count:
                    return self._on_end_of_stream(task, block)
                block.on_read(count)
                self._scheduler.on_bytes(task, count, now - started, now)
                state.wake_caller(now)
                if block.filled == size and not is_last:
                    return self._claim(task)
            if block.filled == size:
                if body.read_into(memoryview(bytearray(1))):
                    looks_like = task.transfer.describe(task)
                    raise WrongBytesError(f"{declared} bytes", f"more than {declared} bytes", looks_like)
                with state.lock:
                    return self._claim(task)

    def _on_end_of_stream(self, task: FileTask, block: Block) -> bool:
        """Note that a stream ended within a block; whether the block may be written. The lock is held."""
        transfer, position = task.transfer, task.segment.position
        if task.segment.end is None:
            transfer.on_end_of_stream(task)
            return block.filled > 0 and self._claim(task)
        if looks_like := transfer.describe(task):
            raise WrongBytesError(f"{transfer.length} bytes", f"{position} bytes", looks_like, is_stored=False)
        raise TransientError(f"the connection ended at byte {position} of {transfer.length}")

    def _read_from_disk(self, task: FileTask) -> None:
        """Read blocks that the partial has, or another writer's."""
        state, transfer = self._state, task.transfer
        while True:
            with state.lock:
                if not (self._may_go_on(task, task.segment.end) and self._claim(task)):
                    return
                start = task.segment.start
            data = transfer.job.partial.read_block(start // BLOCK)
            with state.lock:
                if data is None:
                    transfer.on_missing(task)
                    state.idle.notify()
                else:
                    task.segment.hold(Block(start, data, len(data)))
                    self._scheduler.on_bytes(task, len(data), 0.0, now := clock())
                    state.wake_caller(now)


class Hasher(threading.Thread):
    """Hashes the blocks of all files in order, from memory."""

    def __init__(self, state: WorkerState) -> None:
        super().__init__(name="weightcache-hasher", daemon=daemon_threads_allowed())
        self._state, self._scheduler = state, state.scheduler

    def run(self) -> None:
        state, scheduler = self._state, self._scheduler
        try:
            while True:
                with state.lock:
                    while (found := scheduler.next_blocks()) is None:
                        if state.stopped or scheduler.is_done:
                            return
                        state.hash.wait()
                    transfer, blocks = found
                    digest = transfer.digest
                for block in blocks:
                    digest.update(block.data)
                with state.lock:
                    scheduler.on_hashed(transfer, blocks, digest)
                    state.wake()
        except BaseException as error:  # noqa: BLE001 (the caller raises it)
            state.fail(error)
