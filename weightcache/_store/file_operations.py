"""Files of version directories: hash, copy, link and publish them.

A file is published only by `publish_file`, a rename of bytes that were hashed on their way into the partial or right
before. A published file is used only with a receipt or after a hash. No link below the root is followed: everybody with
write access to the Volume could otherwise make weightcache write, rename or delete outside of it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from weightcache._runtime.owned_descriptors import Descriptor, opened
from weightcache._runtime.start_threads import run_in_threads
from weightcache._runtime.unannounced_write_check import require_writing
from weightcache.errors import StorageError

from .partial_file import VanishedError, storage_failure
from .root_checks import find_symlink, refuse_links
from .writeback import WriteBack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from weightcache.manifest import Checkpoint, File

    from .layout import Layout

T = TypeVar("T")
R = TypeVar("R")

HASH_CHUNK = 1 << 20  # bytes; sha256 is as fast as with larger ones
_HASH_THREADS = 4


class Hashed(NamedTuple):
    """What was read of a file: its sha256, and how many bytes that was."""

    sha256: str
    size: int


def hash_file(path: str, check: Callable[[], None], *, follow: bool = False, retry: bool = True) -> Hashed | None:
    """Hash a regular file; ``None`` if it does not exist, or only a link to one and links are not to be followed.

    Raises:
        StorageError: It is there and cannot be read.
    """
    try:
        found = os.stat(path, follow_symlinks=follow)
        return _read(path, lambda _: check(), follow=follow) if stat.S_ISREG(found.st_mode) else None
    except OSError as error:
        if error.errno in (errno.ESTALE, errno.ENOENT) and retry:  # a reload put another file in the place of this one
            return hash_file(path, check, follow=follow, retry=False)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise StorageError.of(error, "read", path) from None


def copy_file(source: str, target: str, check: Callable[[], None]) -> Hashed:
    """Copy a file's bytes to a new file ``target`` in a partial, durable; return what was copied.

    Raises:
        StorageError: ``source`` cannot be read, or ``target`` cannot be written.
        VanishedError: Somebody swept the partial.
    """
    write_back = WriteBack()

    def write(chunk: memoryview) -> None:
        try:
            written.write(chunk)
            write_back.wrote(written.number, len(chunk))
        except OSError as error:
            raise StorageError.of(error, "write to", target) from None
        check()

    with Descriptor() as written:
        try:
            # A file that an earlier writer left there may be a published one under another name: never written to.
            with suppress(FileNotFoundError):
                os.unlink(target)
            written.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
        except OSError as error:
            raise storage_failure(error, "write to", target) from None
        try:
            copied = _read(source, write, follow=True)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError.of(error, "read", source) from None
        try:
            os.fsync(written.number)
            written.close()  # some file systems report here that they did not keep what was written
        except OSError as error:
            raise storage_failure(error, "write to", target) from None
    return copied


def _read(path: str, take: Callable[[memoryview], None], *, follow: bool) -> Hashed:
    """Give a file's bytes to ``read_block``, chunk by chunk, and return what they are."""
    digest, size, buffer = hashlib.sha256(), 0, bytearray(HASH_CHUNK)
    view = memoryview(buffer)
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)  # a fifo at this path has no writer
    with opened(path, flags) as stream:
        if not stat.S_ISREG(os.fstat(stream.number).st_mode):  # it took the place of a file a moment ago
            raise OSError(errno.EINVAL, "it is not a regular file")
        while count := os.readv(stream.number, [buffer]):
            digest.update(view[:count])
            size += count
            take(view[:count])
    return Hashed(digest.hexdigest(), size)


def verified_sizes(
    layout: Layout, wanted: Iterable[tuple[Checkpoint, File]], check: Callable[[], None]
) -> dict[tuple[str, str], int]:
    """Hash published files in parallel; return the size of each right one, by checkpoint name and path."""

    def size_if_right(item: tuple[Checkpoint, File], check: Callable[[], None]) -> int | None:
        checkpoint, file = item
        path = layout.file(checkpoint, file)
        if file.size is not None:
            with suppress(OSError):
                if os.lstat(path).st_size != file.size:
                    return None
        found = None if find_symlink(layout, os.path.dirname(path)) else hash_file(path, check)
        return found.size if found and found.sha256 == file.sha256 else None

    items = list(wanted)
    sizes = parallel_map(size_if_right, items, check)
    return {(c.name, f.path): size for (c, f), size in zip(items, sizes, strict=True) if size is not None}


def parallel_map(work: Callable[[T, Callable[[], None]], R], items: Sequence[T], check: Callable[[], None]) -> list[R]:
    """Do ``work``, which hashes, for each item. It must call what it is given often: that ends it where one failed."""
    left, results, failed = iter(range(len(items))), dict[int, R](), list[BaseException]()

    def check_both() -> None:
        check()
        if failed:
            raise InterruptedError

    def run() -> None:
        try:
            for index in left:
                if failed:
                    return
                results[index] = work(items[index], check_both)
        except BaseException as error:  # noqa: BLE001 (it is raised below, in the caller's thread)
            failed.append(error)

    run_in_threads(run, min(_HASH_THREADS, len(items)) - 1, "weightcache-hash", failed)
    if failed:
        raise failed[0]
    return [results[index] for index in range(len(items))]


def publish_file(layout: Layout, checkpoint: Checkpoint, file: File, source: str) -> None:
    """Move verified bytes from ``source`` (in a partial) to their place, replacing what is there at once.

    Readers that have an old file open keep what they have.

    Raises:
        VanishedError: ``source`` is gone: somebody swept the partial.
        StorageError: The directory cannot be written.
        RuntimeError: The write was not announced with ``VolumeSession.writing()``.
    """
    require_writing(layout.root)
    target = layout.file(checkpoint, file)
    refuse_links(layout, os.path.dirname(target))
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(source, target)
    except FileNotFoundError:
        raise VanishedError(source) from None
    except OSError as error:
        raise StorageError.of(error, "publish", target) from None


def link_or_copy(source: str, target: str, sha256: str, check: Callable[[], None]) -> Hashed | None:
    """Put the bytes of a published ``source`` at ``target``; ``None`` if they are not ``sha256`` or cannot be read.

    A hard link where the file system has them (a Modal Volume of version 1 has none), else a copy. Nothing may write to
    ``source`` any more, so it must not be a partial.

    Raises:
        StorageError: The disk is full.
    """
    right: Hashed | None = None
    try:
        with suppress(FileNotFoundError):
            os.unlink(target)
        try:
            os.link(source, target)
        except OSError:
            found: Hashed | None = copy_file(source, target, check)
        else:
            found = hash_file(target, check)  # of a link that took the place of ``source``, nothing
        right = found if found and found.sha256 == sha256 else None
    except StorageError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
    except OSError as error:
        raise StorageError.of(error, "replace", target) from None
    finally:
        if not right:
            with suppress(OSError):
                os.unlink(target)
    return right


def remove_file(path: str) -> None:
    """Delete a file; one that does not exist is as good.

    Raises:
        StorageError: It cannot be deleted.
    """
    try:
        os.unlink(path)
    except OSError as error:
        # A network file system can say of a file that is there that it is not; the receipt must not go before it.
        if not isinstance(error, FileNotFoundError) or os.path.lexists(path):
            raise StorageError.of(error, "delete", path) from None
