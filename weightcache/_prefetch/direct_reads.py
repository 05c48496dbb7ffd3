"""Whether the reads of one file bypass the page cache (O_DIRECT), measured on its own reads.

Bytes that go into memory need no copy in the page cache. Reads that bypass it take less CPU time, where the storage is
slow. Where the bytes are cached they are slower, and some file systems refuse them or serve them slowly. So the first
reads are plain. If one is slow, plain and direct reads alternate, and the better way stays.
``docs/decisions/0031-reading-that-adapts.md`` has the figures.
"""

from __future__ import annotations

import os
import threading

SLOW = 600e6  # bytes a second; no cached read is slower, unless others take the processor meanwhile
COUNTED_BYTES = 1 << 20  # a smaller read measures latency
TRIAL = 4  # reads of each way that are compared
TOLERATED = 1.05  # of the time of plain reads: direct reads may take so much, for they save CPU time
ALIGNMENT = 4096  # bytes: of the offset, size and memory of a direct read


class DirectReads:
    """Decides for one file. Its methods may be called by several threads.

    Args:
        allowed: Whether direct reads are possible at all. If not, the answer is always no.
    """

    def __init__(self, allowed: bool) -> None:
        self._lock = threading.Lock()
        self._trying = False
        # None until it is decided.
        self._answer = None if allowed and hasattr(os, "O_DIRECT") else False
        self._counts, self._bytes, self._seconds = [0, 0], [0, 0], [0.0, 0.0]  # of plain reads, and of direct ones

    def wanted(self, start: int, chunk: int) -> bool:
        """Return whether to read the chunk at ``start`` directly."""
        if self._answer is None:
            return self._trying and bool(start // chunk % 2) and not start % ALIGNMENT
        return self._answer and not start % ALIGNMENT

    def refused(self) -> None:
        """Note that the file system does not support them."""
        self._answer = False

    def ended(self, *, direct: bool, count: int, seconds: float) -> None:
        """Note that a read of ``count`` bytes has ended."""
        if self._answer is not None or count < COUNTED_BYTES:
            return
        with self._lock:
            if not self._trying:
                self._trying = count < SLOW * seconds
                return  # a read of the time before says nothing: fewer ran at once
            self._counts[direct] += 1
            self._bytes[direct] += count
            self._seconds[direct] += seconds
            if min(self._counts) >= TRIAL:
                plain, other = (taken / size for taken, size in zip(self._seconds, self._bytes, strict=True))
                self._answer = other <= TOLERATED * plain
