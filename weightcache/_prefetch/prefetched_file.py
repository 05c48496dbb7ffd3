"""One file of a prefetch: opened, read chunk by chunk, kept in memory if requested, and closed."""

from __future__ import annotations

import os
import threading
import time
from typing import NamedTuple

from weightcache._runtime.owned_descriptors import Descriptor

from .direct_reads import ALIGNMENT, DirectReads

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing's ABCs
if TYPE_CHECKING:
    from collections.abc import Callable

# Bytes of a read. Not below the block of a volume, or several threads would wait for one block; and not cut smaller,
# though a buffer that fits into the processor's cache would be copied faster: after each read a thread waits for the
# interpreter's lock, which the imports beside it give away every 5 ms.
READ_CHUNK = 8 << 20
# Bytes of memory for a chunk that is dropped: one system call reads it into the same few pages again and again. They
# stay in the processor's cache, which saves half of the CPU time.
CACHE_BUFFER = 256 << 10


class PrefetchedFile:
    """One file of a prefetch."""

    def __init__(self, path: str, size: int, modified: int) -> None:
        self.path, self.size, self.modified = path, size, modified
        self.left = -(-size // READ_CHUNK)  # chunks
        self.reading = 0  # threads that read it
        self.problem = ""  # why it is given up
        self.descriptor, self.direct_descriptor = Descriptor(), Descriptor()
        self.direct_reads = DirectReads(allowed=False)
        self.opening = threading.Lock()
        self.memory = -1  # a memfd, which stays until the handle is closed
        self.reserved = 0  # bytes of memory that is reserved for it and that it has not taken yet
        # The kernel lets one thread at a time write to a file, and the others wait for it busily.
        self.writing = threading.Lock()

    @property
    def is_over(self) -> bool:
        return not self.left or bool(self.problem)

    @property
    def is_whole(self) -> bool:
        return not self.left and not self.problem

    def open(self, *, direct: bool = False) -> int:
        """Return a descriptor; it is opened again after a pause, if it is still the same file."""
        with self.opening:
            descriptor = self.direct_descriptor if direct else self.descriptor
            if descriptor.number < 0:
                # O_NONBLOCK: a pipe that took the place of the file has no writer.
                descriptor.open(self.path, os.O_RDONLY | os.O_NONBLOCK | (os.O_DIRECT if direct else 0))
                if not self.is_same(os.fstat(descriptor.number)):
                    descriptor.close_quietly()
                    raise ChangedMeanwhileError("it changed while it was read")
            return descriptor.number

    def is_same(self, found: os.stat_result) -> bool:
        return (found.st_size, found.st_mtime_ns) == (self.size, self.modified)

    def is_replaced(self) -> bool:
        """Whether there is another file by now: `ensure` puts a right one in the place of a wrong one."""
        try:
            return not self.is_same(os.stat(self.path))
        except OSError:  # removed: what was read is the last there is of it
            return False

    def make_memory(self) -> None:
        # Cut by bytes: a name that is short enough for a directory can be too long for the kernel here.
        name = os.fsdecode(os.fsencode(f"weightcache {os.path.basename(self.path)}")[:200])
        self.memory = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(self.memory, self.size)
        self.reserved = self.size
        self.direct_reads = DirectReads(allowed=True)  # memory is where the bytes are wanted, not the page cache

    def close(self) -> None:
        """Close what is open on the Volume."""
        self.descriptor.close_quietly()
        self.direct_descriptor.close_quietly()

    def forget(self) -> None:
        """Give the memory back."""
        with self.writing:  # a read that hung may end now, and must not write to what gets this number next
            memory, self.memory = self.memory, -1
            if memory >= 0:
                os.close(memory)


class ChangedMeanwhileError(OSError):
    """The file is another one than when the prefetch began. Never leaves the library."""


def read_chunk(
    file: PrefetchedFile, start: int, end: int, buffer: memoryview, arrived: Callable[[], None] | None = None
) -> int:
    """Read a chunk, and keep it if the file is to be in memory. Returns how many bytes there were.

    Args:
        file: The file.
        start: Where the chunk begins.
        end: Where it ends.
        buffer: Memory for it. If the file is not to be in memory, the buffer can be smaller.
        arrived: Called when the bytes are here, before they are kept.
    """
    descriptor, position = file.open(), start
    while position < end:
        count = _read_some(file, descriptor, position, end, buffer)
        if not count:
            raise ChangedMeanwhileError(f"it ends after {position} of {file.size} bytes")
        if arrived and position + count == end:
            arrived()
        # Written, and not read straight into a mapping: that costs half as much CPU again, for the page faults.
        with file.writing, buffer[:count] as got:
            if file.memory >= 0:
                _write(file.memory, got, position)
        position += count
    if not file.is_same(os.fstat(descriptor)):  # written to; if it is removed next, `is_replaced` does not see it
        raise ChangedMeanwhileError("it changed while it was read")
    return end - start


def _read_some(file: PrefetchedFile, descriptor: int, position: int, end: int, buffer: memoryview) -> int:
    """Read from ``position`` into the buffer, and return how many bytes of the chunk it got."""
    direct = file.direct_reads.wanted(position, READ_CHUNK)
    began = time.monotonic()
    if direct:
        try:
            size = -(-(end - position) // ALIGNMENT) * ALIGNMENT
            with buffer[:size] as target:
                count = min(os.preadv(file.open(direct=True), [target], position), end - position)
            file.direct_reads.ended(direct=True, count=count, seconds=time.monotonic() - began)
            return count
        except OSError:  # not supported; or the path is another file's by now, and the open descriptor is still right
            file.direct_reads.refused()
    whole, rest = divmod(end - position, len(buffer))
    with buffer[:rest] as target:
        count = os.preadv(descriptor, [buffer] * whole + [target] * bool(rest), position)
    file.direct_reads.ended(direct=False, count=count, seconds=time.monotonic() - began)
    return count


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count


class PrefetchStats(NamedTuple):
    """How far a prefetch is.

    Attributes:
        files: How many files are read whole.
        bytes: Bytes read.
        total: Bytes of all files that it set out to read.
        seconds: Wall time so far, or until the last byte.
        skipped: Why files are not read, one sentence each.
    """

    files: int
    bytes: int
    total: int
    seconds: float
    skipped: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds if self.seconds else 0.0
