"""The journal of a partial: which blocks of which file are written, and since when.

The journal is ASCII text that is only appended to, each line after the data that it describes: ``opened TIME``, then
``SHA256 BLOCK LENGTH CHECKSUM`` for each block of 1 MiB (the last block of a file may be shorter), and ``wiped SHA256``
where all blocks of a file so far were dropped. A full disk or a crash cuts lines, and a Volume may show the journal
before the data. So every line that is not exactly of this form is skipped, and a block counts only if its bytes have
the journaled checksum. What the bytes are is judged by the file's sha256 alone.
"""

from __future__ import annotations

import os
import re
import time
import zlib

from weightcache.errors import StorageError

from .inspect import read_bytes

BLOCK = 1 << 20  # bytes; what a SIGKILL may cost a connection (docs/design.md, G4)
JOURNAL_BYTES = 128 << 20  # the most that is read of a journal: 1.5 TB of blocks. A planted one may be endless
_CREDIBLE = 1.6e9  # seconds since the epoch (2020): an `opened` before it is a line that was cut
_LINE = re.compile(
    rb"^(?:opened ([0-9]{1,12})|wiped ([0-9a-f]{64})|([0-9a-f]{64}) ([0-9]{1,9}) ([0-9]{1,7}) ([0-9a-f]{8}))\n", re.M
)

Blocks = dict[int, tuple[int, int]]  # block number -> (length in bytes, checksum)


class Journal:
    """What the journal of one partial directory says.

    Attributes:
        path: The partial directory.
        opened: When a writer opened it last, in seconds since the epoch; 0 if no line says so.
        blocks: By the sha256 of a file, its blocks.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.opened = 0.0
        self.blocks: dict[str, Blocks] = {}
        try:
            text = _text(path)
        except StorageError:
            text = b""  # no block counts, and all of them are fetched again
        for line in _LINE.finditer(text):  # findall would take ten times the memory of the text
            opened, wiped, sha256, block, length, checksum = line.groups()
            if opened:
                self.opened = max(self.opened, _credible(opened))
            elif wiped:
                self.blocks.pop(wiped.decode(), None)
            elif 0 < int(length) <= BLOCK:
                self.blocks.setdefault(sha256.decode(), {})[int(block)] = (int(length), int(checksum, 16))

    @property
    def bytes(self) -> int:
        return sum(length for blocks in self.blocks.values() for length, _ in blocks.values())


def partial_age(path: str) -> float:
    """Return how many seconds ago a writer opened a partial, by its journal: a reload may change modification times.

    Without a credible line it is the age of the directory itself. It is 0 if neither can be read: then it may be new.
    """
    try:
        opened = max(
            (_credible(match[1]) for match in re.finditer(rb"^opened ([0-9]{1,12})\n", _text(path), re.M)), default=0
        )
        return time.time() - (opened or os.lstat(path).st_mtime)
    except OSError:
        return 0.0


def _text(path: str) -> bytes:
    return read_bytes(f"{path}/journal", JOURNAL_BYTES) or b""


def _credible(opened: bytes) -> float:
    """Return a time, or 0 for one before this library or more than a day ahead: it would be swept at once, or never."""
    seconds = float(opened)
    return seconds if _CREDIBLE < seconds < time.time() + 86400.0 else 0.0


def opened_line() -> str:
    """Return the line that a writer adds when it opens a journal."""
    return f"\nopened {time.time():.0f}\n"  # the newline ends a line that a crash cut


def block_line(sha256: str, block: int, length: int, checksum: int) -> str:
    """Return the line that says that a block of ``length`` bytes is written."""
    return f"{sha256} {block} {length} {checksum:08x}\n"


def wiped_line(sha256: str) -> str:
    """Return the line that says that no block of a file so far counts any more."""
    return f"wiped {sha256}\n"


def block_checksum(data: bytes | memoryview) -> int:
    """Return the crc32 of the first 8 bytes of every 4096 of a block, and of its last ones that make no 8.

    What a crash leaves of a block are pages that were never written, and a sample of each shows them. All of the bytes
    would cost a tenth of the whole download (docs/decisions/0007-checksum-of-a-sample.md) and prove no more: what they
    are is judged by the file's sha256.
    """
    view = memoryview(data)
    whole = len(view) - len(view) % 8
    return zlib.crc32(view[whole:], zlib.crc32(view[:whole].cast("Q")[::512].tobytes()))
