"""Cancel a miss from another thread (`aensure`), also in the middle of a read."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class CancelledByCallerError(Exception):
    """The caller cancelled. Never leaves the library."""


class Cancel:
    """Set once by the caller, checked by the work."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._interrupts: list[Callable[[], object]] = []

    def set(self) -> None:
        """End the work: it raises at its next check, and a read in progress is interrupted."""
        self._event.set()
        for interrupt in list(self._interrupts):
            with suppress(Exception):  # the read may already have ended
                interrupt()

    def check(self) -> None:
        """Raise `CancelledByCallerError` if it is set."""
        if self._event.is_set():
            raise CancelledByCallerError

    def sleep(self, seconds: float) -> None:
        """Sleep, and raise `CancelledByCallerError` as soon as it is set."""
        self._event.wait(seconds)
        self.check()

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Call ``interrupt`` if it is set inside the block."""
        self._interrupts.append(interrupt)
        try:
            self.check()
            yield
        finally:
            self._interrupts.remove(interrupt)
