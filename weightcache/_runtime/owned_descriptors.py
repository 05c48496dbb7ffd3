"""The files that this library has open in a root: each is closed once, and also in a child that is forked meanwhile.

A number that was closed may be another file's by the next instruction, of this program's other threads. So a
descriptor forgets its number before it closes it, in one step that no signal handler can interrupt, and so does
opening. A forked child has a copy of every number. There a copy of a file on a Volume makes every commit and reload
of the container fail for as long as the child lives, so it closes them first of all.
"""

from __future__ import annotations

import os
import time
from _thread import get_ident
from _weakref import ref
from contextlib import suppress
from functools import wraps
from itertools import count

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    H = TypeVar("H", bound="OwnedResource")

FORK_TIMEOUT = 1.0  # seconds that a fork waits for files that other threads are opening or closing at the moment

_resources: set[ref[OwnedResource]] = set()
_numbers = count(1)


class OwnedResource:
    """What must be let go of, by the thread that made it, if Ctrl-C comes where it was about to do so."""

    __slots__ = ("__weakref__", "_maker", "_number")

    def __init__(self) -> None:
        self._maker, self._number = get_ident(), next(_numbers)
        _resources.add(ref(self, _resources.discard))

    def close_quietly(self) -> None:
        """Let go of it. May be called again."""
        raise NotImplementedError

    def was_made_since(self, number: int) -> bool:
        """Whether this thread made it after the one with that number."""
        return self._maker == get_ident() and self._number > number


class Descriptor(OwnedResource):
    """One open file, or none. A context manager that closes it, for files that are only read: no error comes out."""

    __slots__ = ("_numbers", "busy")

    def __init__(self) -> None:
        self._numbers: list[int] = []  # at most one
        self.busy = 0  # the thread that opens or closes it at the moment
        super().__init__()

    def open(self, path: str, flags: int, permissions: int = 0o666) -> None:
        """Open a file, not inherited by programs that are started.

        Raises:
            OSError: It cannot be opened.
        """
        self.busy = get_ident()
        try:
            # Inside the interpreter, from the system call to the list: Ctrl-C between two lines would lose the number.
            self._numbers.extend(map(os.open, (path,), (flags | os.O_CLOEXEC,), (permissions,)))
        finally:
            self.busy = 0

    @property
    def number(self) -> int:
        """What the operating system calls it; -1 if it is closed."""
        for number in self._numbers:
            return number
        return -1

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``.

        Raises:
            OSError: Some of it is not written.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.number, rest) :]

    def close(self) -> None:
        """Close it, if it is open.

        Raises:
            OSError: The file system reports now that it did not keep what was written. It is closed all the same.
        """
        self.busy = get_ident()
        try:
            # The number is forgotten first, and inside the interpreter, as in `open`.
            with suppress(IndexError, InterruptedError):  # not open; or closed, while a signal came
                list(map(os.close, map(self._numbers.pop, (0,))))
        finally:
            self.busy = 0

    def close_quietly(self) -> None:
        """Close it where nothing that was written has to be kept."""
        with suppress(OSError):
            self.close()

    def __enter__(self) -> Descriptor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_quietly()

    def __del__(self) -> None:
        with suppress(AttributeError):  # where Ctrl-C came before it had any
            self.close_quietly()


def opened(path: str, flags: int, permissions: int = 0o666) -> Descriptor:
    """Open a file.

    Raises:
        OSError: It cannot be opened.
    """
    descriptor = Descriptor()
    descriptor.open(path, flags, permissions)
    return descriptor


def close_on_interrupt(function: Callable[P, R]) -> Callable[P, R]:
    """Let ``function`` leave no file open and no lock held when Ctrl-C ends it.

    An interruption can come just before a file is closed. It is closed with the last reference to it, but an exception
    that is kept holds its traceback, which holds what was in every frame.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        begun = next(_numbers)
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if not isinstance(error, Exception):
                for each in _all(OwnedResource):
                    if each.was_made_since(begun):
                        each.close_quietly()
            raise

    return call


def _all(kind: type[H]) -> list[H]:
    return [each for known in _resources.copy() if isinstance(each := known(), kind)]


def _before_fork() -> None:
    """Wait for other threads to have opened or closed what they are at: a child could not know these numbers."""
    me, until = get_ident(), time.monotonic() + FORK_TIMEOUT
    while any(each.busy not in (0, me) for each in _all(Descriptor)):
        if time.monotonic() > until:  # a Volume that hangs must not hang the program
            return
        time.sleep(0.0005)


def _after_fork() -> None:
    for each in _all(Descriptor):
        each.busy = 0
        each.close_quietly()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
