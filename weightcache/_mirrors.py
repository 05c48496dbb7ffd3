"""The mirrors of one file: which one is asked, what it is blamed for, and the error when none is left.

Bookkeeping alone: no thread, no clock, no request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ._rules import hub_page, resolved_url
from ._source import ChangedError, RangeError, SourceError, TransientError, WrongBytesError
from .errors import Attempt, DownloadError, IntegrityError, redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from .manifest import Checkpoint, File

_log = logging.getLogger("weightcache")

Consequence = Literal["", "rewind", "wipe"]  # for the bytes that are there


@dataclass
class Retries:
    """When to try a mirror again. Tests shorten the waits.

    Attributes:
        tries: Failures in a row, without progress, after which a mirror is given up.
        base: Seconds; the n-th failure in a row waits a random time of at most ``base * 2**n`` (full jitter).
        cap: The longest backoff in seconds.
        retry_after: The longest Retry-After, in seconds, that is waited for; beyond it the mirror is given up.
    """

    tries: int = 5
    base: float = 0.5
    cap: float = 30.0
    retry_after: float = 120.0


@dataclass(eq=False)
class Mirror:
    """What is known of one URL while one file is fetched from it."""

    url: str
    hub: str = ""  # the page of the Hub's repository that it belongs to
    requests: int = 0
    failures: int = 0  # in a row, without progress
    setbacks: int = 0  # failures that counted, ever
    pausing: int = 0  # connections that wait to try again: until then nobody asks it
    ranges: bool = True  # whether it gives parts
    shared: bool = True  # whether it gives them to several connections at once
    delivered: bool = False  # whether it sent any bytes of the body
    alone: bool = False  # take nothing from elsewhere: it is to be judged by what it sends
    came: str = ""  # what the file begins as, if that is not as weights do

    @property
    def parallel(self) -> bool:
        return self.ranges and self.shared and not self.alone


class Mirrors:
    """The mirrors of one file, in order of preference."""

    def __init__(self, checkpoint: Checkpoint, file: File, retries: Retries, jitter: Callable[..., float]) -> None:
        self._checkpoint, self._file, self._retries, self._jitter = checkpoint, file, retries, jitter
        inner = file.path if checkpoint.is_directory else ""
        self._left = [Mirror(resolved_url(url, inner), hub_page(url)) for url in checkpoint.urls]
        self._attempts: list[Attempt] = []
        self._hint = ""  # of the first one that knows what the user can do
        self._wrong: WrongBytesError | None = None  # what the first one delivered, if that was another file
        self._furthest = 0  # the most bytes of the file that there ever were: more is progress

    @property
    def current(self) -> Mirror | None:
        return self._left[0] if self._left else None

    def blame(
        self, mirror: Mirror, error: SourceError, *, mixed: bool, others: bool, setbacks: int, arrived: int
    ) -> tuple[Consequence, float]:
        """Draw the consequences of a failure.

        Args:
            mirror: Whose failure.
            error: What failed.
            mixed: Whether the bytes that are there come from more than one response.
            others: Whether other connections are bringing bytes of this file from this mirror.
            setbacks: The mirror's when the request began: a failure that was known meanwhile is no news.
            arrived: Bytes of the file that are there.

        Returns:
            What happens to the bytes, and for how many seconds the connection pauses: with the whole mirror
            (``pausing``), unless others get bytes from it.
        """
        if mirror is not self.current:
            return "", 0.0  # it was given up meanwhile
        if isinstance(error, WrongBytesError) and mirror.delivered and error.landed:
            if mixed and not mirror.alone:
                # Bytes of an earlier run, another response or another mirror may be at fault: once more, alone.
                mirror.alone = True
            else:
                self._give_up(mirror, error)
            return "wipe", 0.0
        if isinstance(error, RangeError) and mirror.ranges and (not others or isinstance(error, ChangedError)):
            _log.info("%s: %s; fetching it whole", redacted(mirror.url), error)
            mirror.ranges = False
            return "rewind", 0.0
        # One that serves other connections is not given up for what it does to this one.
        if isinstance(error, TransientError) or (others and not isinstance(error, WrongBytesError)):
            return "", self._pause(mirror, error, others, setbacks, arrived)
        self._give_up(mirror, error)
        return "", 0.0

    def _pause(self, mirror: Mirror, error: SourceError, others: bool, setbacks: int, arrived: int) -> float:
        after = error.after if isinstance(error, TransientError) else 0.0
        is_news = setbacks == mirror.setbacks or arrived > self._furthest
        if is_news:
            mirror.setbacks += 1
            mirror.failures = 1 if arrived > self._furthest else mirror.failures + 1
            self._furthest = max(self._furthest, arrived)
        if not others and (mirror.failures >= self._retries.tries or after > self._retries.retry_after):
            self._give_up(mirror, SourceError(f"{error} (and asks to wait {after:.0f} s)" if after else str(error)))
            return 0.0
        if not others and not is_news:
            return 0.0  # the wave that it belongs to is one failure, with one pause
        backoff = self._jitter(0, min(self._retries.cap, self._retries.base * 2**mirror.failures))
        delay = max(after, backoff)
        mirror.pausing += not others
        _log.info("%s: %s; trying again in %.1f s", redacted(mirror.url), error, delay)
        return delay

    def _give_up(self, mirror: Mirror, error: SourceError) -> None:
        if not self._attempts and isinstance(error, WrongBytesError):
            self._wrong = error
        self._hint = self._hint or error.hint
        self._attempts.append(Attempt(redacted(mirror.url), str(error), mirror.requests))
        self._left.remove(mirror)
        name, path = self._checkpoint.name, self._file.path
        _log.warning("%s: %s gave no %s: %s", name, redacted(mirror.url), path, error)

    def error(self) -> DownloadError:
        """Return what the user sees when no mirror is left. The first one that failed decides its kind."""
        checkpoint, file, attempts, wrong = self._checkpoint, self._file, tuple(self._attempts), self._wrong
        lines = "".join(f"\n  {each.url}: {each.reason} ({each.tries} request(s))" for each in attempts)
        common = {"checkpoint": checkpoint.name, "file": file.path, "attempts": attempts}
        if wrong is not None:
            return IntegrityError(
                f"checkpoint {checkpoint.name}: {attempts[0].url} delivers another {file.path} than the declared one"
                f"\n  expected {wrong.expected}\n  actual   {wrong.actual}{f', {wrong.came}' if wrong.came else ''}"
                f"{lines if len(attempts) > 1 else ''}",
                hint=wrong.hint
                or "nothing was published; if the publisher replaced the file on purpose, pin the new sha256, "
                "else take it from another mirror",
                expected=wrong.expected.removeprefix("sha256 "),
                actual=wrong.actual.removeprefix("sha256 "),
                url=attempts[0].url,
                **common,
            )
        return DownloadError(
            f"checkpoint {checkpoint.name}: no mirror delivered {file.path}{lines}",
            hint=self._hint
            or "what did arrive is kept, and the next call goes on there; add a mirror to `urls` if this one "
            "stays away",
            **common,
        )
