"""``weightcache bench``: how fast this root can be read, and with how many reads at once.

To be run where the answer counts: in a container that has just started, on the volume that it mounts. Every way of
reading is given a share of the published files of its own, so that each meets bytes that nobody read before it; it then
reads them a second time, for what the cache gives.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from weightcache._prefetch.file import READ_CHUNK
from weightcache._runtime.descriptors import Descriptor, opened
from weightcache._runtime.threads import thread_error_hint
from weightcache._store.layout import Layout, version_path
from weightcache._store.receipts import iter_receipts, receipt_files
from weightcache._store.root import check_root
from weightcache.errors import NotCachedError, StorageError, WeightCacheError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

MIB = 1 << 20
MAX_FILES = (
    500  # the largest ones, if there are more: a way has all of its files open, and a process may often have 1024
)
# Chunk in bytes and reads at once. The first is how loaders of .pt files read, the one with 8 is what prefetch does.
WAYS = (
    (MIB, 1),
    (READ_CHUNK, 1),
    (READ_CHUNK, 4),
    (READ_CHUNK, 8),
    (READ_CHUNK, 16),
    (READ_CHUNK, 32),
    (MIB, 8),
    (4 * READ_CHUNK, 8),
)
CACHED = 0.7  # a first read this near to the second one met a cache that was warm
GOOD = 0.9  # of the best rate: more reads at once than that takes are of no use


@dataclass
class Measured:
    """One way of reading.

    Attributes:
        chunk: Bytes a read.
        threads: Reads at once.
        bytes: How many it read.
        first: Bytes a second, the first time.
        again: Bytes a second, the second time.
    """

    chunk: int
    threads: int
    bytes: int
    first: float
    again: float


Piece = tuple[str, int, int]  # path, from, to


def bench(root: str, limit: int) -> dict[str, Any]:
    """Measure; return what is to be told.

    Args:
        root: The root.
        limit: Bytes to read in all, at most; each way gets the same share.

    Raises:
        NotCachedError: Nothing is published there.
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
            hint=f"run `weightcache ensure --root {layout.root}` first, and this in a container that starts after it",
            checkpoints=(),
        )
    shares = _shares(sizes, limit)
    measured = []
    for (chunk, threads), pieces in zip(WAYS, shares, strict=True):
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
    """Deal the files out in large pieces, so that each way gets the same number of bytes of large and small files."""
    block = 4 * READ_CHUNK  # at least as large as any chunk, so that no two ways meet in one block of the volume
    share = limit // len(WAYS)
    shares: list[list[Piece]] = [[] for _ in WAYS]
    counts = [0] * len(WAYS)
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
    """Ask the kernel to forget what it has of the files. A volume may ignore it; then only a new container is cold."""
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
                f"a thread that reads cannot be started: {error}", hint=thread_error_hint(error)
            ) from None


def _read(pieces: Sequence[Piece], chunk: int, threads: int) -> float:
    """Read all pieces, so many reads at once; return the seconds that it took."""
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

    buffers = [memoryview(bytearray(chunk)) for _ in range(threads)]  # made before the clock runs
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
    enough = next((each for each in fast if each.first >= GOOD * best), max(fast or measured, key=lambda m: m.first))
    gain = enough.first / serial.first
    warm = all(each.first >= CACHED * each.again for each in measured)
    if len(measured) < len(WAYS) or serial.bytes < READ_CHUNK:
        advice = (
            f"{total / 1e6:.0f} MB are too little to tell, or too little of it was read (--size): "
            f"each of {len(WAYS)} ways wants {4 * READ_CHUNK // 1_000_000} MB and more"
        )
    elif warm:
        advice = (
            "the first reads were about as fast as the second ones: either all of it was cached already (run this in a "
            "container that has just started), or this disk is as fast as memory and nothing is to be gained"
        )
    elif gain < 1.2:
        advice = f"one stream is as fast as many here ({serial.first / 1e6:.0f} MB/s): prefetch gains the overlap only"
    else:
        advice = (
            f"prefetch(..., threads={enough.threads}): all {total / 1e6:.0f} MB take {total / enough.first:.1f} s, "
            f"one stream takes {total / serial.first:.1f} s, {gain:.1f} times that"
        )
    return {"threads": enough.threads, "gain": round(gain, 2), "warm": warm, "advice": advice}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        type=int,
        default=2000,
        metavar="MB",
        help="how much to read in all, at most, and then once more (default: 2000)",
    )


def table(told: dict[str, Any]) -> list[list[str]]:
    """Return the rows for a person."""
    rows = [["chunk", "at once", "read", "first", "again"]]
    rows += [
        [
            f"{each['chunk'] // MIB} MiB",
            str(each["threads"]),
            f"{each['bytes'] / 1e6:.0f} MB",
            f"{each['first'] / 1e6:.0f} MB/s",
            f"{each['again'] / 1e6:.0f} MB/s",
        ]
        for each in told["ways"]
    ]
    return rows
