"""Inspect what the root holds, with one receipt read for each checkpoint and one stat for each file.

This module is all that a hit runs besides the manifest, so it imports the standard library alone, opens no
connection, takes no lock and hashes nothing. A receipt is valid for one version of one checkpoint, never for a digest
alone: another file of the same size under another name would be a hit.
"""

from __future__ import annotations

import errno
import json
import os
import stat

from weightcache._frozen import Frozen

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import FileIO
    from typing import Any

    from weightcache.errors import StorageError
    from weightcache.manifest import Checkpoint, File
    from weightcache.reports import State

    from .layout import Layout

RECEIPT_FORMAT = 1
RECEIPT_BYTES = 32 << 20  # the most that is read of a receipt of unknown files: about 100,000 files
_RECEIPT_BASE, _RECEIPT_FILE = (
    1 << 20,
    8 << 10,
)  # the same where the files are known: for its sources, and for each file


class Inspection(Frozen):
    """The result of `inspect` for one checkpoint.

    Attributes:
        state: See `Status`.
        detail: Why, in words; empty for ``ready``.
        receipt: Whether the version has a valid receipt.
        wrong: The files that are missing or have another size than declared or receipted.
        sizes: By path, the bytes of each file as the receipt says, if one stands for this place and something is wrong.
    """

    __slots__ = ("detail", "receipt", "sizes", "state", "wrong")

    state: State
    detail: str
    receipt: bool
    wrong: tuple[File, ...]
    sizes: Mapping[str, int]

    def __init__(
        self,
        state: State,
        detail: str = "",
        receipt: bool = False,
        wrong: tuple[File, ...] = (),
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self._set(state=state, detail=detail, receipt=receipt, wrong=wrong, sizes=sizes or {})


READY = Inspection("ready", receipt=True)

# Errors that say that there is no regular file at a path. Any other one says nothing of what is there: a caller that
# took it for "nothing" would delete what it must keep, or report what is there as missing.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)

_reading: set[FileIO] = set()  # what is open at the moment


def read_bytes(path: str, limit: int) -> bytes | None:
    """Return the first ``limit`` bytes of a regular file, or ``None`` if there is no such file.

    A link is not followed: it could lead to ``/dev/zero``. The limit is for a planted file of many gigabytes.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open) as stream:
            _reading.add(stream)
            try:
                found = os.fstat(stream.fileno())
                rest = min(found.st_size, limit) if stat.S_ISREG(found.st_mode) else 0
                chunks = []
                while rest > 0 and (chunk := stream.read(rest)):
                    chunks.append(chunk)
                    rest -= len(chunk)
                return b"".join(chunks)
            finally:
                _reading.discard(stream)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise _unreadable(error, path) from None


def _unreadable(error: OSError, path: str) -> StorageError:
    from weightcache.errors import StorageError  # not at the top: a hit does without

    return StorageError.of(error, "read", path)


def _open(path: str, flags: int) -> int:
    numbers: list[int] = []
    try:
        # As in `_runtime.open_files`, which a hit need not import: Ctrl-C cannot come between the call and the list.
        numbers.extend(map(os.open, (path,), (flags | os.O_NONBLOCK | os.O_NOFOLLOW,)))
        return numbers[0]
    except BaseException:
        for number in numbers:
            os.close(number)
        raise


def _forked() -> None:
    while _reading:  # a copy that is open on a Volume makes commits fail for as long as the child lives
        _reading.pop().close()


def read_receipt(path: str, limit: int = RECEIPT_BYTES) -> dict[str, Any] | None:
    """Return what a receipt of at most ``limit`` bytes says if it is one of this format, else ``None``.

    Anybody who can write to the Volume can write a receipt: nothing in it is believed before it is checked.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        data = json.loads(read_bytes(path, limit) or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("format") != RECEIPT_FORMAT or not isinstance(data.get("files"), dict):
        return None
    return data


def list_names(path: str) -> list[str]:
    """Return the sorted names in a directory; none if it does not exist.

    Raises:
        StorageError: It cannot be listed.
    """
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(error, path) from None


def list_directories(path: str) -> list[str]:
    """Return the sorted names of the directories in a directory; links to directories are left out.

    Raises:
        StorageError: It cannot be listed.
    """
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(error, path) from None


def inspect(layout: Layout, checkpoint: Checkpoint) -> Inspection:
    """Return the state of ``checkpoint`` in the root: one receipt is read, and one stat is made for each file.

    What cannot be read is no error: a download may replace it. The detail says so.
    """
    expected, unread = None, ""
    try:
        expected = _receipted_sizes(layout, checkpoint)
    except OSError as error:  # `StorageError`
        unread = f"; {_first_line(error)}"
    wrong, present, sized = [], 0, False
    for file in checkpoint.files:
        size = file.size if expected is None else expected[file.path]
        try:
            found = os.lstat(layout.file(checkpoint, file))  # what is behind a link may change without a receipt
        except (FileNotFoundError, NotADirectoryError):
            wrong.append((file, f"{file.path} is missing"))
            continue
        except OSError as error:
            wrong.append((file, f"{file.path} cannot be examined: {error.strerror}"))
            present, sized = present + 1, True  # it may be there
            continue
        present += 1
        if not stat.S_ISREG(found.st_mode):
            wrong.append((file, f"{file.path} is not a regular file"))
            sized = True
        elif size is not None and found.st_size != size:
            wrong.append((file, f"{file.path} has {found.st_size} bytes instead of {size}"))
            sized = True
    if not wrong:
        return READY if expected is not None else Inspection("unverified", f"is there, without a receipt{unread}")
    detail = wrong[0][1] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "") + unread
    files = tuple(file for file, _ in wrong)
    if expected is not None:
        return Inspection("damaged", f"has a receipt, but {detail}", receipt=True, wrong=files, sizes=expected)
    if present > 0:
        return Inspection("damaged" if sized else "partial", detail, wrong=files)
    started = False
    try:
        started = any(name.startswith(checkpoint.digest) for name in list_names(layout.partials))
    except OSError as error:  # `StorageError`
        unread += f"; {_first_line(error)}"
    return Inspection(
        "partial" if started else "missing",
        f"{'a download was begun' if started else 'is not there'}{unread}",
        wrong=files,
    )


def _first_line(error: OSError) -> str:
    """Return an error's message without its hint, for a detail of one line."""
    return str(error).partition("\n")[0]


def _receipted_sizes(layout: Layout, checkpoint: Checkpoint) -> dict[str, int] | None:
    """Return path → size from the receipt, or ``None`` unless it stands for exactly this place and these files."""
    data = read_receipt(layout.receipt(checkpoint), _RECEIPT_BASE + _RECEIPT_FILE * len(checkpoint.files))
    if data is None or data.get("name") != checkpoint.name or data.get("digest") != checkpoint.digest:
        return None
    files = data["files"]
    if len(files) != len(checkpoint.files):
        return None
    sizes = {}
    for file in checkpoint.files:
        entry = files.get(file.path)
        if not isinstance(entry, dict) or entry.get("sha256") != file.sha256:
            return None
        size = entry.get("size")
        if type(size) is not int or (file.size is not None and file.size != size):
            return None
        sizes[file.path] = size
    return sizes


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
