"""When a process began."""

from __future__ import annotations

import os
import time


def process_start(pid: int) -> int | None:
    """Return when the process ``pid`` began, in clock ticks after boot, or ``None`` if it is not alive."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            fields = stream.read().rpartition(b")")[2].split()  # the name before it may hold spaces and brackets
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return None
        try:  # no /proc (macOS): existence is all that can be known
            os.kill(pid, 0)
        except OSError:
            return None
        return 0
    return None if fields[0] in (b"Z", b"X") else int(fields[19])  # a zombie writes nothing any more


def process_age() -> float | None:
    """Return the seconds since this process began, to a clock tick (10 ms); ``None`` if they are not known."""
    began = process_start(os.getpid())
    if not began:
        return None
    try:
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK"))
    except (AttributeError, OSError, ValueError):
        return None
