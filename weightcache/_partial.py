"""Partials: unverified downloads, each of one writer, with a journal that says which blocks are there.

::

    <root>/.weightcache/partial/<full digest>.<writer>/journal
                                                      /<sha256 of a file>

Completeness is never inferred from a length: `_journal` says which blocks count.

A dead writer's partial is taken over by rename. Any other one is never touched: its blocks are copied. Bytes that
somebody else can still change must never be published, also where a writer that lives elsewhere is taken for dead. So
a file of a partial is written to only if this writer made it, or if no other name and no open descriptor leads to it;
otherwise its blocks are copied as those of another writer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from ._container import Writer, in_modal_container
from ._descriptors import Descriptor, opened
from ._journal import BLOCK, Blocks, Journal, age, block_checksum, block_line, opened_line, wiped_line
from ._look import list_directories, list_names
from ._removal import remove
from ._writeback import WriteBack
from .errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from ._look import Layout
    from .manifest import Checkpoint, File

__all__ = [
    "BLOCK",
    "STAGED",
    "STALE",
    "UNFINISHED_RECEIPT",
    "Partial",
    "PartialFile",
    "VanishedError",
    "block_checksum",
]

UNFINISHED_RECEIPT = "receipt"  # stands in a name where a partial's digest stands
STAGED = "pin"  # the same, for what `weightcache pin` and `add` download to learn its digest
STALE = 86400.0  # seconds after which a partial of nobody here is swept
_DIGEST = re.compile("[0-9a-f]{64}")


class VanishedError(Exception):
    """The partial was swept or taken by somebody else; its writer starts again."""


def failure(error: OSError, doing: str, path: str) -> VanishedError | StorageError:
    """Return what comes out for an ``error`` that was met while ``doing`` something to ``path`` in a partial."""
    if error.errno in (errno.ENOENT, errno.ESTALE):  # stale: a reload put another directory in its place
        return VanishedError(path)
    return StorageError.of(error, doing, path)


def _writers(layout: Layout) -> Iterator[tuple[str, str, Writer]]:
    """Yield (path, full digest, writer) of every partial in the root.

    Anything else there is not ours: a stranger's directory, or a link that leads out of the root.
    """
    for name in list_names(layout.partials):
        digest, _, text = name.partition(".")
        writer = Writer.parse(text)
        if writer is None or not (digest in (UNFINISHED_RECEIPT, STAGED) or _DIGEST.fullmatch(digest)):
            continue
        path = f"{layout.partials}/{name}"
        with suppress(OSError):
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) if digest == UNFINISHED_RECEIPT else stat.S_ISDIR(mode):
                yield path, digest, writer


class Partial:
    """This writer's partial of one full digest. Use as a context manager: leaving it closes every file."""

    def __init__(self, layout: Layout, checkpoint: Checkpoint, writer: Writer) -> None:
        self.path = f"{layout.partials}/{checkpoint.digest}.{writer}"
        dead = list[Journal]()
        self.donors = list[Journal]()
        for path, digest, other in _writers(layout):
            if digest == checkpoint.digest and path != self.path:
                (dead if other.is_dead_here(layout.root) else self.donors).append(Journal(path))
        self.inherited = dict[str, Blocks]()
        self._files = dict[str, PartialFile]()
        self.recorded = False  # whether any block was journaled by this writer
        self._journal = Descriptor()
        # The richest dead one becomes ours; the others give what it lacks and are swept when all is done.
        for journal in sorted(dead, key=lambda each: each.bytes, reverse=True):
            if self.inherited or not journal.bytes or not self._take_over(journal):
                self.donors.append(journal)
        try:
            os.makedirs(self.path, exist_ok=True)
            self._journal.open(f"{self.path}/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
            self.append(opened_line())
        except OSError as error:
            if self.inherited:
                self.close()
            else:
                self.discard()  # a full disk has no room for a journal, but for an empty one
            raise StorageError.of(error, "write to", self.path) from None

    def _take_over(self, journal: Journal) -> bool:
        try:
            os.rename(journal.path, self.path)
        except OSError:
            return False  # somebody else was first
        self.inherited = journal.blocks
        for name in list_names(self.path):
            # Copies that were not published share their bytes with a published file: they are never written to.
            # So does a journal with another name elsewhere, which somebody planted.
            if not _DIGEST.fullmatch(name) and not (name == "journal" and _has_one_name(f"{self.path}/{name}")):
                remove(f"{self.path}/{name}")
        return True

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
        """Add a line to the journal, whole.

        Raises:
            OSError: The disk is full or failed. After a short write the rest is tried, so that the cause is raised.
        """
        self._journal.write(line.encode("ascii"))


class PartialFile:
    """The data of one file in a partial, and which of its blocks are there.

    Attributes:
        path: Where the data lies.
        reused: Bytes taken over from earlier or other writers.
        size: How many bytes went into its sha256, as soon as it is finished.
    """

    def __init__(self, partial: Partial, file: File) -> None:
        self._partial = partial
        self._sha256 = file.sha256
        self._own = dict(partial.inherited.get(file.sha256, {}))
        self._donated = [
            (f"{journal.path}/{file.sha256}", dict(journal.blocks[file.sha256]))
            for journal in partial.donors
            if file.sha256 in journal.blocks
        ]
        self.path = f"{partial.path}/{file.sha256}"
        self.reused = 0
        self.size = -1
        self._data = Descriptor()
        self._write_back = WriteBack()

    def open(self) -> None:
        """Open it for writing. Not sooner than it is needed: a checkpoint may have more files than a process may open.

        Raises:
            StorageError: It cannot be opened.
            VanishedError: The partial was swept or taken.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW
        try:
            if not _is_only_ours(self.path):
                self._set_aside()
                flags |= os.O_CREAT | os.O_EXCL
            self._data.open(self.path, flags)
        except OSError as error:
            raise failure(error, "write to", self.path) from None

    def _set_aside(self) -> None:
        """Let the file of an earlier writer, if there is one, give its blocks like another writer's."""
        aside = f"{self.path}.aside"
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            self._donated.append((aside, self._own))
        self._own = {}

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
            self._partial.append(block_line(self._sha256, block, len(data), checksum))
        except OSError as error:
            raise failure(error, "write to the journal of", self.path) from None
        self._own[block] = (len(data), checksum)
        self._partial.recorded = True
        try:
            self._write_back.wrote(self._data.number, len(data))
        except OSError as error:
            self._distrust()
            raise failure(error, "write to", self.path) from None

    def _distrust(self) -> None:
        """Let no later run take a block of this file: which of them the disk lacks is not known.

        After a write-back that failed, Linux keeps the pages in memory and calls them clean (fsync(2)): they would pass
        every checksum, and the next fsync would succeed, until they are read from the disk again.
        """
        with suppress(OSError):
            os.ftruncate(self._data.number, 0)
        with suppress(OSError):
            self._partial.append(wiped_line(self._sha256))

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
                with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as source:
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
            self._partial.append(wiped_line(self._sha256))
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
            if os.fstat(self._data.number).st_nlink != 1:  # gone, or somebody made it another name
                raise VanishedError(self.path)
            try:
                os.fsync(self._data.number)
                self._data.close()  # some file systems report here that they did not keep what was written
            except OSError:
                self._distrust()
                raise
            self.size = size
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


def _has_one_name(path: str) -> bool:
    with suppress(OSError):
        found = os.lstat(path)
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    return False


def _is_only_ours(path: str) -> bool:
    """Whether an earlier writer's file is there that nobody but this process can reach any more.

    A hard link would be another name for it. A writer that was taken for dead may have it open; its own path to it is
    gone, since the directory was renamed. A read lease is granted only if no descriptor is open for writing (fcntl(2),
    F_SETLEASE), on this machine. Where there are no leases, another machine may share the file, but not on Modal: there
    each container has its own copy of a Volume.
    """
    with Descriptor() as file:
        try:
            file.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            found = os.fstat(file.number)
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return False
        try:
            # Opening it in this moment breaks the lease, and the default signal for that would end this process.
            fcntl.fcntl(file.number, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(file.number, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file.number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            refused = error.errno in (errno.EAGAIN, errno.EACCES, errno.EPERM)
            return not refused and in_modal_container()
    return True


def stale_partials(layout: Layout) -> list[str]:
    """Return the partials that were opened more than a day ago and are not being written here."""
    stale = []
    for path, _, writer in _writers(layout):
        writing_here = writer.is_here(layout.root) and not writer.is_dead_here(layout.root)
        if not writing_here and age(path) > STALE:
            stale.append(path)
    return stale


def _receipted(layout: Layout) -> set[str]:
    """Return the full digests that have a receipt, by its name alone."""
    names = (f"{layout.receipts}/{name}" for name in list_directories(layout.receipts))
    return {entry.removesuffix(".json") for path in names for entry in list_names(path) if entry.endswith(".json")}


def sweep(layout: Layout, published: set[str]) -> list[str]:
    """Remove partials that nobody continues, and return their paths.

    Those are the stale ones, and a dead writer's of this container whose checkpoint is there: its full digest is in
    ``published``, or has a receipt, as where a process was killed before its own sweep.
    """
    over_digests = {UNFINISHED_RECEIPT, STAGED, *published, *_receipted(layout)}
    over = [
        path for path, digest, writer in _writers(layout) if digest in over_digests and writer.is_dead_here(layout.root)
    ]
    removed = sorted({*over, *stale_partials(layout)})
    for path in removed:
        remove(path)
    return removed
