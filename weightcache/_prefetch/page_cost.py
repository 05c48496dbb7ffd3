"""How long the kernel takes to provide new memory: a read into it looks slow, though the storage is not."""

from __future__ import annotations

import os
import time

SAMPLE = 1 << 20  # bytes of memory that are measured
MOST = 0.010  # seconds: another process that takes the processor meanwhile must not count as the cost of memory


def page_cost(memory: memoryview, size: int) -> float:
    """Return about how many seconds of a read of ``size`` bytes go into providing its memory.

    Memory gets its pages when it is first written to: 8 MiB in 7 ms here, where a cached read of 8 MiB takes 3 ms, and
    in gVisor in 8 ms. So it writes zeros to the first MiB of ``memory``, which a read is about to overwrite.

    Args:
        memory: Memory that nothing has written to.
        size: Bytes.
    """
    if len(memory) < SAMPLE or not hasattr(os, "preadv"):
        return 0.0
    try:
        zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0.0
    try:
        with memory[:SAMPLE] as sample:
            began = time.monotonic()
            os.preadv(zeros, [sample], 0)
            return min(MOST, (time.monotonic() - began) * size / SAMPLE)
    except OSError:
        return 0.0
    finally:
        os.close(zeros)
