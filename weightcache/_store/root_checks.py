"""The root directory: whether it can be used, and whether a path below it leads through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from weightcache.errors import StorageError

if TYPE_CHECKING:
    from .layout import Layout


def check_root(layout: Layout) -> bool:
    """Check the root itself after a miss: in a root that cannot be read, every file seems to be missing.

    Returns:
        Whether it is there.

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
        return False
    except OSError as error:
        raise StorageError.of(error, "read", root) from None
    if not is_directory:
        raise StorageError(f"cannot use root {root}: it is a file", hint=hint, path=root)
    if not os.access(root, os.R_OK | os.X_OK):
        raise StorageError.of(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "read", root)
    return True


def find_symlink(layout: Layout, path: str) -> str:
    """Return the first directory on the way from the root to ``path``, itself included, that is a link; or nothing.

    Raises:
        StorageError: One of them cannot be examined, so it may be a link.
    """
    at = layout.root
    for name in path[len(at) + 1 :].split("/"):
        at = f"{at}/{name}"
        try:
            mode = os.lstat(at).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return ""  # and so is nothing below it
        except OSError as error:
            raise StorageError.of(error, "read", at) from None
        if stat.S_ISLNK(mode):
            return at
    return ""


def refuse_links(layout: Layout, *paths: str) -> None:
    """Refuse to write or delete below a link.

    Raises:
        StorageError: A directory between the root and one of ``paths``, itself included, is a link.
    """
    for path in paths:
        if link := find_symlink(layout, path):
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
