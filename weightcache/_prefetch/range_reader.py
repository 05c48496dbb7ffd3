"""Read chosen ranges of several files into memory: one pool of threads for all, in the order in which they are wanted.

A `Prefetch` reads whole files, and keeps each under a path for any loader. Here the caller says which bytes go where,
takes the memory block by block while later blocks are still being read, and bounds how far the reads run ahead.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

from weightcache._coordination import background_readers

from .blocks import Block, Extent, read_part
from .prefetched_file import READ_CHUNK, PrefetchedFile
from .reader_pool import ReaderPool

TYPE_CHECKING = False  # a type checker takes it for true
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Sequence

    from .parallelism import Read


class RangeReader(ReaderPool):
    """Reads blocks in their order. A context manager that ends the reads and closes every file.

    Args:
        threads: How many reads at once; ``None`` for as many as the storage rewards.
    """

    def __init__(self, threads: int | None) -> None:
        self._open: set[PrefetchedFile] = set()
        super().__init__("load", threads, self._open)
        self._blocks: Sequence[Block] = ()
        self._next_block = 0
        self._ahead = self._held = 0.0  # bytes: the limit, and what is allocated and not taken
        self._failure: Exception | None = None
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

    # What the threads do.

    def _read_one(self) -> bool:
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
                if not (self._has_room(block) and self._may_read()):
                    if not self._wait_for_turn():
                        return None
                    continue
                if block.memory is None:
                    with memoryview(block.begin()) as memory:
                        self._note_new_memory(memory)
                    self._held += block.size
                if part := block.next_part():
                    self._begin_read(block.file)
                    return block, part, self._parallelism.began(time.monotonic())
                self._next_block += 1
                if not block.file.reading:
                    self._release(block.file)
                self._changed.notify_all()
            return None

    def _has_room(self, block: Block) -> bool:
        return block.memory is not None or not self._held or self._held + block.size <= self._ahead

    def _begin_read(self, file: PrefetchedFile) -> None:
        self._open.add(file)
        super()._begin_read(file)

    def _release(self, file: PrefetchedFile) -> None:
        """Close it, if nothing more of it is to be read or files must not be open."""
        following = self._blocks[self._next_block].file if self._next_block < len(self._blocks) else None
        if self._paused or self._closed or self._failure or following is not file:
            file.close()
            self._open.discard(file)

    def _worker_exited(self, problem: str) -> None:
        """Nothing to note: the caller reads on on its own, and `_read_one` keeps every failure."""

    def close(self) -> None:
        """End the reads, close the files, and give back the memory that was not taken."""
        super().close()
        with self._changed:
            for block in self._blocks:
                block.memory = None
            self._blocks = ()

    def forked(self) -> None:
        """In a child process, where no thread of ours runs and a lock may be held for ever: nothing more is read."""
        super().forked()
        self._failure = OSError("the process was forked while weights were read")
