"""`timeline`: where the seconds of a start go, from this call until the app is ready."""

from __future__ import annotations

from time import monotonic

from . import _spans
from ._runtime.import_spans import ImportSpans
from ._runtime.process_start import process_age

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing
if TYPE_CHECKING:
    from typing import Any

    from ._spans import Recorder, Span

__all__ = ["Timeline", "timeline"]

_last: list[Timeline] = []  # at most one


def timeline() -> Timeline:
    """Measure this start from here on: call it once, at the top of a module, before the heavy imports.

    The library records every import and its own phases: ``import``, ``inspect`` (the root, and all else in `ensure`
    that has no other name), ``reload``, ``commit``, ``wait`` (for another process or container), ``download``,
    ``copy``, ``verify`` (files without a receipt), ``prefetch``, ``build`` (`skip_init`) and ``load``
    (`load_state_dict`, `assign_into`). `Timeline.phase` records others, and `Timeline.ready` ends it.

    Returns:
        The timeline of this process. Until it is ended, every call returns the same one; then the next call begins
        another one.
    """
    for running in _last:
        if not running.is_over:
            return running
    _last[:] = [Timeline()]
    return _last[0]


class Timeline:
    """Where the seconds of a start go. Made by `timeline`; ``str()`` of it is one line."""

    __module__ = "weightcache"

    def __init__(self) -> None:
        self._process_age = process_age()
        self._recorder = _spans.start()
        self._imports = ImportSpans(self._recorder)
        self._imports.install()

    @property
    def is_over(self) -> bool:
        """Whether `ready` was called. In a forked child it is true: the start is the parent's."""
        return self._recorder.ended is not None

    def phase(self, name: str, size: int = 0) -> Span:
        """Record a phase of your own: ``with timeline.phase("to device"):``.

        Seconds of a phase inside another one count for the inner one only.

        Args:
            name: What the time is for. Phases of one name are added up.
            size: Bytes that are read or copied in it; ``.add(size)`` of what ``with`` returns adds more.

        Raises:
            ValueError: ``name`` is empty or no text, is of more than one line, or ``size`` is below 0.
        """
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(f"name must be the name of a phase on one line, as in 'to device', not {name!r}")
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"size must be a number of bytes, 0 or more, not {size!r}")
        return self._recorder.begin(name, size)

    def ready(self) -> Timeline:
        """End the start, and print one line to stderr. Further calls do nothing, so each request may make one."""
        if _spans.stop(self._recorder):
            self._imports.remove()
            import sys
            from contextlib import suppress

            if sys.stderr is not None:
                with suppress(OSError, ValueError):  # closed, or nobody reads it: that must not fail a start
                    print(f"weightcache: {self}", file=sys.stderr, flush=True)  # noqa: T201 (this is the line)
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return what was measured: until `ready`, or until now.

        ``ready`` is the wall time in seconds. ``phases`` has for each phase ``seconds``, its share of that time (no
        moment counts twice), ``parallel_seconds``, during which it ran while another phase had that share, and, where
        they are known, ``bytes`` and ``bytes_per_second``. ``other`` is the time in no phase: all ``seconds`` and
        ``other`` add up to ``ready``. ``before`` is the time from the start of the process to `timeline`, ``None`` if
        it is not known. After a restore from a memory snapshot, all that is about the time after it, and
        ``before_snapshot`` has the same for the time before.
        """
        recorder = self._recorder
        recorder.check_restored()
        result: dict[str, Any] = {"before": None if recorder.before else self._process_age, **_measured(recorder)}
        if recorder.before:
            result["before_snapshot"] = {"before": self._process_age, **_measured(recorder.before)}
        return result

    def json(self) -> str:
        """Return `as_dict` as JSON, on one line."""
        import json

        return json.dumps(self.as_dict())

    def __str__(self) -> str:
        from ._size_text import rate_text, size_text

        measured = self.as_dict()
        own, parallel = [], []
        for name, phase in measured["phases"].items():
            size = phase.get("bytes")
            amount = f" ({size_text(size)}, {rate_text(phase['bytes_per_second'])})" if size else ""
            if phase["seconds"]:
                own.append(f"{name} {_seconds(phase['seconds'])}{amount}")
            if phase["parallel_seconds"]:
                parallel.append(f"{name} {_seconds(phase['parallel_seconds'])}{'' if phase['seconds'] else amount}")
        text = f"ready after {_seconds(measured['ready'])}" if self.is_over else f"{_seconds(measured['ready'])} so far"
        text += ": " + ", ".join([*own, f"other {_seconds(measured['other'])}"])
        if parallel:
            text += f"; in parallel: {', '.join(parallel)}"
        if measured["before"] is not None:
            text += f"; before: {_seconds(measured['before'])}"
        if "before_snapshot" in measured:
            text += f"; before the snapshot: {_seconds(measured['before_snapshot']['ready'])}"
        return text

    def __repr__(self) -> str:
        return f"<Timeline: {self}>"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def _measured(recorder: Recorder) -> dict[str, Any]:
    """Return the wall time, the phases and the rest of one recorder."""
    end = recorder.ended or monotonic()
    spans = list(recorder.spans)
    phases: dict[str, dict[str, Any]] = {}
    for span in sorted(spans, key=lambda span: span.began):
        phase = phases.setdefault(span.name, {"seconds": 0.0, "parallel_seconds": 0.0})
        if span.size:
            phase["bytes"] = phase.get("bytes", 0) + span.size
    _divide(recorder, spans, end, phases)
    for name, phase in list(phases.items()):
        busy = phase["seconds"] + phase["parallel_seconds"]
        if not busy:
            del phases[name]
        elif "bytes" in phase:
            phase["bytes_per_second"] = phase["bytes"] / busy
    ready = end - recorder.began
    other = max(0.0, ready - sum(phase["seconds"] for phase in phases.values()))
    return {"ready": ready, "phases": phases, "other": other}


def _divide(recorder: Recorder, spans: list[Span], end: float, phases: dict[str, dict[str, Any]]) -> None:
    """Give each moment to one phase: the innermost of the thread that called `timeline`, or else of another thread."""
    changes = []
    for number, span in enumerate(spans):
        began, ended = max(span.began, recorder.began), min(span.ended or end, end)
        if not span.thread and span.size:
            phases[span.name]["parallel_seconds"] += max(0.0, ended - began)
        elif span.thread and ended > began:
            changes += [(began, 1, number), (ended, 0, number)]
    running: dict[int, list[int]] = {}  # by thread, in the order in which the threads began
    last = recorder.began
    for moment, begins, number in sorted(changes):
        if running and moment > last:
            _count(phases, [spans[max(running[t])].name for t in _by_rank(running, recorder.thread)], moment - last)
        last = moment
        thread = spans[number].thread
        if begins:
            running.setdefault(thread, []).append(number)
        else:
            running[thread].remove(number)
            if not running[thread]:
                del running[thread]


def _by_rank(running: dict[int, list[int]], first: int) -> list[int]:
    return sorted(running, key=lambda thread: thread != first)


def _count(phases: dict[str, dict[str, Any]], names: list[str], seconds: float) -> None:
    phases[names[0]]["seconds"] += seconds
    for name in {*names} - {names[0]}:
        phases[name]["parallel_seconds"] += seconds
