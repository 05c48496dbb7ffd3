"""How much memory may be taken, in a container too."""

from __future__ import annotations

import os
from contextlib import suppress

SHARE = 0.9  # of the memory that is free


def free_memory() -> float:
    """Return how many bytes of memory may be taken: a share of what the machine and the container have left.

    The machine's is ``MemAvailable``; the container's is the limit of its cgroup less what is used and could not be
    given back (``inactive_file`` is page cache that can). See cgroup v2's ``memory.max``, and v1's ``limit_in_bytes``.
    """
    free = _meminfo()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # ValueError: "max", which is no limit
            taken = int(_text(used)) - _inactive(os.path.dirname(limit))
            free = min(free, int(_text(limit)) - taken)
    return SHARE * free


def _meminfo() -> float:
    with suppress(OSError, ValueError, IndexError):
        for line in _text("/proc/meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return float("inf")


def _inactive(directory: str) -> int:
    with suppress(OSError, ValueError):
        for line in _text(f"{directory}/memory.stat").splitlines():
            name, _, count = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(count)
    return 0


def _text(path: str) -> str:
    with open(path, encoding="ascii") as stream:
        return stream.read()
