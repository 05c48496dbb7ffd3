"""What has files open on a Volume besides `ensure`, and must let go of them while the Volume commits or reloads."""

from __future__ import annotations

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


running: weakref.WeakSet[Pausable] = weakref.WeakSet()


@contextmanager
def all_paused() -> Iterator[None]:
    """Let everything in this process that reads in the background close its files for a while."""
    found = list(running)
    for each in found:
        each.pause()
    try:
        yield
    finally:
        for each in found:
            each.resume()
