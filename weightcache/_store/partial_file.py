"""The data of one file of a partial: blocks are read, written and journaled here.

Bytes that somebody else can still change must never be published, also where a writer that lives elsewhere is taken
for dead. So a file of a partial is written to only if this writer made it, or if no other name and no open descriptor
leads to it; otherwise its blocks are copied as those of another writer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from weightcache._environment import in_modal_container
from weightcache._runtime.owned_descriptors import Descriptor, opened
from weightcache.errors import StorageError

from .journal import BLOCK, block_checksum, block_line, wiped_line
from .writeback import WriteBack

if TYPE_CHECKING:
    from collections.abc import Callable

    from .journal import Blocks


class VanishedError(Exception):
    """The partial was swept or taken by somebody else; its writer starts again."""


def storage_failure(error: OSError, doing: str, path: str) -> VanishedError | StorageError:
    """Return what comes out for an ``error`` that was met while ``doing`` something to ``path`` in a partial."""
    if error.errno in (errno.ENOENT, errno.ESTALE):  # stale: a reload replaced the directory
        return VanishedError(path)
    return StorageError.of(error, doing, path)


class PartialFile:
    """The data of one file in a partial, and which of its blocks are there.

    Attributes:
        path: Where the data lies.
        reused: Bytes taken over from earlier or other writers.
        size: How many bytes went into its sha256, as soon as it is finished.
        recorded: Whether this writer journaled any block of it.

    Args:
        path: Where the data lies.
        sha256: Digest of the file.
        own: The blocks that an earlier writer left at ``path``, by number.
        reusable: Path and blocks of the same file in other writers' partials.
        append: Adds a line to the journal of this partial.
    """

    def __init__(
        self, path: str, sha256: str, *, own: Blocks, reusable: list[tuple[str, Blocks]], append: Callable[[str], None]
    ) -> None:
        self.path, self._sha256 = path, sha256
        self._own, self._reusable = own, reusable
        self._append = append
        self.recorded = False
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
            if not _is_exclusively_ours(self.path):
                self._move_aside()
                flags |= os.O_CREAT | os.O_EXCL
            self._data.open(self.path, flags)
        except OSError as error:
            raise storage_failure(error, "write to", self.path) from None

    def _move_aside(self) -> None:
        """Let the file of an earlier writer, if there is one, give its blocks like another writer's."""
        aside = f"{self.path}.aside"
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            self._reusable.append((aside, self._own))
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
            raise storage_failure(error, "write to", self.path) from None
        try:
            self._append(block_line(self._sha256, block, len(data), checksum))
        except OSError as error:
            raise storage_failure(error, "write to the journal of", self.path) from None
        self._own[block] = (len(data), checksum)
        self.recorded = True
        try:
            self._write_back.wrote(self._data.number, len(data))
        except OSError as error:
            self._invalidate()
            raise storage_failure(error, "write to", self.path) from None

    def _invalidate(self) -> None:
        """Let no later run take a block of this file: which of them the disk lacks is not known.

        After a write-back that failed, Linux keeps the pages in memory and calls them clean (fsync(2)): they would pass
        every checksum, and the next fsync would succeed, until they are read from the disk again.
        """
        with suppress(OSError):
            os.ftruncate(self._data.number, 0)
        with suppress(OSError):
            self._append(wiped_line(self._sha256))

    def read_block(self, block: int) -> bytes | None:
        """Return a block that is already there, in our own data or in another writer's (then it is copied).

        ``None`` if nobody has it, or what is there does not have the journaled checksum.
        """
        if (data := _read_block(self._data.number, block, self._own.pop(block, None))) is not None:
            self._own[block] = (len(data), block_checksum(data))
            self.reused += len(data)
            return data
        for path, blocks in self._reusable:
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
        """Return the length of each block that `read_block` may have, by its number."""
        given = {number: length for _, blocks in self._reusable for number, (length, _) in list(blocks.items())}
        return given | {number: length for number, (length, _) in list(self._own.items())}

    def reset(self) -> None:
        """Forget every block, also the reusable': what is here is not the declared file.

        Raises:
            StorageError: The disk failed.
        """
        try:
            # Truncation makes every journaled block fail its checksum, also after a crash right here; the line spares
            # a later run from asking for each of them alone.
            os.ftruncate(self._data.number, 0)
            self._append(wiped_line(self._sha256))
        except OSError as error:
            raise storage_failure(error, "truncate", self.path) from None
        self._own.clear()
        self._reusable.clear()
        self.reused = 0

    def seal(self, size: int) -> None:
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
                self._invalidate()
                raise
            self.size = size
        except OSError as error:
            raise storage_failure(error, "write to", self.path) from None
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


def _has_single_link(path: str) -> bool:
    with suppress(OSError):
        found = os.lstat(path)
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    return False


def _is_exclusively_ours(path: str) -> bool:
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
