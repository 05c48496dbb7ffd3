"""Read chosen ranges of several files into memory: one pool of threads for all, in the order in which they are wanted.

A `Prefetch` reads whole files, and keeps each under a path for any loader. Here the caller says which bytes go where,
takes the memory block by block while later blocks are still being read, and bounds how far the reads run ahead.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager

from weightcache._coordination import background_readers
from weightcache._runtime.start_threads import daemon_threads_allowed

from .blocks import Block, Extent, read_part
from .parallelism import Parallelism
from .prefetched_file import READ_CHUNK

TYPE_CHECKING = False  # a type checker takes it for true
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Sequence

    from .parallelism import Read
    from .prefetched_file import PrefetchedFile

_log = logging.getLogger("weightcache")

PAUSE_TIMEOUT = 30.0  # seconds that a pause waits for reads that hang


class RangeReader:
    """Reads blocks in their order. A context manager that ends the reads and closes every file.

    Args:
        threads: How many reads at once; ``None`` for as many as the storage rewards.
    """

    def __init__(self, threads: int | None) -> None:
        self._parallelism = Parallelism(threads, threads) if threads else Parallelism()
        self._changed = threading.Condition()
        self._blocks: Sequence[Block] = ()
        self._next_block = self._workers = 0
        self._unstarted = self._waiting = 0  # threads that may be started; that wait for something to read
        self._ahead = self._held = 0.0  # bytes: the limit, and what is allocated and not taken
        self._paused = self._reading = 0
        self._files: set[PrefetchedFile] = set()  # that are open
        self._failure: Exception | None = None
        self._closed = False
        background_readers.register(self)  # before the first file is opened

    @contextmanager
    def using(self, file: PrefetchedFile) -> Iterator[int]:
        """Open ``file`` for the block, which a pause waits for. Gives its descriptor."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused or self._closed)
            self._begin_read(file)
        try:
            yield file.open()
        finally:
            with self._changed:
                self._end_read(file)

    def fill(self, blocks: Sequence[Block], ahead: float = float("inf")) -> Iterator[mmap.mmap]:
        """Read ``blocks``, and yield the memory of each, in their order, as soon as it is read.

        Args:
            blocks: Those of one file follow each other.
            ahead: Bytes that may be allocated and not yet yielded. A larger block is read when nothing else is held.

        Raises:
            OSError: A read failed; `ChangedMeanwhileError` if a file is not what it was.
            MemoryError: There is no memory for a block.
        """
        with self._changed:
            self._blocks, self._next_block, self._ahead = blocks, 0, ahead
        parts = sum(max(1, -(-block.size // READ_CHUNK)) for block in blocks)
        if parts > 1:  # for one part, a thread would cost more than it saves
            self._unstarted = min(self._parallelism.most, parts)
            self._start_worker()
        for block in blocks:
            yield self._wait_for(block)

    def _wait_for(self, block: Block) -> mmap.mmap:
        while True:
            with self._changed:
                while self._workers and not (block.is_read or self._failure):
                    self._changed.wait()
                if self._failure:
                    raise self._failure
                if block.is_read:
                    self._held -= block.size
                    self._changed.notify_all()
                    return block.take()
                if self._closed:
                    raise OSError("the reads were ended by another thread")
            self._read_one()  # no thread could be started, or it is not worth one

    def _start_worker(self) -> None:
        """Start one more thread, if there may be one more and none is idle."""
        with self._changed:
            if not self._unstarted or self._workers > self._reading:
                return
            self._unstarted -= 1
            self._workers += 1
            number = self._workers
        # A daemon: an interpreter that ends does not wait for a read that hangs.
        thread = threading.Thread(target=self._work, name=f"weightcache-load-{number}", daemon=daemon_threads_allowed())
        try:
            thread.start()
        except RuntimeError as error:
            _log.info("loading goes on with %d threads: %s", number - 1, error)
            with self._changed:
                self._unstarted = 0
                self._workers -= 1

    # What the threads do.

    def _work(self) -> None:
        try:
            while self._read_one():
                pass
        finally:
            with self._changed:
                self._workers -= 1
                self._changed.notify_all()

    def _read_one(self) -> bool:
        """Read the next part; return whether there was one."""
        try:
            found = self._next()
        except Exception as error:  # noqa: BLE001 (no memory, say: the caller is waiting)
            self._fail(error)
            return False
        if found is None:
            return False
        self._start_worker()  # which waits until the storage turns out to be slow: this one is in its read then
        block, part, read = found
        failure: Exception | None = None
        try:
            read_part(block, part)
        except Exception as error:  # noqa: BLE001 (whatever it is, the read is over)
            failure = error
        ended = time.monotonic()
        with self._changed:
            self._parallelism.ended(read, ended, 0 if failure else part.length * part.runs)
            block.part_is_read()
            self._failure = self._failure or failure
            self._end_read(block.file)
        return True

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _next(self) -> tuple[Block, Extent, Read] | None:
        """Return the next part when it may be read, or ``None`` if this thread is not needed."""
        with self._changed:
            while not (self._closed or self._failure) and self._next_block < len(self._blocks):
                block = self._blocks[self._next_block]
                if not self._may_read(block):
                    if not self._paused and self._waiting:  # one thread that waits is enough
                        self._unstarted += 1
                        return None
                    self._waiting += 1
                    self._changed.wait(None if self._paused else self._parallelism.patience(time.monotonic()))
                    self._waiting -= 1
                    continue
                if block.memory is None:
                    block.begin()
                    self._held += block.size
                if part := block.next_part():
                    self._begin_read(block.file)
                    return block, part, self._parallelism.began(time.monotonic())
                self._next_block += 1
                self._close_unused(block.file)
                self._changed.notify_all()
            return None

    def _may_read(self, block: Block) -> bool:
        """Whether a part of the block may be read now: files may be open, there is room, and not enough reads run."""
        has_room = block.memory is not None or not self._held or self._held + block.size <= self._ahead
        return not self._paused and has_room and self._reading < self._parallelism.limit(time.monotonic())

    def _begin_read(self, file: PrefetchedFile) -> None:
        self._files.add(file)
        self._reading += 1
        file.reading += 1

    def _end_read(self, file: PrefetchedFile) -> None:
        self._reading -= 1
        file.reading -= 1
        self._close_unused(file)
        self._changed.notify_all()

    def _close_unused(self, file: PrefetchedFile) -> None:
        """Close a file that no thread reads, if nothing more of it is to be read or files must not be open."""
        if file.reading:
            return
        following = self._blocks[self._next_block].file if self._next_block < len(self._blocks) else None
        if self._paused or self._closed or self._failure or following is not file:
            file.close()
            self._files.discard(file)

    # For a commit, and at the end.

    def pause(self) -> None:
        """Close every file until `resume`; `ensure` calls it before a commit or reload."""
        with self._changed:
            self._paused += 1
            self._close_idle()

    def resume(self) -> None:
        """Go on after a `pause`."""
        with self._changed:
            self._paused -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """End the reads, close the files, and give back the memory that was not taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._close_idle()
            for block in self._blocks:
                block.memory = None
            self._blocks = ()
        background_readers.unregister(self)

    def _close_idle(self) -> None:
        if not self._changed.wait_for(lambda: not self._reading, PAUSE_TIMEOUT):
            _log.warning("a read of weights hangs for %g s; its file stays open until it ends", PAUSE_TIMEOUT)
        for file in list(self._files):
            self._close_unused(file)

    def forked(self) -> None:
        """In a child process, where no thread of ours runs and a lock may be held for ever: nothing more is read."""
        self._changed = threading.Condition()
        self._workers = self._unstarted = self._reading = self._paused = 0
        self._failure = OSError("the process was forked while weights were read")
        for file in self._files:
            file.opening, file.reading = threading.Lock(), 0
            file.close()

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
