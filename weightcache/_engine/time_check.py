"""Warn of a download that Modal stops half-way: before it starts, and again when its rate has been measured.

The same for the wait for a download of another container.

See docs/decisions/0028-a-download-that-modal-stops.md for the rates.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from weightcache._size_text import rate_text, size_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from weightcache._runtime.container_timeout import TimeLimit

ASSUMED = 100e6  # bytes a second, until the rate is measured
MEASURED_AFTER = 5.0  # seconds from the first byte on


class TimeCheck:
    """Compares one download with what is left of a time limit. It warns at most twice, and never stops anything.

    Args:
        limit: What is left now.
        total: Bytes to download, as far as they are declared, without those that earlier downloads left.
        warn: Gets the text.
        left: Bytes that earlier downloads left. They arrive as the first ones, and were never part of ``total``.
        by: Which container downloads; empty for this one.
        now: A clock in seconds.
    """

    def __init__(
        self,
        limit: TimeLimit,
        total: int,
        warn: Callable[[str], object],
        *,
        left: int = 0,
        by: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._rest, self._warn, self._now = limit, total, warn, now
        self._left, self._by = left, f" by {by}" if by else ""
        self._start = now()
        self._first: float | None = None
        self._received = 0
        self._is_measured = False
        self._compare(ASSUMED, "assumed")

    def advance(self, count: int) -> None:
        """Note ``count`` bytes that came; a negative count takes back what must be fetched again."""
        now = self._now()
        known = max(0, min(count, self._left))
        self._left -= known
        self._rest -= count - known
        if self._first is None:
            self._first = now  # blocks of earlier downloads come at once and say nothing about the rate
            return
        self._received += count
        if not self._is_measured and now - self._first >= MEASURED_AFTER:
            self._is_measured = True
            self._compare(max(self._received, 1) / (now - self._first), "measured")

    def _compare(self, rate: float, how: str) -> None:
        left = self._limit.seconds - (self._now() - self._start)
        needed = self._rest / rate
        if needed <= left:
            return
        wanted = 60 * math.ceil((self._limit.used + (self._now() - self._start) + 2 * needed) / 60)
        self._warn(
            f"{size_text(self._rest)} are still to be downloaded{self._by}, which takes {needed:.0f} s at "
            f"{rate_text(rate)} ({how}), and this container is stopped in {max(0.0, left):.0f} s: "
            f"raise {self._limit.argument} to {wanted} s"
        )


class WaitCheck:
    """A `TimeCheck` of what another container downloads, by what it reports.

    Args:
        start: Returns the check for a number of bytes and the container that downloads them; ``None`` without a limit.
    """

    def __init__(self, start: Callable[[int, str], TimeCheck | None]) -> None:
        self._start = start
        self._check: TimeCheck | None = None
        self._done: int | None = None

    def update(self, total: int, done: int, by: str) -> None:
        """Note that the container ``by`` has ``done`` of ``total`` bytes."""
        if self._done is None:
            self._done, self._check = done, self._start(max(0, total - done), by)
        if self._check:
            self._check.advance(done - self._done)
        self._done = done
