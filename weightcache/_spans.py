"""Spans: what this library was doing, when, and on which thread. Without a `timeline` nothing is recorded.

A hit does not import this module. `timeline` imports it, and so does what runs only on a miss or beside PyTorch.
"""

from __future__ import annotations

import os
from _thread import get_ident
from time import monotonic

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

MAX_SPANS = 20_000  # a program that never calls `ready` keeps no more: a start has a hundred, and one for each tensor


class Span:
    """One stretch of time on one thread; a context manager that ends it.

    Attributes:
        name: The phase that it belongs to.
        thread: The thread that began it; 0 for work in the background, which no thread waits for.
        began: Seconds of `time.monotonic`.
        ended: The same; ``None`` while it runs.
        size: Bytes read, received or copied in it.
    """

    __slots__ = ("began", "ended", "name", "size", "thread")

    def __init__(self, name: str, thread: int, size: int = 0) -> None:
        self.name, self.thread, self.size = name, thread, size
        self.began = monotonic()
        self.ended: float | None = None

    def add(self, size: int) -> None:
        """Note that so many more bytes were processed."""
        self.size += size

    def progress(self, size: int, ended: float) -> None:
        """Note the bytes in all, and when the last of them arrived."""
        self.size, self.ended = size, ended

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.ended = monotonic()


class Recorder:
    """The spans of one start.

    Attributes:
        began: When it began, in seconds of `time.monotonic`.
        thread: The thread that began it.
        task: The Modal container, by ``MODAL_TASK_ID``: another one after a restore from a memory snapshot.
        spans: In the order in which they were begun.
        ended: When the start was over; ``None`` before.
        before: The recorder of the time before a memory snapshot, if this process was restored from one.
    """

    def __init__(self) -> None:
        self._restart()
        self.ended: float | None = None
        self.before: Recorder | None = None

    def _restart(self) -> None:
        self.began, self.thread, self.task = monotonic(), get_ident(), _task()
        self.spans: list[Span] = []

    def begin(self, name: str, size: int = 0, *, background: bool = False) -> Span:
        """Begin a span on this thread."""
        self.check_restored()
        span = Span(name, 0 if background else get_ident(), size)
        if len(self.spans) < MAX_SPANS and self.ended is None:
            self.spans.append(span)
        return span

    def innermost(self) -> Span | None:
        """Return the span that this thread began last and has not ended."""
        me = get_ident()
        return next((span for span in reversed(self.spans) if span.thread == me and span.ended is None), None)

    def check_restored(self) -> None:
        """Begin again if this container was restored from a memory snapshot: the clock may have jumped by days."""
        if self.task != _task() and self.ended is None:
            before = Recorder()
            before.began, before.thread, before.task, before.spans = self.began, self.thread, self.task, self.spans
            before.ended = max((span.ended for span in self.spans if span.ended), default=self.began)
            self._restart()
            self.before = before


def _task() -> str | None:
    return os.environ.get("MODAL_TASK_ID")


_active: list[Recorder] = []  # at most one
_nothing = Span("", 0)  # what is returned where nothing is recorded; nobody reads it


def start() -> Recorder:
    """Record from now on, in place of any other recorder."""
    _active[:] = [Recorder()]
    return _active[0]


def stop(recorder: Recorder) -> bool:
    """End a recorder; return whether it was recording."""
    try:
        _active.remove(recorder)  # one step: of two threads, one ends it
    except ValueError:
        return False
    recorder.check_restored()
    recorder.ended = monotonic()
    return True


def span(name: str, size: int = 0) -> Span:
    """Begin a span of a phase; use it in ``with``."""
    for recorder in _active:
        return recorder.begin(name, size)
    return _nothing


def background_span(name: str) -> Span:
    """Begin a span of work in the background, unless `load_state_dict` began that work and waits for it."""
    for recorder in _active:
        inner = recorder.innermost()
        return _nothing if inner and inner.name == "load" else recorder.begin(name, background=True)
    return _nothing


def add_span(name: str, seconds: float) -> None:
    """Record a span that was measured elsewhere and ends now."""
    if seconds > 0:
        with span(name) as added:
            added.began -= seconds


def add_bytes(size: int) -> None:
    """Add bytes to the innermost span of this thread."""
    for recorder in _active:
        if inner := recorder.innermost():
            inner.add(size)


def in_phase(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let every call of a function be a span of the phase ``name``."""
    from functools import wraps

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name):
                return function(*args, **kwargs)

        return call

    return decorate


def _after_fork() -> None:
    for recorder in _active:
        recorder.ended = monotonic()  # the start is the parent's
    _active.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
