"""``weightcache bench``: measure how fast a root can be read, and with how many parallel reads.

Run it in a container that has just started, on the volume that it mounts. Each combination of chunk size and parallel
reads gets its own part of the published files, so that it reads bytes that are not cached yet. It then reads them a
second time, to measure the cache.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from weightcache._environment import command
from weightcache._prefetch.prefetched_file import READ_CHUNK
from weightcache._runtime.owned_descriptors import Descriptor, opened
from weightcache._runtime.start_threads import thread_error_hint
from weightcache._size_text import rate_text, size_text
from weightcache._store.layout import Layout, version_path
from weightcache._store.receipts import iter_receipts, receipt_files
from weightcache._store.root_checks import check_root
from weightcache.errors import NotCachedError, StorageError, WeightCacheError

from .command_spec import Command, Flag, Remote
from .output import print_json, print_table
from .shared_flags import ENV, JSON, ROOT, VOLUME
from .terminal import Cell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

MIB = 1 << 20
MAX_FILES = 500  # the largest; each combination keeps all its files open, and many systems allow 1024 per process
# Chunk in bytes, and parallel reads. Loaders of .pt files read like the first one, prefetch like the one with 8.
COMBINATIONS = (
    (MIB, 1),
    (READ_CHUNK, 1),
    (READ_CHUNK, 4),
    (READ_CHUNK, 8),
    (READ_CHUNK, 16),
    (READ_CHUNK, 32),
    (MIB, 8),
    (4 * READ_CHUNK, 8),
)
CACHED_RATIO = 0.7  # if the first rate is at least this part of the second, the files were cached before
GOOD_RATIO = 0.9  # of the best rate: more parallel reads than this needs gain too little


@dataclass
class Measured:
    """The result of one combination of chunk size and parallel reads.

    Attributes:
        chunk: Bytes per read.
        threads: Parallel reads.
        bytes: Bytes read each time.
        first: Bytes per second, the first time.
        again: Bytes per second, the second time.
    """

    chunk: int
    threads: int
    bytes: int
    first: float
    again: float


Piece = tuple[str, int, int]  # path, from, to


def bench(root: str, limit: int) -> dict[str, Any]:
    """Measure, and return the JSON object of the result.

    Args:
        root: The root.
        limit: Bytes to read at most, in all; each combination gets the same share.

    Raises:
        NotCachedError: The root has no published files.
        StorageError: A file cannot be read.
    """
    layout = Layout(root)
    check_root(layout)
    paths = [
        f"{layout.root}/{version_path(name, digest)}/{path}"
        for name, digest, receipt in iter_receipts(layout)
        for path in receipt_files(receipt)
    ]
    sizes = {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}
    if not any(sizes.values()):
        raise NotCachedError(
            f"nothing is published in {layout.root}, so there is nothing to read",
            hint=f"run {command('ensure', layout.root)} first, then this command in a new container",
            checkpoints=(),
        )
    shares = _shares(sizes, limit)
    measured = []
    for (chunk, threads), pieces in zip(COMBINATIONS, shares, strict=True):
        count = sum(end - start for _, start, end in pieces)
        if count:
            _drop(pieces)
            first, again = _read(pieces, chunk, threads), _read(pieces, chunk, threads)
            measured.append(Measured(chunk, threads, count, count / first, count / again))
    return {
        "root": layout.root,
        "files": len(sizes),
        "bytes": sum(sizes.values()),
        "cpus": os.cpu_count(),
        "ways": [asdict(each) for each in measured],
        **_advice(measured, sum(sizes.values())),
    }


def _shares(sizes: dict[str, int], limit: int) -> list[list[Piece]]:
    """Divide the files into large pieces, so that each combination gets the same mix of large and small ones."""
    block = 4 * READ_CHUNK  # at least as large as any chunk, so that no two combinations read one block of the volume
    share = limit // len(COMBINATIONS)
    shares: list[list[Piece]] = [[] for _ in COMBINATIONS]
    counts = [0] * len(COMBINATIONS)
    for path, size in sorted(sizes.items(), key=lambda item: -item[1])[:MAX_FILES]:
        for start in range(0, size, block):
            least = counts.index(min(counts))
            if counts[least] >= share:
                return shares
            count = min(block, size - start, share - counts[least])
            shares[least].append((path, start, start + count))
            counts[least] += count
    return shares


def _drop(pieces: Sequence[Piece]) -> None:
    """Ask the kernel to drop the files from its cache; a volume may ignore it."""
    for path in {path for path, _, _ in pieces}:
        with _open(path) as descriptor:
            if hasattr(os, "posix_fadvise"):
                for each, start, end in pieces:
                    if each == path:
                        os.posix_fadvise(descriptor.number, start, end - start, os.POSIX_FADV_DONTNEED)


def _open(path: str) -> Descriptor:
    try:
        return opened(path, os.O_RDONLY)
    except OSError as error:
        raise StorageError.of(error, "read", path) from None


def _start(workers: Sequence[threading.Thread]) -> None:
    for worker in workers:
        try:
            worker.start()
        except RuntimeError as error:
            raise WeightCacheError(
                f"cannot start a thread for reading: {error}", hint=thread_error_hint(error)
            ) from None


def _read(pieces: Sequence[Piece], chunk: int, threads: int) -> float:
    """Read all pieces with that many parallel reads; return the seconds it took."""
    reads = iter([(path, at, min(chunk, end - at)) for path, start, end in pieces for at in range(start, end, chunk)])
    descriptors: dict[str, Descriptor] = {}
    lock, failed = threading.Lock(), list[OSError]()

    def work(view: memoryview) -> None:
        try:
            while True:
                with lock:
                    if (read := next(reads, None)) is None or failed:
                        return
                path, at, count = read
                while count > 0 and (got := os.preadv(descriptors[path].number, [view[:count]], at)):
                    at, count = at + got, count - got
        except OSError as error:
            failed.append(error)

    buffers = [memoryview(bytearray(chunk)) for _ in range(threads)]  # allocated before the time is measured
    workers = [threading.Thread(target=work, args=[view], daemon=True) for view in buffers]
    try:
        for path, _, _ in pieces:
            if path not in descriptors:
                descriptors[path] = _open(path)
        began = time.perf_counter()
        _start(workers)
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - began
    finally:
        for descriptor in descriptors.values():
            descriptor.close_quietly()
    if failed:
        raise StorageError.of(failed[0], "read", pieces[0][0]) from None
    return max(seconds, 1e-9)


def _advice(measured: Sequence[Measured], total: int) -> dict[str, Any]:
    serial, fast = measured[0], [each for each in measured if each.chunk == READ_CHUNK]
    best = max(each.first for each in measured)
    enough = next(
        (each for each in fast if each.first >= GOOD_RATIO * best), max(fast or measured, key=lambda m: m.first)
    )
    gain = enough.first / serial.first
    warm = all(each.first >= CACHED_RATIO * each.again for each in measured)
    if len(measured) < len(COMBINATIONS) or serial.bytes < READ_CHUNK:
        advice = (
            f"{size_text(total)} are too little to measure, or --size is too small: "
            f"each of {len(COMBINATIONS)} combinations needs {size_text(4 * READ_CHUNK)} or more"
        )
    elif warm:
        advice = (
            "the first reads were about as fast as the second ones: either the files were cached already (run this in "
            "a container that has just started), or this disk is as fast as memory, and parallel reads gain nothing"
        )
    elif gain < 1.2:
        rate = rate_text(serial.first)
        advice = f"one stream is as fast as several here ({rate}): prefetch only gains by reading in the background"
    else:
        advice = (
            f"prefetch(..., threads={enough.threads}): all {size_text(total)} take {total / enough.first:.1f} s, "
            f"one stream takes {total / serial.first:.1f} s, {gain:.1f} times as long"
        )
    return {"threads": enough.threads, "gain": round(gain, 2), "warm": warm, "advice": advice}


def run(options: argparse.Namespace) -> int:
    """Measure how fast the root can be read, and print the result."""
    if options.size < 1:
        raise ValueError("--size is a number of MB, 1 or more")
    result = bench(options.root, options.size * 10**6)
    if options.json:
        print_json(options, result)
    else:
        print_table(_table(result), (Cell.NUMBER,) * 5)
        print_table([[result["advice"]]], (Cell.TEXT,))
    return 0


def _table(result: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table that is printed."""
    rows = [["chunk", "at once", "read", "first", "again"]]
    rows += [
        [
            f"{each['chunk'] // MIB} MiB",
            str(each["threads"]),
            size_text(each["bytes"]),
            rate_text(each["first"]),
            rate_text(each["again"]),
        ]
        for each in result["ways"]
    ]
    return rows


COMMAND = Command(
    "bench",
    "measure how fast published files can be read, and with how many parallel reads",
    (
        ROOT,
        JSON,
        VOLUME,
        ENV,
        Flag(
            ("--size",),
            "how much to read at most, in MB; all of it is read twice (default: 2000)",
            Remote.SEND,
            metavar="MB",
            type=int,
            default=2000,
        ),
    ),
    run,
    remote=True,
)
