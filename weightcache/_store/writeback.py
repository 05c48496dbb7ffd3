"""What is written goes to the disk while the rest still comes, so that the fsync at the end finds little left to do.

Linux leaves what a program writes in memory for up to 30 seconds, or until a tenth of the memory waits for the disk. A
download is over sooner, and its fsync then writes all of it. So the thread that completes a `STEP` of bytes hands it
to the disk, and waits until the step before is on the disk: at most two steps wait for a slow disk. It needs no thread
of its own, which a fork, an error or a cancel would have to end.

What is handed over is not durable; only the fsync makes it so. Where the system has no such call, the fsync does it
all.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STEP = 32 << 20  # bytes; why not more or fewer: docs/decisions/0018-write-back-while-downloading.md
WAIT_BEFORE, WRITE = 1, 2  # of sync_file_range(2): wait for what was handed over; hand over what was not
_NOT_HERE = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ESPIPE, errno.EPERM})


class WriteBack:
    """Hands one file to the disk, step by step. Several threads may write it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0  # bytes that were not handed over
        self._flags = WRITE  # of the next step; 0 where the system cannot do it

    def wrote(self, descriptor: int, count: int) -> None:
        """Note ``count`` bytes more; with each `STEP` of them, hand over what is there and wait for the step before.

        Args:
            descriptor: The one that the bytes were written to, and that the fsync will be for: Linux reports a failed
                write once for each descriptor, so that another one would find an error and this one lose it.
            count: Bytes.

        Raises:
            OSError: The disk is full or failed. The fsync might not report it again.
        """
        with self._lock:  # held while it waits: nobody runs further ahead of the disk
            self._waiting += count
            if self._waiting < STEP or not self._flags:
                return
            self._waiting = 0
            failed = _sync_file_range(descriptor, self._flags)
            if not failed:
                self._flags = WAIT_BEFORE | WRITE
            elif failed in (_NOT_HERE if self._flags == WRITE else {errno.ENOSYS}):
                # The first call waits for nothing, so it cannot have taken an error that the fsync is to report. Later
                # ones can: of them only gVisor's word that it cannot wait is no failure of the disk.
                self._flags = 0
            else:
                raise OSError(failed, os.strerror(failed))


def _sync_file_range(descriptor: int, flags: int) -> int:
    """Call sync_file_range(2) for a whole file; return 0 or the errno."""
    call = _system_call()
    return call(descriptor, flags) if call else errno.ENOSYS


@cache
def _system_call() -> Callable[[int, int], int] | None:
    """Find the call in the C library, when the first large file needs it; ``None`` where the library lacks it."""
    with suppress(ImportError, OSError, AttributeError):  # a Python without ctypes, a C library without the function
        import ctypes

        function = ctypes.CDLL(None, use_errno=True).sync_file_range
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]

        def call(descriptor: int, flags: int) -> int:
            return ctypes.get_errno() if function(descriptor, 0, 0, flags) else 0

        return call
    return None
