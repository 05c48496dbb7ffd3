"""A file's bytes in memory, under a path of their own.

A tensor that is mapped from a Volume would keep a file on it open, and a Volume with an open file cannot be
reloaded; it would also be read page by page, by one thread. Memory that has a path (memfd) is mapped as well by every
loader, and is filled by many reads at once.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from weightcache._memory import free_memory
from weightcache.errors import LoadError

# As large as a block of a network volume: with smaller parts several threads wait for the same block.
PART = 8 << 20  # bytes
BUFFER = 1 << 20  # bytes; what stays in the processor's cache between read and write
THREADS = 8

SMALL = 64 << 20  # bytes; what always fits is not worth reading four files of the kernel


def into_memory(source: int, size: int, path: str) -> int | None:
    """Return the descriptor of new memory that holds the bytes of ``source``, an open file.

    Args:
        source: Descriptor of the file. It is read from its beginning, whatever its position is.
        size: Of the file, in bytes.
        path: The file's name, for errors.

    Returns:
        A descriptor that the caller closes, or ``None`` if there is no such memory here, or too little of it.

    Raises:
        LoadError: The file became shorter or was written to meanwhile.
        OSError: The file cannot be read.
    """
    if size >= SMALL and size > free_memory():
        return None
    try:
        memory = os.memfd_create("weightcache", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # not Linux, or forbidden
        return None
    try:
        before = os.fstat(source)
        if not _copy(source, memory, size):
            raise LoadError(path, [f"became shorter than its {size} bytes while it was read"], hint="load it again")
        after = os.fstat(source)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise LoadError(path, ["was written to while it was read"], hint="load it again when it is complete")
    except BaseException:
        os.close(memory)
        raise
    return memory


def _copy(source: int, memory: int, size: int) -> bool:
    """Copy the file by several threads; return whether it had so many bytes."""
    parts = iter(range(0, size, PART))
    taking, writing = threading.Lock(), threading.Lock()
    failures: list[BaseException] = []
    complete = True

    def read_parts() -> None:
        nonlocal complete
        try:
            with memoryview(bytearray(min(BUFFER, size))) as buffer:
                while complete and not failures:
                    with taking:
                        at = next(parts, None)
                    if at is None:
                        return
                    end = min(at + PART, size)
                    while at < end:
                        with buffer[: end - at] as into:
                            count = os.preadv(source, [into], at)
                        if count == 0:
                            complete = False
                            return
                        # One at a time: the kernel lets one thread write to a file, and the others wait busily.
                        with writing, buffer[:count] as got:
                            at += os.pwrite(memory, got, at)
        except BaseException as failure:  # noqa: BLE001 (raised below, in the caller's thread)
            failures.append(failure)

    others = [threading.Thread(target=read_parts) for _ in range(min(THREADS, -(-size // PART)) - 1)]
    started = []
    with suppress(RuntimeError):  # no more threads: those that run read everything
        for thread in others:
            thread.start()
            started.append(thread)
    read_parts()
    for thread in started:
        thread.join()
    if failures:
        raise failures[0]
    return complete
