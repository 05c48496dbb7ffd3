"""The store: published places and their receipts, and everything that hashes or renames.

Nothing comes into a place but by `publish`, a rename of bytes that were hashed on their way into the partial or
right before; nothing is believed of a place but by a receipt or a hash.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from ._background import share
from ._container import Writer
from ._descriptors import Descriptor, opened
from ._look import RECEIPT_FORMAT, receipted_files, receipted_places
from ._partial import UNFINISHED_RECEIPT, VanishedError, failure
from .errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ._look import Layout
    from .manifest import Checkpoint, File

T = TypeVar("T")
R = TypeVar("R")

HASH_CHUNK = 1 << 20  # bytes; sha256 is as fast as with larger ones
_HASH_THREADS = 4


def hash_file(path: str, check: Callable[[], None]) -> str | None:
    """Return a regular file's sha256, or ``None`` if there is no such file.

    Raises:
        StorageError: It is there and cannot be read.
    """
    try:
        return _read(path, lambda _: check()) if os.path.isfile(path) else None
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:
            return _hash_again(path, check)
        raise StorageError.of(error, "read", path) from None


def _hash_again(path: str, check: Callable[[], None]) -> str | None:
    """Hash the file that a reload put in the place of one that was being read."""
    try:
        return _read(path, lambda _: check())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError.of(error, "read", path) from None


def copy(source: str, target: str, check: Callable[[], None]) -> str:
    """Copy a file's bytes to ``target`` in a partial, durable; return the sha256 of what was copied.

    Raises:
        StorageError: ``source`` cannot be read, or ``target`` cannot be written.
        VanishedError: Somebody swept the partial.
    """

    def write(chunk: memoryview) -> None:
        try:
            written.write(chunk)
        except OSError as error:
            raise StorageError.of(error, "write to", target) from None
        check()

    with Descriptor() as written:
        try:
            written.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
        except OSError as error:
            raise failure(error, "write to", target) from None
        try:
            digest = _read(source, write)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError.of(error, "read", source) from None
        try:
            os.fsync(written.number)
            written.close()  # some file systems report here that they did not keep what was written
        except OSError as error:
            raise failure(error, "write to", target) from None
    return digest


def _read(path: str, take: Callable[[memoryview], None]) -> str:
    """Give a file's bytes to ``take``, chunk by chunk, and return their sha256."""
    digest, buffer = hashlib.sha256(), bytearray(HASH_CHUNK)
    view = memoryview(buffer)
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as stream:  # a fifo in its place has no writer to wait for
        while count := os.readv(stream.number, [buffer]):
            digest.update(view[:count])
            take(view[:count])
    return digest.hexdigest()


def wrong_files(
    layout: Layout, wanted: Iterable[tuple[Checkpoint, File]], check: Callable[[], None]
) -> set[tuple[str, str]]:
    """Hash published files in parallel; return (checkpoint name, path) of each that is not what is declared."""

    def right(item: tuple[Checkpoint, File], check: Callable[[], None]) -> bool:
        checkpoint, file = item
        path = layout.file(checkpoint, file)
        if file.size is not None:
            with suppress(OSError):
                if os.stat(path).st_size != file.size:
                    return False
        return hash_file(path, check) == file.sha256

    items = list(wanted)
    found = in_parallel(right, items, check)
    return {(c.name, f.path) for (c, f), ok in zip(items, found, strict=True) if not ok}


def in_parallel(work: Callable[[T, Callable[[], None]], R], items: Sequence[T], check: Callable[[], None]) -> list[R]:
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

    share(run, min(_HASH_THREADS, len(items)) - 1, "weightcache-hash", failed)
    if failed:
        raise failed[0]
    return [results[index] for index in range(len(items))]


def check_root(layout: Layout) -> None:
    """Look at the root itself where something is missing in it: to whom may not look, everything seems to be missing.

    Raises:
        StorageError: It is there and no directory, leads nowhere, or may not be read.
    """
    root, hint = layout.root, "root must be a directory; name the mount path of the Volume"
    try:
        is_directory = stat.S_ISDIR(os.stat(root).st_mode)
    except FileNotFoundError:
        if os.path.islink(root):
            why = f"it is a link to {os.readlink(root)}, which is not there"
            raise StorageError(f"cannot use root {root}: {why}", hint=hint, path=root) from None
        return
    except OSError as error:
        raise StorageError.of(error, "read", root) from None
    if not is_directory:
        raise StorageError(f"cannot use root {root}: it is a file", hint=hint, path=root)
    if not os.access(root, os.R_OK | os.X_OK):
        raise StorageError.of(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "read", root)


def make_root(layout: Layout) -> None:
    """Make the root and what is ours in it.

    Raises:
        StorageError: It cannot be made, or is not a directory.
    """
    try:
        for path in (layout.root, layout.partials, layout.receipts):
            os.makedirs(path, exist_ok=True)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise StorageError(
                f"cannot use root {layout.root}: {error.filename} is a file",
                hint="a directory of ours must be there; move the file away",
                path=layout.root,
            ) from None
        raise StorageError.of(error, "make", error.filename or layout.root) from None


def is_read_only(layout: Layout) -> bool:
    """Whether the root is there and may not be written to."""
    return os.path.isdir(layout.root) and not os.access(layout.root, os.W_OK)


def refuse_read_only(layout: Layout, doing: str) -> None:
    """Raise `StorageError` if what is to be done cannot be done here."""
    if is_read_only(layout):
        raise StorageError(
            f"cannot {doing} {layout.root}: it is read-only here",
            hint=f"{doing.partition(' ')[0]} from a container that mounts the Volume for writing",
            path=layout.root,
        )


def publish(layout: Layout, checkpoint: Checkpoint, file: File, source: str) -> None:
    """Move verified bytes from ``source`` (in a partial) to their place, replacing what is there at once.

    Readers that have an old file open keep what they have.

    Raises:
        VanishedError: ``source`` is gone: somebody swept the partial.
        StorageError: The place cannot be written.
    """
    target = layout.file(checkpoint, file)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(source, target)
    except FileNotFoundError:
        raise VanishedError(source) from None
    except OSError as error:
        raise StorageError.of(error, "publish", target) from None


def held_files(layout: Layout) -> dict[str, list[str]]:
    """Return sha256 → paths of the files in the root that have a receipt; their bytes are still to be hashed."""
    held: dict[str, list[str]] = {}
    for name, digest, receipt in receipted_places(layout):
        for path, (sha256, _) in receipted_files(receipt).items():
            held.setdefault(sha256, []).append(f"{layout.root}/{name}/{digest[:16]}/{path}")
    return held


def link_or_copy(source: str, target: str, sha256: str, check: Callable[[], None]) -> bool:
    """Bring verified bytes of ``source`` to ``target``; ``False`` if they are not ``sha256`` or cannot be had.

    A hard link where the file system has them (a Modal Volume of version 1 has none), else a copy.

    Raises:
        StorageError: The disk is full.
    """
    try:
        with suppress(FileNotFoundError):
            os.unlink(target)
    except OSError as error:
        raise StorageError.of(error, "replace", target) from None
    try:
        try:
            os.link(source, target)
        except OSError:
            found: str | None = copy(source, target, check)
        else:
            found = hash_file(target, check)
        if found == sha256:
            return True
    except StorageError as error:
        with suppress(OSError):
            os.unlink(target)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return False
    with suppress(OSError):
        os.unlink(target)
    return False


def write_receipt(layout: Layout, checkpoint: Checkpoint, sources: Sequence[str]) -> None:
    """Record that a place was verified: written aside and renamed, so that nobody reads half of it.

    Raises:
        StorageError: It cannot be written.
        VanishedError: A published file is gone.
    """
    path = layout.receipt(checkpoint)
    fresh = f"{layout.partials}/{UNFINISHED_RECEIPT}.{Writer.new(layout.root)}"  # there it is swept if we die
    try:
        files = {
            file.path: {"sha256": file.sha256, "size": os.stat(layout.file(checkpoint, file)).st_size}
            for file in checkpoint.files
        }
    except OSError:
        raise VanishedError(layout.place(checkpoint)) from None
    receipt = {
        "format": RECEIPT_FORMAT,
        "name": checkpoint.name,
        "digest": checkpoint.digest,
        "verified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sources": list(sources),
        "files": files,
    }
    try:
        for folder in (os.path.dirname(path), layout.partials):
            os.makedirs(folder, exist_ok=True)  # a commit of a Volume reloads, and that may drop empty directories
        with opened(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as stream:
            stream.write(f"{json.dumps(receipt, indent=1)}\n".encode())
            os.fsync(stream.number)
            stream.close()
        os.replace(fresh, path)
        with suppress(FileNotFoundError):
            os.unlink(path.removesuffix("json") + "pruning")  # a prune that died half-way must not go on with it
    except OSError as error:
        with suppress(OSError):
            os.unlink(fresh)
        raise StorageError.of(error, "write the receipt", path) from None


def withdraw_receipt(layout: Layout, checkpoint: Checkpoint) -> None:
    """Take back a receipt before its place is changed, so that no hit is served meanwhile.

    Raises:
        StorageError: It cannot be removed.
    """
    try:
        with suppress(FileNotFoundError):
            os.unlink(layout.receipt(checkpoint))
    except OSError as error:
        raise StorageError.of(error, "withdraw the receipt", layout.receipt(checkpoint)) from None
