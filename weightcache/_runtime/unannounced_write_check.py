"""Which roots this process writes to now, so that a write that nobody announced is detected.

A reload of a Volume discards what no commit has taken. Every change of published data must therefore happen inside
``with VolumeSession.writing():``, which marks the root as changed first. The store refuses to write without it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing
if TYPE_CHECKING:
    from collections.abc import Iterator

_active: dict[object, str] = {}  # by block: its root. One step sets or removes an entry, so no lock is needed
os.register_at_fork(after_in_child=_active.clear)


@contextmanager
def announce_writing(root: str) -> Iterator[None]:
    """Allow writes to ``root`` inside the block."""
    block = object()
    _active[block] = root
    try:
        yield
    finally:
        _active.pop(block, None)


def is_writing(root: str) -> bool:
    """Whether any thread of this process is inside a block for ``root``."""
    return root in list(_active.values())


def require_writing(root: str) -> None:
    """Refuse a write outside such a block.

    Raises:
        RuntimeError: The write was not announced; a reload could discard it.
    """
    if not is_writing(root):
        raise RuntimeError(f"a write to {root} outside `with VolumeSession.writing():` could be lost in a reload")
