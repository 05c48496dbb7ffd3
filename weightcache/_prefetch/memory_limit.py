"""How much memory may be used, also in a container."""

from __future__ import annotations

import os
from contextlib import suppress

from weightcache._size_text import size_text

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing's ABCs
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .prefetched_file import PrefetchedFile

FD_SHARE = 4  # each file in memory takes a descriptor: use at most one in so many of those that a process may have
MEMORY_SHARE = 0.9  # of the memory that is free

# By owner: bytes of memory that are reserved and not yet used, which the counters below therefore do not show.
reservations: dict[int, int] = {}


def free_memory() -> float:
    """Return how many bytes of memory may be taken: a share of what the machine and the container have left.

    The machine's is ``MemAvailable``; the container's is the limit of its cgroup less what is used and could not be
    given back (``inactive_file`` is page cache that can). See cgroup v2's ``memory.max``, and v1's ``limit_in_bytes``.
    What is reserved for others does not count as free.
    """
    free = _meminfo()
    for folder, limit, used in _cgroups():
        with suppress(OSError, ValueError):  # ValueError: "max", which is no limit
            most = int(_text(f"{folder}/{limit}"))
            free = min(free, most - int(_text(f"{folder}/{used}")) + _inactive(folder))
    return MEMORY_SHARE * free - sum(reservations.values())


def allocate_memory(files: Sequence[PrefetchedFile], free: float) -> int:
    """Make room for each file that fits into ``free`` bytes; the others get a problem. Returns the bytes reserved."""
    limit = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 0
    if limit > 0:
        for file in sorted(files, key=lambda file: -file.size)[limit // FD_SHARE :]:
            file.problem = f"too many files for memory: each takes one of the {limit} that may be open"
    for file in files:
        if file.problem:
            continue
        if file.size > free:
            file.problem = f"{size_text(file.size)} do not fit into memory, {size_text(max(0.0, free))} are free"
            continue
        try:
            file.make_memory()
        except (OSError, AttributeError) as error:  # AttributeError: memfd_create is Linux only
            file.problem = f"no memory for it ({error})"
            file.forget()
            continue
        free -= file.size
    return sum(file.reserved for file in files)


def _cgroups() -> Iterator[tuple[str, str, str]]:
    """Yield the folders of this process's cgroup and of all that it lies in, and how their files are called."""
    here = {"": "/", "memory": "/"}  # version 2, version 1; in a container the top is its own
    with suppress(OSError, ValueError):
        for line in _text("/proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            here.update(dict.fromkeys(here.keys() & controllers.split(","), path))
    for top, files, path in (
        ("/sys/fs/cgroup", ("memory.max", "memory.current"), here[""]),
        ("/sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), here["memory"]),
    ):
        while path != "/":
            yield (top + path, *files)
            path = os.path.dirname(path)  # noqa: PLW2901 (from the inside out)
        yield (top, *files)


def _meminfo() -> float:
    with suppress(OSError, ValueError, IndexError):
        for line in _text("/proc/meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return float("inf")


def _inactive(directory: str) -> int:
    with suppress(OSError, ValueError, KeyError):
        told = dict(line.split(" ", 1) for line in _text(f"{directory}/memory.stat").splitlines())
        return int(
            told.get("total_inactive_file") or told["inactive_file"]
        )  # version 1: this field leaves the children out
    return 0


def _text(path: str) -> str:
    with open(path, encoding="ascii") as stream:
        return stream.read()
