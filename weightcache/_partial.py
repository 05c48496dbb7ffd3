"""Partials: unverified downloads, each of one writer, with a journal that says which blocks are there.

::

    <root>/.weightcache/partial/<full digest>.<writer>/journal
                                                      /<sha256 of a file>

The journal is text, appended to after the data: a line ``opened TIME``, then lines ``SHA256 BLOCK LENGTH CRC32``,
one for each block of 1 MiB (the last one of a file may be shorter), and a line ``wiped SHA256`` where all blocks of a
file were dropped. Completeness is never inferred from a length, and a line is believed only if the block has its
checksum (`block_checksum`): a crash, or a Volume that shows the journal before the data, then costs a block and not a
wrong file. What the bytes are is judged by the file's sha256 alone.

A dead writer's partial is taken over by rename. Any other one is never touched: its blocks are copied.
"""

from __future__ import annotations

import errno
import os
import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

from ._container import Writer
from ._descriptors import Descriptor, opened
from ._look import list_names, read_bytes
from ._removal import remove
from .errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from ._look import Layout
    from .manifest import Checkpoint, File

BLOCK = 1 << 20  # bytes; what a SIGKILL may cost a connection (docs/design.md, G4)
UNFINISHED_RECEIPT = "receipt"  # stands in a name where a partial's digest stands
STALE = 86400.0  # seconds after which a partial of nobody here is swept

Blocks = dict[int, tuple[int, int]]  # block number -> (length in bytes, crc32)


class VanishedError(Exception):
    """The partial was swept or taken by somebody else; its writer starts again."""


def failure(error: OSError, doing: str, path: str) -> VanishedError | StorageError:
    """Return what comes out for an ``error`` that was met while ``doing`` something to ``path`` in a partial."""
    if error.errno in (errno.ENOENT, errno.ESTALE):  # stale: a reload put another directory in its place
        return VanishedError(path)
    return StorageError.of(error, doing, path)


class _Journal:
    """One partial directory as its journal tells it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.opened = 0.0
        self.blocks: dict[str, Blocks] = {}
        text = read_bytes(f"{path}/journal") or b""
        for line in text.split(b"\n")[:-1]:  # a last line without its newline was cut off
            with suppress(ValueError, UnicodeDecodeError):
                fields = line.decode("ascii").split(" ")
                if fields[0] == "opened":
                    self.opened = max(self.opened, float(fields[1]))
                elif fields[0] == "wiped":
                    self.blocks.pop(fields[1], None)
                else:
                    sha256, block, length, checksum = fields
                    if 0 < int(length) <= BLOCK and int(block) >= 0:
                        self.blocks.setdefault(sha256, {})[int(block)] = (int(length), int(checksum, 16))

    @property
    def bytes(self) -> int:
        return sum(length for blocks in self.blocks.values() for length, _ in blocks.values())

    def age(self) -> float:
        """Seconds since a writer opened it, by its own note: modification times do not survive a reload."""
        opened = self.opened
        if not opened:
            with suppress(OSError):
                opened = os.stat(self.path).st_mtime
        return time.time() - opened


def _writers(layout: Layout) -> Iterator[tuple[str, str, Writer | None]]:
    """Yield (path, full digest, writer) of every partial in the root."""
    for name in list_names(layout.partials):
        digest, _, writer = name.partition(".")
        yield f"{layout.partials}/{name}", digest, Writer.parse(writer)


class Partial:
    """This writer's partial of one checkpoint. Use as a context manager: leaving it closes every file."""

    def __init__(self, layout: Layout, checkpoint: Checkpoint, writer: Writer) -> None:
        self.path = f"{layout.partials}/{checkpoint.digest}.{writer}"
        dead = list[_Journal]()
        self.donors = list[_Journal]()
        for path, digest, other in _writers(layout):
            if digest != checkpoint.digest or path == self.path:
                continue
            (dead if other and other.is_dead_here(layout.root) else self.donors).append(_Journal(path))
        self.inherited = dict[str, Blocks]()
        self._files = dict[str, PartialFile]()
        self.recorded = False  # whether any block was journaled by this writer
        self._journal = Descriptor()
        # The richest dead one becomes ours; the others give what it lacks and are swept when all is done.
        for journal in sorted(dead, key=lambda each: each.bytes, reverse=True):
            if not self.inherited and journal.bytes:
                with suppress(OSError):
                    os.rename(journal.path, self.path)
                    self.inherited = journal.blocks
                    continue
            self.donors.append(journal)
        try:
            os.makedirs(self.path, exist_ok=True)
            self._journal.open(f"{self.path}/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            self.append(f"\nopened {time.time():.0f}\n")  # the newline ends a line that a crash cut off
        except OSError as error:
            if self.inherited:
                self.close()
            else:
                self.discard()  # a full disk has no room for a journal, but for an empty one
            raise StorageError.of(error, "write to", self.path) from None

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if not self.inherited and not self.recorded:
            self.discard()  # nothing that a later run could use

    def close(self) -> None:
        """Close every file of it."""
        for file in self._files.values():
            file.close()
        self._journal.close_quietly()  # a line that is lost costs a block

    def file(self, file: File) -> PartialFile:
        """Return the partial of one file."""
        if file.sha256 not in self._files:
            self._files[file.sha256] = PartialFile(self, file)
        return self._files[file.sha256]

    def discard(self) -> None:
        """Remove it with everything in it: its checkpoint is published."""
        self.close()
        remove(self.path)

    def append(self, line: str) -> None:
        """Add to the journal."""
        os.write(self._journal.number, line.encode("ascii"))


class PartialFile:
    """The data of one file in a partial, and which of its blocks are there.

    Attributes:
        path: Where the data lies.
        reused: Bytes taken over from earlier or other writers.
    """

    def __init__(self, partial: Partial, file: File) -> None:
        self._partial = partial
        self._sha256 = file.sha256
        self._own = dict(partial.inherited.get(file.sha256, {}))
        self._donated = [(j.path, dict(j.blocks[file.sha256])) for j in partial.donors if file.sha256 in j.blocks]
        self.path = f"{partial.path}/{file.sha256}"
        self.reused = 0
        self._data = Descriptor()

    def open(self) -> None:
        """Open it for writing. Not sooner than it is needed: a checkpoint may have more files than a process may open.

        Raises:
            StorageError: It cannot be opened.
            VanishedError: The partial was swept or taken.
        """
        try:
            self._data.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        except OSError as error:
            raise failure(error, "write to", self.path) from None

    def write(self, block: int, data: memoryview) -> None:
        """Write a block, and then journal it. Several threads may, each its own block.

        Raises:
            StorageError: The disk is full or failed.
        """
        checksum, offset, rest = block_checksum(data), block * BLOCK, data
        try:
            while rest:
                written = os.pwrite(self._data.number, rest, offset)
                offset, rest = offset + written, rest[written:]
        except OSError as error:
            raise failure(error, "write to", self.path) from None
        try:
            self._partial.append(f"{self._sha256} {block} {len(data)} {checksum:08x}\n")
        except OSError as error:
            raise failure(error, "write to the journal of", self.path) from None
        self._own[block] = (len(data), checksum)
        self._partial.recorded = True

    def take(self, block: int) -> bytes | None:
        """Return a block that is already there, in our own data or in another writer's (then it is copied).

        ``None`` if nobody has it, or what is there does not have the journaled checksum.
        """
        if (data := _read_block(self._data.number, block, self._own.pop(block, None))) is not None:
            self._own[block] = (len(data), block_checksum(data))
            self.reused += len(data)
            return data
        for path, blocks in self._donated:
            if (expected := blocks.pop(block, None)) is None:
                continue
            with suppress(OSError):  # it may be swept or taken over at any moment
                with opened(f"{path}/{self._sha256}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as source:
                    data = _read_block(source.number, block, expected)
                if data is not None:
                    self.write(block, memoryview(data))
                    self.reused += len(data)
                    return data
        return None

    def present(self) -> dict[int, int]:
        """Return the length of each block that `take` may have, by its number."""
        given = {number: length for _, blocks in self._donated for number, (length, _) in list(blocks.items())}
        return given | {number: length for number, (length, _) in list(self._own.items())}

    def wipe(self) -> None:
        """Forget every block, also the donors': what is here is not the declared file.

        Raises:
            StorageError: The disk failed.
        """
        try:
            # Truncation makes every journaled block fail its checksum, also after a crash right here; the line spares
            # a later run from asking for each of them alone.
            os.ftruncate(self._data.number, 0)
            self._partial.append(f"wiped {self._sha256}\n")
        except OSError as error:
            raise failure(error, "truncate", self.path) from None
        self._own.clear()
        self._donated.clear()
        self.reused = 0

    def finish(self, size: int) -> None:
        """Cut the data to ``size`` bytes, make it durable and close it; it is ready to be published.

        Raises:
            StorageError: The disk is full or failed.
            VanishedError: The data was swept or taken meanwhile.
        """
        try:
            os.ftruncate(self._data.number, size)
            os.fsync(self._data.number)
            if os.fstat(self._data.number).st_nlink == 0:
                raise VanishedError(self.path)
            self._data.close()  # some file systems report here that they did not keep what was written
        except OSError as error:
            raise failure(error, "write to", self.path) from None
        finally:
            self.close()

    def close(self) -> None:
        """Close it, complete or not. What is lost of its blocks fails their checksums."""
        self._data.close_quietly()


def _read_block(descriptor: int, block: int, expected: tuple[int, int] | None) -> bytes | None:
    if expected is None:
        return None
    length, checksum = expected
    try:
        data = os.pread(descriptor, length, block * BLOCK)
    except OSError:
        return None
    return data if len(data) == length and block_checksum(data) == checksum else None


def block_checksum(data: bytes | memoryview) -> int:
    """Return the crc32 of the first 8 bytes of every 4096 of a block, and of its last ones that make no 8.

    What a crash leaves of a block are pages that were never written, and a sample of each shows them. All of the bytes
    would cost a tenth of the whole download (docs/decisions/0007-checksum-of-a-sample.md) and prove no more: what they
    are is judged by the file's sha256.
    """
    view = memoryview(data)
    whole = len(view) - len(view) % 8
    return zlib.crc32(view[whole:], zlib.crc32(view[:whole].cast("Q")[::512].tobytes()))


def stale_partials(layout: Layout) -> list[str]:
    """Return the partials that were opened more than a day ago and are not being written here."""
    stale = []
    for path, _, writer in _writers(layout):
        writing_here = writer is not None and writer.is_here(layout.root) and not writer.is_dead_here(layout.root)
        if not writing_here and _Journal(path).age() > STALE:
            stale.append(path)
    return stale


def _receipted(layout: Layout) -> set[str]:
    """Return the full digests that have a receipt, by its name alone."""
    names = (f"{layout.receipts}/{name}" for name in list_names(layout.receipts))
    return {entry.removesuffix(".json") for path in names for entry in list_names(path) if entry.endswith(".json")}


def sweep(layout: Layout, published: set[str]) -> list[str]:
    """Remove partials that nobody continues, and return their paths.

    Those are the stale ones, and a dead writer's of this container whose checkpoint is there: its full digest is in
    ``published``, or has a receipt, as where a process was killed before its own sweep.
    """
    over_digests = {UNFINISHED_RECEIPT, *published, *_receipted(layout)}
    over = [
        path
        for path, digest, writer in _writers(layout)
        if digest in over_digests and writer is not None and writer.is_dead_here(layout.root)
    ]
    removed = sorted({*over, *stale_partials(layout)})
    for path in removed:
        remove(path)
    return removed
