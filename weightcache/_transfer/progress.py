"""Progress on stderr: bars on a terminal, one plain line every ten seconds elsewhere, or the caller's function."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from weightcache._runtime.tuning_constants import Settings
from weightcache._size_text import rate_text, size_text

if TYPE_CHECKING:
    from weightcache.manifest import Checkpoint, File

ProgressCallback: TypeAlias = Callable[[str, int, "int | None"], object]

_BARS_SHOWN = 6  # most bars of files at once
_LABEL = 30  # most characters of what a bar is called

_log = logging.getLogger("weightcache")


class Track:
    """One file that is fetched: how much of it is there."""

    __slots__ = ("bar", "done", "file", "name", "row", "total")

    def __init__(self, name: str, file: str, total: int | None) -> None:
        self.name, self.file, self.total = name, file, total
        self.done = 0
        self.bar: Any = None
        self.row = 0


class Progress:
    """Shows nothing; the base class of those that do.

    Args:
        files: Every file that is fetched, with its checkpoint.

    Attributes:
        shows_lines: Whether a user sees the lines of `say`. What matters is in the log as well.
    """

    shows_lines = False

    def __init__(self, files: list[tuple[Checkpoint, File]]) -> None:
        sizes = [file.size for _, file in files]
        self.count = len(files)
        self.total = None if None in sizes else sum(size or 0 for size in sizes)
        self.done = 0
        self._watch: Callable[[int], object] | None = None

    def watch(self, callback: Callable[[int], object]) -> None:
        """Call ``callback`` with every count that `advance` gets, too."""
        self._watch = callback

    def open(self, name: str, file: str, total: int | None) -> Track:
        return Track(name, file, total)

    def advance(self, track: Track, count: int) -> None:
        """Note ``count`` more bytes; a negative count takes back what must be fetched again."""
        track.done += count
        self.done += count
        if self._watch is not None:
            self._watch(count)

    def close(self, track: Track) -> None:
        """Note that a file ended, well or not."""

    def end(self) -> None:
        """Note that the download ended, well or not."""

    def say(self, text: str) -> None:
        """Show one line at once."""
        _log.info("%s", text)


class CallbackProgress(Progress):
    """Calls ``callback(name, bytes done, bytes in all or None)`` for every step of a checkpoint."""

    def __init__(self, files: list[tuple[Checkpoint, File]], callback: ProgressCallback) -> None:
        super().__init__(files)
        self._callback = callback
        self._counts = {checkpoint.name: 0 for checkpoint, _ in files}
        totals: dict[str, int | None] = dict.fromkeys(self._counts, 0)
        for checkpoint, file in files:
            so_far = totals[checkpoint.name]
            totals[checkpoint.name] = None if so_far is None or file.size is None else so_far + file.size
        self._totals = totals

    def advance(self, track: Track, count: int) -> None:
        super().advance(track, count)
        self._counts[track.name] += count
        self._callback(track.name, self._counts[track.name], self._totals[track.name])


class LineProgress(Progress):
    """Prints a plain line every ten seconds and one at the end: for logs."""

    shows_lines = True

    def __init__(self, files: list[tuple[Checkpoint, File]], interval: float = Settings.line_interval) -> None:
        super().__init__(files)
        self._interval, self._began = interval, time.monotonic()
        self._next = self._began + interval
        self._transferred = 0  # bytes of this run only: those of the partial say nothing about the rate

    def advance(self, track: Track, count: int) -> None:
        super().advance(track, count)
        self._transferred += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval
            self.say(self._line(track.name, now))

    def _line(self, name: str, now: float) -> str:
        rate = self._transferred / max(now - self._began, 1e-6)
        text = f"{name}: {size_text(self.done)}, {rate_text(rate)}"
        if self.total:
            left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
            share = 100 * self.done // self.total
            text = f"{name}: {size_text(self.done)} of {size_text(self.total)} ({share} %), {rate_text(rate)}{left}"
        return text

    def end(self) -> None:
        if self._transferred:
            seconds = time.monotonic() - self._began
            rate = self._transferred / max(seconds, 1e-6)
            self.say(f"{size_text(self.done)} of {self.count} file(s) in {seconds:.1f} s ({rate_text(rate)})")

    def say(self, text: str) -> None:
        print(f"weightcache: {text}", file=sys.stderr, flush=True)  # noqa: T201 (this is the progress line)


class BarProgress(Progress):
    """One tqdm bar a file and one for all: for terminals."""

    shows_lines = True

    def __init__(self, files: list[tuple[Checkpoint, File]]) -> None:
        super().__init__(files)
        from tqdm import tqdm

        class Bar(tqdm):  # type: ignore[type-arg]  # only its stub is generic
            monitor_interval = 0  # no thread of its own, which would outlive the bars

        self._tqdm = Bar
        # A terminal without a size (`docker run -t` in a script) says 0 columns, and tqdm would show nothing.
        self._wide = os.get_terminal_size(sys.stderr.fileno()).columns > 0
        self._all: Any = self._bar("all", self.total, 0) if self.count > 1 else None
        self._rows = set(range(1, 1 + _BARS_SHOWN) if self.count > 1 else [0])  # rows of the terminal that are free

    def _bar(self, label: str, total: int | None, position: int) -> Any:
        return self._tqdm(
            desc=label,
            total=total,
            position=position,
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            leave=position == 0,  # of many files only the sum: bars that move up leave copies behind
            dynamic_ncols=self._wide,
            ncols=None if self._wide else 80,
            nrows=None if self._wide else 24,
            file=sys.stderr,
        )

    def open(self, name: str, file: str, total: int | None) -> Track:
        track = super().open(name, file, total)
        label = name if file.rpartition("/")[2].startswith(name) else f"{name}: {file}"
        if self._rows:  # two bars in one row would overwrite each other
            track.row = min(self._rows)
            self._rows.remove(track.row)
            track.bar = self._bar(_shortened(label), total, track.row)
        return track

    def advance(self, track: Track, count: int) -> None:
        super().advance(track, count)
        for bar in (track.bar, self._all):
            if bar is not None:
                bar.update(count)

    def close(self, track: Track) -> None:
        if track.bar is not None:
            track.bar.close()
            self._rows.add(track.row)

    def end(self) -> None:
        if self._all is not None:
            self._all.close()

    def say(self, text: str) -> None:
        self._tqdm.write(f"weightcache: {text}", file=sys.stderr)


def _shortened(label: str) -> str:
    """Return a label that leaves room for the bar; of a long one, the beginning and the end."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL // 2]}…{label[1 - _LABEL // 2 :]}"


def make_progress(
    choice: bool | ProgressCallback | None,
    files: list[tuple[Checkpoint, File]],
    *,
    line_interval: float = Settings.line_interval,
) -> Progress:
    """Return the progress for ``choice``, the ``progress`` argument of `ensure`."""
    if choice is False:
        return Progress(files)
    if choice is not None and choice is not True:
        return CallbackProgress(files, choice)
    return BarProgress(files) if sys.stderr is not None and sys.stderr.isatty() else LineProgress(files, line_interval)
