"""Background readers of a Volume. They must close their files while the Volume commits or reloads."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Pausable(Protocol):
        """A reader in the background."""

        def pause(self) -> None:
            """Close every file; do not return before that."""

        def resume(self) -> None:
            """Go on."""

        def forked(self) -> None:
            """Let go of everything, in a child process, where no other thread runs."""


_changing = threading.Lock()  # for both of:
_running: weakref.WeakSet[Pausable] = weakref.WeakSet()
_pauses: dict[object, list[Pausable]] = {}  # what each pause under way has stopped


def register(reader: Pausable) -> None:
    """Register a reader before it opens a file. If the others are paused, it is paused at once."""
    with _changing:
        _running.add(reader)
        for stopped in _pauses.values():
            stopped.append(reader)
            reader.pause()


def unregister(reader: Pausable) -> None:
    """Remove a reader that has ended."""
    with _changing:
        _running.discard(reader)


@contextmanager
def pause_all() -> Iterator[None]:
    """Pause every background reader of this process; inside the block none of them has a file open."""
    pause = object()
    stopped: list[Pausable] = []
    with _changing:
        found = list(_running)
        _pauses[pause] = stopped
    try:
        for each in found:
            stopped.append(each)  # first: a pause that is interrupted counts already
            each.pause()
        yield
    finally:
        with _changing:
            _pauses.pop(pause, None)
        for each in stopped:
            each.resume()


def _after_fork() -> None:
    global _changing  # noqa: PLW0603 (another thread may have held it, and that thread is not here)
    _changing = threading.Lock()
    _pauses.clear()
    for each in list(_running):
        each.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
