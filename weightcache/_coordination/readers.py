"""What has files open on a Volume besides `ensure`, and must let go of them while the Volume commits or reloads."""

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
    """Note a reader, before it opens anything. While others are paused, it is paused too."""
    with _changing:
        _running.add(reader)
        for stopped in _pauses.values():
            stopped.append(reader)
            reader.pause()


def unregister(reader: Pausable) -> None:
    """Note that a reader is done for good."""
    with _changing:
        _running.discard(reader)


@contextmanager
def pause_all() -> Iterator[None]:
    """Let everything in this process that reads in the background close its files for a while."""
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
