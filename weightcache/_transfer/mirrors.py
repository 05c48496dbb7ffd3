"""The mirrors of one file: which one is used next, what follows from a failure, and the error when none is left.

Bookkeeping only: no thread, no clock, no request.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from weightcache._message_text import problem_lines
from weightcache.errors import Attempt, DownloadError, IntegrityError, redacted
from weightcache.manifest.urls import hub_page, resolved_url

from .failure import Decision
from .mirror_state import Mirror
from .mirror_stream import ChangedError, RangeError, SourceError, WrongBytesError

if TYPE_CHECKING:
    from collections.abc import Callable

    from weightcache._runtime.tuning_constants import Settings
    from weightcache.manifest import Checkpoint, File

    from .failure import Failure
    from .server_state import Servers

_log = logging.getLogger("weightcache")
_LOGGED = 10  # mirrors of one file, in the declared order; the error lists more of them


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
        self._tells_of_others = False
        self._most_present, self._since = 0, 0.0  # most bytes at a failure; when that failure was

    @property
    def current(self) -> Mirror | None:
        return self._left[0] if self._left else None

    def on_failure(self, mirror: Mirror, failure: Failure) -> Decision:
        """Decide what follows from a failure."""
        error = failure.error
        if mirror is not self.current:
            return Decision()  # it was given up since then
        if isinstance(error, WrongBytesError) and mirror.has_delivered and failure.answered and error.is_stored:
            return self._wipe(mirror, failure)
        is_alone = not failure.others or isinstance(error, ChangedError)
        if isinstance(error, RangeError) and mirror.has_ranges and is_alone:
            self._tell(logging.INFO, mirror, "%s: %s; fetching it whole", redacted(mirror.url), error)
            mirror.require_whole()
            return Decision("rewind")
        if failure.exceeds_proven:  # the server gets fewer connections from now on
            pause = min(self._delay(1, failure.retry_after), self._settings.retry_after_max)
            return Decision(pause=pause, paused_with=mirror if failure.retry_after and not failure.others else None)
        return self._retry(mirror, failure)

    def _wipe(self, mirror: Mirror, failure: Failure) -> Decision:
        if failure.mixed and not mirror.exclusive:
            # Bytes of an earlier run, another response or another mirror may be wrong: try again with this one only.
            mirror.isolate()
        else:
            self._give_up(mirror, failure.error)
        return Decision("wipe")

    def _retry(self, mirror: Mirror, failure: Failure) -> Decision:
        if failure.present > self._most_present or not self._since:
            self._most_present, self._since = max(self._most_present, failure.present), failure.now
        is_news = mirror.on_failure(failure.present, failure.failure_epoch)
        delay = self._delay(mirror.failures, failure.retry_after)
        # A mirror that serves other connections is not given up for what it does to this one.
        if failure.others:
            self._log_retry(mirror, failure, delay)
            return Decision(pause=min(delay, self._settings.retry_after_max))
        mirror.on_refusal(is_final=failure.is_final)
        if self._is_over(mirror, failure):
            if isinstance(failure.error, WrongBytesError) and mirror.has_delivered and failure.error.is_stored:
                return self._wipe(mirror, failure)
            waits = SourceError(f"{failure.error} (and asks to wait {failure.retry_after:.0f} s)")
            self._give_up(mirror, waits if failure.retry_after else failure.error)
            return Decision()
        if not is_news:
            return Decision()  # failures of one wave count once, and have one pause
        outage = not failure.is_final and mirror.failures > 1 and self._is_patient(mirror)
        if len(self._left) > 1 and (failure.is_final or mirror.failures >= self._settings.tries):
            return self._turn_to_next(mirror, failure, delay)
        self._log_retry(mirror, failure, delay)
        return Decision(pause=delay, paused_with=mirror if mirror.server.requests else mirror.server, outage=outage)

    def _delay(self, failures: int, retry_after: float) -> float:
        """Return the seconds of a backoff with full jitter, but at least ``retry_after``."""
        most = min(self._settings.backoff_max, self._settings.backoff * 2 ** min(failures, 32))
        return max(retry_after, self._jitter(0, most))

    def _is_patient(self, mirror: Mirror) -> bool:
        """Whether an outage of a mirror is waited out: it delivered, or its server sent other files until then."""
        last_byte = mirror.server.last_byte
        return mirror.has_sent_bytes or (last_byte is not None and last_byte <= self._since)

    def _is_over(self, mirror: Mirror, failure: Failure) -> bool:
        """Whether to give up a mirror that serves no other connection."""
        settings, silent, server = self._settings, failure.now - self._since, mirror.server
        too_often = mirror.failures >= settings.tries
        if not server.name:  # a file of this machine: it has no outage, and no limit of connections
            return failure.is_final or too_often
        if failure.is_final:
            knows_it = mirror.has_delivered or server.limited
            is_known = knows_it or server.last_byte is not None
            if failure.answered or not failure.error.request_sent or not is_known:
                return True
            return too_often and (not knows_it or silent >= settings.refusal_timeout)
        if failure.retry_after > settings.retry_after_max:
            return True
        # A mirror that sends bytes again and again, without progress, has no outage.
        return too_often and (failure.received or not self._is_patient(mirror) or silent >= self._patience)

    def _turn_to_next(self, mirror: Mirror, failure: Failure, delay: float) -> Decision:
        """Use the next mirror for a while, and this one again when that one fails."""
        name, path = self._checkpoint.name, self._file.path
        text = "%s: %s does not deliver %s for now: %s"
        self._tell(logging.WARNING, mirror, text, name, redacted(mirror.url), path, failure.error)
        mirror.rest(failure.now + delay)
        self._left.append(self._left.pop(0))
        pause = self._left[0].not_before - failure.now
        return Decision(pause=pause, paused_with=self._left[0]) if pause > 0 else Decision()

    def _give_up(self, mirror: Mirror, error: SourceError) -> None:
        self._given_up.append((mirror, error))
        self._left.remove(mirror)
        name, path = self._checkpoint.name, self._file.path
        self._tell(logging.WARNING, mirror, "%s: %s did not deliver %s: %s", name, redacted(mirror.url), path, error)

    def _log_retry(self, mirror: Mirror, failure: Failure, delay: float) -> None:
        url = redacted(mirror.url)
        self._tell(logging.INFO, mirror, "%s: %s; trying again in %.1f s", url, failure.error, delay)

    def _tell(self, level: int, mirror: Mirror, text: str, *values: object) -> None:
        """Log a line about one mirror. A manifest of a stranger may declare any number, and each file has them all."""
        if mirror.order < _LOGGED:
            _log.log(level, text, *values)
        elif not self._tells_of_others and level >= logging.WARNING:
            self._tells_of_others = True
            name, path, count = self._checkpoint.name, self._file.path, len(self._checkpoint.urls) - _LOGGED
            _log.warning("%s: %d more mirrors of %s are tried; of these nothing is logged", name, count, path)

    def error(self) -> DownloadError:
        """Return the error when no mirror is left. The mirror that is declared first decides its class."""
        checkpoint, file = self._checkpoint, self._file
        failed = sorted(self._given_up, key=lambda each: each[0].order)
        attempts = tuple(Attempt(redacted(mirror.url), str(error), mirror.requests) for mirror, error in failed)
        lines = problem_lines([f"{each.url}: {each.reason} ({each.tries} request(s))" for each in attempts])
        common = {"checkpoint": checkpoint.name, "file": file.path, "attempts": attempts}
        wrong = failed[0][1] if failed else None
        if isinstance(wrong, WrongBytesError):
            return IntegrityError(
                f"checkpoint {checkpoint.name}: {attempts[0].url} delivers another {file.path} than the declared one"
                f"\n  expected {wrong.expected}"
                f"\n  actual   {wrong.actual}{f', {wrong.looks_like}' if wrong.looks_like else ''}"
                f"{lines if len(attempts) > 1 else ''}",
                hint=wrong.hint
                or "nothing was published; if the publisher replaced the file on purpose, pin the new sha256, "
                "else take it from another mirror",
                expected=wrong.expected.removeprefix("sha256 "),
                actual=wrong.actual.removeprefix("sha256 "),
                url=attempts[0].url,
                **common,
            )
        # The hint of the first mirror that has one.
        hint = next((error.hint for _, error in failed if error.hint), "")
        return DownloadError(
            f"checkpoint {checkpoint.name}: no mirror delivered {file.path}{lines}",
            hint=hint
            or "what did arrive is kept, and the next call goes on there; add a mirror to `urls` if this one "
            "stays away",
            **common,
        )
