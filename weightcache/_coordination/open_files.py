"""Which processes of this container keep a Volume from being reloaded, for messages. Never raises."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from weightcache._message_text import printable_line
from weightcache.manifest.validate import MODAL_VOLUMES

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN = 3  # of the open files


def open_files(root: str) -> str:
    """Return the first files of the Volume that are open, each with its process; empty if none is seen.

    Args:
        root: The root. A file beside it blocks a reload too, so its whole Volume is searched.
    """
    real = os.path.realpath(root)
    top, shown = real, root
    if real.startswith(MODAL_VOLUMES):
        top = MODAL_VOLUMES + real[len(MODAL_VOLUMES) :].partition("/")[0]
        below = real[len(top) :]
        shown = root[: len(root) - len(below)] if root.endswith(below) else top
    found = list(dict.fromkeys(_users(top, shown)))
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{', '.join(found[:SHOWN])}{more}"


def _users(top: str, shown: str) -> Iterator[str]:
    with suppress(OSError):  # no /proc
        for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
            with suppress(OSError):  # it has ended, or belongs to another user
                for path, what in _paths(f"/proc/{pid}"):
                    if path == top or path.startswith(f"{top}/"):
                        # Others choose the names of files on the Volume, and of their programs.
                        yield printable_line(f"{shown}{path[len(top) :]} {what} process {pid} ({_name(pid)})")


def _paths(process: str) -> Iterator[tuple[str, str]]:
    """Yield the open files, the working directory and the mapped files of one process."""
    for number in os.listdir(f"{process}/fd"):
        with suppress(OSError):  # it was closed meanwhile
            yield os.readlink(f"{process}/fd/{number}"), "is open in"
    yield os.readlink(f"{process}/cwd"), "is the working directory of"
    with open(f"{process}/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if len(fields := line.rstrip("\n").split(maxsplit=5)) == 6:
                yield fields[5], "is mapped in"


def _name(pid: str) -> str:
    """Return the name of a program. Its arguments may hold secrets."""
    with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
        return stream.read(64).strip()
    return "?"
