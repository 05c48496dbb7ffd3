"""The store: published places and their receipts, and everything that hashes or renames.

Nothing comes into a place but by `publish`, a rename of bytes that were hashed on their way into the partial or
right before; nothing is believed of a place but by a receipt or a hash. No link below the root is followed: who can
write to a Volume could otherwise let us write, rename or delete outside of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ._background import share
from ._container import Writer
from ._descriptors import Descriptor, opened
from ._look import RECEIPT_FORMAT, receipted_files, receipted_places
from ._partial import UNFINISHED_RECEIPT, VanishedError, failure
from ._writeback import WriteBack
from .errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ._look import Layout
    from .manifest import Checkpoint, File

T = TypeVar("T")
R = TypeVar("R")

HASH_CHUNK = 1 << 20  # bytes; sha256 is as fast as with larger ones
_HASH_THREADS = 4


class Hashed(NamedTuple):
    """What was read of a file: its sha256, and how many bytes that was."""

    sha256: str
    size: int


def hash_file(path: str, check: Callable[[], None], *, follow: bool = False, again: bool = True) -> Hashed | None:
    """Hash a regular file; ``None`` if there is none, or only a link to one and links are not to be followed.

    Raises:
        StorageError: It is there and cannot be read.
    """
    try:
        found = os.stat(path, follow_symlinks=follow)
        return _read(path, lambda _: check(), follow=follow) if stat.S_ISREG(found.st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ESTALE and again:  # a reload put another file in the place of the one being read
            return hash_file(path, check, follow=follow, again=False)
        raise StorageError.of(error, "read", path) from None


def copy(source: str, target: str, check: Callable[[], None]) -> Hashed:
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
            raise failure(error, "write to", target) from None
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
            raise failure(error, "write to", target) from None
    return copied


def _read(path: str, take: Callable[[memoryview], None], *, follow: bool) -> Hashed:
    """Give a file's bytes to ``take``, chunk by chunk, and return what they are."""
    digest, size, buffer = hashlib.sha256(), 0, bytearray(HASH_CHUNK)
    view = memoryview(buffer)
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)  # a fifo in its place has no writer
    with opened(path, flags) as stream:
        while count := os.readv(stream.number, [buffer]):
            digest.update(view[:count])
            size += count
            take(view[:count])
    return Hashed(digest.hexdigest(), size)


def right_files(
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
        found = None if leads_out(layout, os.path.dirname(path)) else hash_file(path, check)
        return found.size if found and found.sha256 == file.sha256 else None

    items = list(wanted)
    sizes = in_parallel(size_if_right, items, check)
    return {(c.name, f.path): size for (c, f), size in zip(items, sizes, strict=True) if size is not None}


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


def leads_out(layout: Layout, path: str) -> str:
    """Return the first directory on the way from the root to ``path``, itself included, that is a link; or nothing."""
    at = layout.root
    for name in path[len(at) + 1 :].split("/"):
        at = f"{at}/{name}"
        if os.path.islink(at):
            return at
    return ""


def refuse_links(layout: Layout, *paths: str) -> None:
    """Refuse to write or delete below a link.

    Raises:
        StorageError: A directory between the root and one of ``paths``, itself included, is a link.
    """
    for path in paths:
        if link := leads_out(layout, path):
            raise StorageError(
                f"cannot use {link}: it is a symbolic link, and weightcache follows none below the root",
                hint="remove the link and put a directory there, or let root= itself be the directory that it names",
                path=link,
            )


def make_root(layout: Layout) -> None:
    """Make the root and what is ours in it.

    Raises:
        StorageError: It cannot be made, or is not a directory.
    """
    try:
        os.makedirs(layout.root, exist_ok=True)
        refuse_links(layout, layout.partials, layout.receipts)
        for path in (layout.partials, layout.receipts):
            os.makedirs(path, exist_ok=True)
    except StorageError:
        raise
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
    refuse_links(layout, os.path.dirname(target))
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


def link_or_copy(source: str, target: str, sha256: str, check: Callable[[], None]) -> Hashed | None:
    """Put the bytes of a published ``source`` at ``target``; ``None`` if they are not ``sha256`` or cannot be read.

    A hard link where the file system has them (a Modal Volume of version 1 has none), else a copy. Nobody may write to
    ``source`` any more: a partial that is still to be renamed is none.

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
            found: Hashed | None = copy(source, target, check)
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


def write_receipt(layout: Layout, checkpoint: Checkpoint, sizes: Mapping[str, int], sources: Sequence[str]) -> None:
    """Record that a place was verified: written aside and renamed, so that nobody reads half of it.

    Args:
        layout: The root.
        checkpoint: What was verified.
        sizes: By path, how many bytes of each file went into its sha256. Never what the file has now: whoever changed
            it meanwhile would be believed.
        sources: The mirrors that delivered it, without credentials and query.

    Raises:
        StorageError: It cannot be written.
        VanishedError: A published file is gone, or has another size.
    """
    path = layout.receipt(checkpoint)
    fresh = f"{layout.partials}/{UNFINISHED_RECEIPT}.{Writer.new(layout.root)}"  # there it is swept if we die
    for file in checkpoint.files:
        try:
            found = os.lstat(layout.file(checkpoint, file))
        except OSError:
            raise VanishedError(layout.place(checkpoint)) from None
        if not stat.S_ISREG(found.st_mode) or found.st_size != sizes[file.path]:
            raise VanishedError(layout.file(checkpoint, file))
    files = {file.path: {"sha256": file.sha256, "size": sizes[file.path]} for file in checkpoint.files}
    refuse_links(layout, os.path.dirname(path), layout.partials)
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
