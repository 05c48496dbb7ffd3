"""The fetch seam: files in, verified partials out.

The story above hands over `Job`s and learns of each file as it stands complete, verified and durable in its partial.
How the bytes come is this module's business alone: today one connection a file and one file after another, mirrors
in order, each byte hashed in memory on its way to the disk.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import zlib
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._http import Client
from ._partial import BLOCK
from ._rules import resolved_url
from ._source import RangeError, SourceError, TransientError, WrongBytesError
from .errors import Attempt, DownloadError, IntegrityError, redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ._cancel import Cancel
    from ._lock import Holder
    from ._partial import PartialFile
    from ._progress import Progress
    from .manifest import Checkpoint, File

_log = logging.getLogger("weightcache")


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


RETRIES = Retries()


@dataclass
class Job:
    """One file to fetch.

    Attributes:
        checkpoint: What it belongs to.
        file: What it must be.
        partial: Where its bytes go.
        received: Bytes received from mirrors, also in vain.
        source: The mirror that delivered it, without credentials and query.
    """

    checkpoint: Checkpoint
    file: File
    partial: PartialFile
    received: int = 0
    source: str = ""


def fetch(
    jobs: Sequence[Job],
    *,
    progress: Progress,
    holder: Holder,
    cancel: Cancel,
    on_verified: Callable[[Job], None],
) -> None:
    """Fetch every job's file into its partial; call ``on_verified`` as each one is complete, verified and durable.

    Raises:
        IntegrityError: The first mirror that failed a file delivered wrong bytes, and no other one helped.
        DownloadError: No mirror delivered a file, for any other reason.
        StorageError: The disk is full or failed.
        VanishedError: A partial was swept or taken by somebody else.
    """
    with closing(Client(cancel)) as client:
        for job in jobs:
            download = _Download(job, client, progress, holder, cancel)
            try:
                download.run()
            finally:
                download.end()
            on_verified(job)


class _Download:
    """One file on its way: the hash follows the write position, and both live through changes of connection."""

    def __init__(self, job: Job, client: Client, progress: Progress, holder: Holder, cancel: Cancel) -> None:
        self._job, self._client, self._progress = job, client, progress
        self._holder, self._cancel = holder, cancel
        self._partial = job.partial
        self._partial.open()
        self._size = job.file.size
        self._track = progress.open(job.checkpoint.name, job.file.path, job.file.size)
        self._furthest = 0
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        self._progress.advance(self._track, -self._track.done)
        self._position, self._sha256, self._crc32 = 0, hashlib.sha256(), 0
        self._mixed = False  # whether these bytes come from more than one response

    def end(self) -> None:
        self._progress.close(self._track)

    def run(self) -> None:
        """Try the mirrors in order until one completes the file."""
        checkpoint, file = self._job.checkpoint, self._job.file
        inner = file.path if checkpoint.is_directory else ""
        attempts: list[Attempt] = []
        wrong: WrongBytesError | None = None
        for declared in checkpoint.urls:
            mirror = _Mirror(resolved_url(declared, inner))
            try:
                self._complete_from(mirror)
            except SourceError as error:
                if not attempts and isinstance(error, WrongBytesError):
                    wrong = error
                attempts.append(Attempt(redacted(mirror.url), str(error), mirror.tries))
                _log.warning("%s: %s gave no %s: %s", checkpoint.name, redacted(mirror.url), file.path, error)
                continue
            self._job.source = redacted(mirror.url)
            self._partial.finish(self._position)
            return
        raise _download_error(checkpoint, file, tuple(attempts), wrong)

    def _complete_from(self, mirror: _Mirror) -> None:
        failures = 0
        while True:
            try:
                self._stream_from(mirror)
                self._judge()
                return
            except WrongBytesError:
                if not mirror.delivered:
                    raise  # on its header alone: what others brought is not at fault, and is kept
                blameless = self._mixed and not mirror.alone
                self._partial.wipe()
                self._begin_at_zero()
                if not blameless:
                    raise
                # Bytes of an earlier run, another response or another mirror may be at fault: once more, alone.
                mirror.alone = True
            except RangeError as error:
                if not mirror.ranges:
                    raise
                _log.info("%s: %s; fetching it whole", redacted(mirror.url), error)
                mirror.ranges = False
            except TransientError as error:
                progressed = self._position > self._furthest
                self._furthest = max(self._position, self._furthest)
                failures = 1 if progressed else failures + 1
                if failures >= RETRIES.tries or error.after > RETRIES.retry_after:
                    after = f" (and asks to wait {error.after:.0f} s)" if error.after else ""
                    raise SourceError(f"{error}{after}") from None
                backoff = random.uniform(0, min(RETRIES.cap, RETRIES.base * 2**failures))  # noqa: S311 (jitter)
                delay = max(error.after, backoff)
                _log.info("%s: %s; trying again in %.1f s", redacted(mirror.url), error, delay)
                self._cancel.sleep(delay)

    def _stream_from(self, mirror: _Mirror) -> None:
        """Bring the file to its end: what is there is taken, what is missing is requested, gap by gap."""
        if not mirror.ranges and self._position:
            self._begin_at_zero()
        while True:
            if mirror.ranges and not mirror.alone:
                self._take_what_is_there()
            if self._whole():
                return
            start, end = self._position, None
            if mirror.ranges and not mirror.alone and (next_block := self._partial.next_present(start // BLOCK)):
                end = next_block * BLOCK
            if end is not None and self._size is not None and end >= self._size:
                end = None
            mirror.tries += 1
            body = self._client.open(
                mirror.url,
                auth=self._job.checkpoint.auth,
                start=start,
                end=end,
                size=self._size,
                validator=mirror.validator,
            )
            with closing(body):
                mirror.validator = body.validator
                mirror.ranges = mirror.ranges and body.resumable
                if not body.partial:  # the whole file: the server has no ranges, or the file changed
                    end = None
                if body.offset != start:
                    self._begin_at_zero()
                elif start:
                    self._mixed = True
                mirror.delivered = True
                self._drain(body.chunks(), end, body.total)
            if end is None:
                return

    def _take_what_is_there(self) -> None:
        while self._position % BLOCK == 0 and (data := self._partial.take(self._position // BLOCK)) is not None:
            self._sha256.update(data)
            self._position += len(data)
            self._mixed = True
            self._progress.advance(self._track, len(data))
            self._holder.advance(len(data))
            self._cancel.check()

    def _whole(self) -> bool:
        if self._size is not None:
            return self._position >= self._size
        # Without a declared size the digest alone can say that nothing is missing.
        return self._mixed and self._sha256.hexdigest() == self._job.file.sha256

    def _drain(self, chunks: Iterator[bytes], end: int | None, total: int | None) -> None:
        limit = self._size if end is None else end
        wanted = limit if limit is not None else total
        try:
            for chunk in chunks:
                data = memoryview(chunk)
                self._job.received += len(data)
                if limit is not None and self._position + len(data) > limit:
                    if end is None:
                        raise WrongBytesError(f"{limit} bytes", f"more than {limit} bytes")
                    raise RangeError("sends more than the range that was asked for")
                self._put(data)
        except TransientError as error:
            raise TransientError(f"{error} at byte {self._position} of {wanted or '?'}", error.after) from None
        if wanted is not None and self._position < wanted:
            raise TransientError(f"the connection ended at byte {self._position} of {wanted}")

    def _put(self, data: memoryview) -> None:
        self._partial.write(self._position, data)
        self._sha256.update(data)
        self._progress.advance(self._track, len(data))
        self._holder.advance(len(data))
        while data:
            piece = data[: BLOCK - self._position % BLOCK]
            self._crc32 = zlib.crc32(piece, self._crc32)
            self._position += len(piece)
            if self._position % BLOCK == 0:
                self._partial.record(self._position // BLOCK - 1, BLOCK, self._crc32)
                self._crc32 = 0
            data = data[len(piece) :]

    def _judge(self) -> None:
        if self._size is not None and self._position != self._size:
            raise WrongBytesError(f"{self._size} bytes", f"{self._position} bytes")
        actual = self._sha256.hexdigest()
        if actual != self._job.file.sha256:
            raise WrongBytesError(f"sha256 {self._job.file.sha256}", f"sha256 {actual}")
        if rest := self._position % BLOCK:
            self._partial.record(self._position // BLOCK, rest, self._crc32)


@dataclass
class _Mirror:
    """What is known of one URL while one file is fetched from it."""

    url: str
    tries: int = 0
    ranges: bool = True
    delivered: bool = False  # whether it sent any bytes of the body
    alone: bool = False  # take nothing from elsewhere: it is to be judged by what it sends
    validator: str | None = None


def _download_error(
    checkpoint: Checkpoint, file: File, attempts: tuple[Attempt, ...], wrong: WrongBytesError | None
) -> DownloadError:
    lines = "".join(f"\n  {each.url}: {each.reason} ({each.tries} request(s))" for each in attempts)
    common = {"checkpoint": checkpoint.name, "file": file.path, "attempts": attempts}
    if wrong is not None:
        return IntegrityError(
            f"checkpoint {checkpoint.name}: {attempts[0].url} delivers another {file.path} than the declared one"
            f"\n  expected {wrong.expected}\n  actual   {wrong.actual}{lines if len(attempts) > 1 else ''}",
            hint="nothing was published; if the publisher replaced the file on purpose, pin the new sha256, "
            "else take it from another mirror",
            expected=wrong.expected.removeprefix("sha256 "),
            actual=wrong.actual.removeprefix("sha256 "),
            url=attempts[0].url,
            **common,
        )
    unset = checkpoint.auth if checkpoint.auth and not os.environ.get(checkpoint.auth) else None
    return DownloadError(
        f"checkpoint {checkpoint.name}: no mirror delivered {file.path}{lines}",
        hint=f"set {unset} in the environment (on Modal: a Secret)"
        if unset
        else "what did arrive is kept, and the next call goes on there; add a mirror to `urls` if this one stays away",
        **common,
    )
