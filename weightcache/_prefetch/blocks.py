"""Which bytes of a file go where in a piece of memory, in parts that threads read."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import NamedTuple

from weightcache._size_text import size_text

from .prefetched_file import READ_CHUNK, ChangedMeanwhileError, PrefetchedFile

TYPE_CHECKING = False  # a type checker takes it for true
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Extent(NamedTuple):
    """Runs of bytes at one distance in a file, and where they go, without gaps, in the memory of a block.

    Attributes:
        start: Offset of the first run in the file, in bytes.
        length: Bytes of a run.
        stride: Bytes from the start of one run to the start of the next.
        runs: How many there are.
        at: Offset in the memory of the block, in bytes.
    """

    start: int
    length: int
    stride: int
    runs: int
    at: int


class Block:
    """What is read of one file into one piece of memory, and handed over as a whole."""

    def __init__(self, file: PrefetchedFile, size: int, extents: Sequence[Extent]) -> None:
        self.file, self.size = file, size
        self.memory: mmap.mmap | None = None
        self._parts = _split(extents)
        self._unfinished = 1  # parts that are being read, and one more until the last part is taken

    def begin(self) -> mmap.mmap:
        """Allocate the memory, and return it.

        Its pages belong to this process alone, and go back with the last tensor in it.
        """
        try:
            self.memory = mmap.mmap(-1, max(self.size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise MemoryError(f"cannot allocate {size_text(self.size)}") from error
        if self.size >= READ_CHUNK:
            with suppress(OSError, AttributeError):  # gVisor, or a kernel without huge pages
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        return self.memory

    def next_part(self) -> Extent | None:
        """Return what to read next, or ``None`` once after the last part."""
        part = next(self._parts, None)
        self._unfinished += 1 if part else -1
        return part

    def part_is_read(self) -> None:
        self._unfinished -= 1

    @property
    def is_read(self) -> bool:
        return not self._unfinished

    def take(self) -> mmap.mmap:
        """Return the memory, and keep no reference to it."""
        memory, self.memory = self.memory, None
        assert memory is not None
        return memory


def _split(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Cut extents into parts of at most `READ_CHUNK` bytes."""
    for start, length, stride, runs, at in extents:
        if length <= READ_CHUNK:
            rows = max(1, READ_CHUNK // max(length, 1))
            for row in range(0, runs, rows):
                yield Extent(start + row * stride, length, stride, min(rows, runs - row), at + row * length)
            continue
        for row in range(runs):
            for done in range(0, length, READ_CHUNK):
                size = min(READ_CHUNK, length - done)
                yield Extent(start + row * stride + done, size, size, 1, at + row * length + done)


def read_part(block: Block, part: Extent) -> None:
    """Read a part straight into the memory of its block."""
    file, memory = block.file, block.memory
    if memory is None:  # closed meanwhile
        return
    descriptor = file.open()
    with memoryview(memory) as whole:
        for row in range(part.runs):
            position, at, end = part.start + row * part.stride, part.at + row * part.length, 0
            end = at + part.length
            while at < end:
                with whole[at:end] as target:
                    count = os.preadv(descriptor, [target], position)
                if not count:
                    raise ChangedMeanwhileError(f"it ends after {position} of {file.size} bytes")
                position, at = position + count, at + count
    if not file.is_same(os.fstat(descriptor)):
        raise ChangedMeanwhileError("it changed while it was read")
