"""The mirrors of one file: which one is asked, what it is blamed for, and the error when none is left.

Bookkeeping alone: no thread, no clock, no request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from weightcache.errors import Attempt, DownloadError, IntegrityError, redacted
from weightcache.manifest.urls import hub_page, resolved_url

from .stream import ChangedError, RangeError, SourceError, TransientError, WrongBytesError

if TYPE_CHECKING:
    from collections.abc import Callable

    from weightcache._runtime.settings import Settings
    from weightcache.manifest import Checkpoint, File

    from .server import Server, Servers

_log = logging.getLogger("weightcache")

Recovery = Literal["", "rewind", "wipe"]  # for the bytes that are there


@dataclass(eq=False)
class Mirror:
    """What is known of one URL while one file is fetched from it."""

    url: str
    server: Server
    order: int = 0  # as declared
    hub: str = ""  # the page of the Hub's repository that it belongs to
    requests: int = 0
    failures: int = 0  # in a row, without progress
    furthest: int = 0  # the most bytes of the file that there were at one of its failures: more is progress
    failure_epoch: int = 0  # failures that counted, ever
    pausing: int = 0  # connections that wait to try again: until then nobody asks it
    rests_until: float = 0.0  # it is not asked before, if another one was asked meanwhile
    ranges: bool = True  # whether it gives parts
    shared: bool = True  # whether it gives them to several connections at once
    delivered: bool = False  # whether it answered with the file, or a part of it
    moved: bool = False  # whether it sent any bytes of the file
    failing: bool = False  # whether it failed more than once since it sent bytes
    refused: bool = False  # whether it refused the file since it answered
    exclusive: bool = False  # take nothing from elsewhere: it is to be judged by what it sends
    came: str = ""  # what the file begins as, if that is not as weights do

    @property
    def parallel(self) -> bool:
        return self.ranges and self.shared and not self.exclusive


class Failure(NamedTuple):
    """What was going on when a request failed.

    Attributes:
        error: What failed.
        now: When.
        arrived: Bytes of the file that are there.
        failure_epoch: The mirror's when the request began: a failure that was known meanwhile is no news.
        mixed: Whether the bytes that are there come from more than one response.
        others: Whether other connections are bringing bytes of this file from this mirror.
        beyond: Whether it was one request more than the server ever served at once.
        answered: Whether the mirror had begun to send.
        received: Whether it had sent any bytes.
    """

    error: SourceError
    now: float
    arrived: int
    failure_epoch: int = 0
    mixed: bool = False
    others: bool = False
    beyond: bool = False
    answered: bool = True
    received: bool = False

    @property
    def is_final(self) -> bool:
        """Whether it says that another try is of no use."""
        return not isinstance(self.error, TransientError)

    @property
    def after(self) -> float:
        """Seconds that the mirror asks to wait."""
        return self.error.after if isinstance(self.error, TransientError) else 0.0


class Decision(NamedTuple):
    """The consequences of a failure.

    Attributes:
        reset: What happens to the bytes.
        pause: For how many seconds the connection pauses.
        holds: What pauses with it: the mirror, or its whole server.
        outage: Whether the mirror is waited for because it delivered before.
    """

    reset: Recovery = ""
    pause: float = 0.0
    holds: Mirror | Server | None = None
    outage: bool = False


class Mirrors:
    """The mirrors of one file, in order of preference. One that gives nothing for a while may go to the end."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        file: File,
        settings: Settings,
        patience: float,
        jitter: Callable[..., float],
        servers: Servers,
    ) -> None:
        self._checkpoint, self._file = checkpoint, file
        self._settings, self._patience, self._jitter = settings, patience, jitter
        inner = file.path if checkpoint.is_directory else ""
        urls = [(resolved_url(url, inner), hub_page(url)) for url in checkpoint.urls]
        self._left = [Mirror(url, servers.of(url), order, page) for order, (url, page) in enumerate(urls)]
        self._given_up: list[tuple[Mirror, SourceError]] = []
        self._furthest, self._since = 0, 0.0  # the most bytes that there were at a failure, and when it was the first

    @property
    def current(self) -> Mirror | None:
        return self._left[0] if self._left else None

    def on_failure(self, mirror: Mirror, failure: Failure) -> Decision:
        """Draw the consequences of a failure."""
        error = failure.error
        if mirror is not self.current:
            return Decision()  # it was given up meanwhile
        if isinstance(error, WrongBytesError) and mirror.delivered and failure.answered and error.landed:
            return self._wipe(mirror, failure)
        if isinstance(error, RangeError) and mirror.ranges and (not failure.others or isinstance(error, ChangedError)):
            _log.info("%s: %s; fetching it whole", redacted(mirror.url), error)
            mirror.ranges = False
            return Decision("rewind")
        if failure.beyond:  # the server gets fewer connections from now on
            pause = min(self._delay(1, failure.after), self._settings.retry_after_max)
            return Decision(pause=pause, holds=mirror if failure.after and not failure.others else None)
        return self._retry(mirror, failure)

    def _wipe(self, mirror: Mirror, failure: Failure) -> Decision:
        if failure.mixed and not mirror.exclusive:
            # Bytes of an earlier run, another response or another mirror may be at fault: once more, alone.
            mirror.exclusive = True
        else:
            self._give_up(mirror, failure.error)
        return Decision("wipe")

    def _retry(self, mirror: Mirror, failure: Failure) -> Decision:
        is_news = self._count(mirror, failure)
        delay = self._delay(mirror.failures, failure.after)
        # One that serves other connections is not given up for what it does to this one.
        if failure.others:
            _log.info("%s: %s; trying again in %.1f s", redacted(mirror.url), failure.error, delay)
            return Decision(pause=min(delay, self._settings.retry_after_max))
        mirror.refused = failure.is_final
        if self._is_over(mirror, failure):
            if isinstance(failure.error, WrongBytesError) and mirror.delivered and failure.error.landed:
                return self._wipe(mirror, failure)
            waits = SourceError(f"{failure.error} (and asks to wait {failure.after:.0f} s)")
            self._give_up(mirror, waits if failure.after else failure.error)
            return Decision()
        if not is_news:
            return Decision()  # the wave that it belongs to is one failure, with one pause
        outage = not failure.is_final and mirror.failures > 1 and self._is_patient(mirror)
        if len(self._left) > 1 and (failure.is_final or mirror.failures >= self._settings.tries):
            return self._turn_to_the_next(mirror, failure, delay)
        _log.info("%s: %s; trying again in %.1f s", redacted(mirror.url), failure.error, delay)
        return Decision(pause=delay, holds=mirror if mirror.server.tasks else mirror.server, outage=outage)

    def _count(self, mirror: Mirror, failure: Failure) -> bool:
        """Count a failure; whether it is news."""
        if failure.arrived > self._furthest or not self._since:
            self._furthest, self._since = max(self._furthest, failure.arrived), failure.now
        progress = failure.arrived > mirror.furthest
        if not progress and failure.failure_epoch != mirror.failure_epoch:
            return False
        mirror.failure_epoch += 1
        mirror.failures = 1 if progress else mirror.failures + 1
        mirror.furthest = max(mirror.furthest, failure.arrived)
        mirror.failing = mirror.failures > 1
        return True

    def _delay(self, failures: int, after: float) -> float:
        return max(
            after, self._jitter(0, min(self._settings.backoff_max, self._settings.backoff * 2 ** min(failures, 32)))
        )

    def _is_patient(self, mirror: Mirror) -> bool:
        """Whether an outage of a mirror is waited out: it delivered, or its server did other files until then."""
        moved = mirror.server.moved
        return mirror.moved or (moved is not None and moved <= self._since)

    def _is_over(self, mirror: Mirror, failure: Failure) -> bool:
        """Whether a mirror is to be given up, that serves nobody else."""
        settings, silent, server = self._settings, failure.now - self._since, mirror.server
        too_often = mirror.failures >= settings.tries
        if not server.name:  # a file of this machine: it has no outage, and bears every connection
            return failure.is_final or too_often
        if failure.is_final:
            knows_it = mirror.delivered or server.limited
            if failure.answered or not failure.error.request_sent or not (knows_it or server.moved is not None):
                return True
            return too_often and (not knows_it or silent >= settings.refusal_timeout)
        if failure.after > settings.retry_after_max:
            return True
        # One that sends bytes again and again, and comes no further, has no outage.
        return too_often and (failure.received or not self._is_patient(mirror) or silent >= self._patience)

    def _turn_to_the_next(self, mirror: Mirror, failure: Failure, delay: float) -> Decision:
        """Ask the next mirror meanwhile. This one is asked again when that one fails."""
        name, path = self._checkpoint.name, self._file.path
        _log.warning("%s: %s gives no %s for now: %s", name, redacted(mirror.url), path, failure.error)
        mirror.rests_until = failure.now + delay
        self._left.append(self._left.pop(0))
        pause = self._left[0].rests_until - failure.now
        return Decision(pause=pause, holds=self._left[0]) if pause > 0 else Decision()

    def _give_up(self, mirror: Mirror, error: SourceError) -> None:
        self._given_up.append((mirror, error))
        self._left.remove(mirror)
        name, path = self._checkpoint.name, self._file.path
        _log.warning("%s: %s gave no %s: %s", name, redacted(mirror.url), path, error)

    def error(self) -> DownloadError:
        """Return what the user sees when no mirror is left. The first one that is declared decides its kind."""
        checkpoint, file = self._checkpoint, self._file
        failed = sorted(self._given_up, key=lambda each: each[0].order)
        attempts = tuple(Attempt(redacted(mirror.url), str(error), mirror.requests) for mirror, error in failed)
        lines = "".join(f"\n  {each.url}: {each.reason} ({each.tries} request(s))" for each in attempts)
        common = {"checkpoint": checkpoint.name, "file": file.path, "attempts": attempts}
        wrong = failed[0][1] if failed else None
        if isinstance(wrong, WrongBytesError):
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
        # Of the first one that knows what the user can do.
        hint = next((error.hint for _, error in failed if error.hint), "")
        return DownloadError(
            f"checkpoint {checkpoint.name}: no mirror delivered {file.path}{lines}",
            hint=hint
            or "what did arrive is kept, and the next call goes on there; add a mirror to `urls` if this one "
            "stays away",
            **common,
        )
