"""Downloading files whose digests are not known yet, in one stream that is hashed as it arrives.

This is not the downloader of `ensure`, which fetches parts on many connections and relies on the digest to find wrong
ones. Here no digest is known, so the bytes of two responses are joined only if both have the same strong ETag.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from weightcache._runtime import tuning_constants
from weightcache._runtime.cancel import Cancel
from weightcache._store.content_sniffing import HEAD
from weightcache._transfer.mirror_client import Client
from weightcache._transfer.mirror_stream import RangeError, SourceError, TransientError, WrongBytesError
from weightcache.errors import Attempt, DownloadError, IntegrityError, StorageError, redacted
from weightcache.manifest.urls import hub_page, resolved_url

from .bounds import UNBOUNDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, BinaryIO

    from weightcache._transfer.mirror_stream import Body

    from .bounds import Bounds

CHUNK = 1 << 20  # bytes


class Opening(NamedTuple):
    """The beginning of a mirror's response.

    Attributes:
        size: Length of the whole file in bytes, or ``None`` if the mirror does not announce it.
        head: The first `HEAD` bytes; the whole file if it is shorter.
        content_type: The Content-Type header; empty without one.
        suggested_name: The file name that the mirror sends; empty without one.
    """

    size: int | None
    head: bytes
    content_type: str
    suggested_name: str


class Measured(NamedTuple):
    """What a mirror delivered.

    Attributes:
        sha256: Digest of its bytes.
        size: Their number.
        git_id: Git's id of a file with these bytes; empty if the mirror did not announce the length, because the file
            may then be incomplete.
        opening: Its first bytes and its headers.
    """

    sha256: str
    size: int
    git_id: str
    opening: Opening


class Reader:
    """Reads files without a known digest from the mirrors of one checkpoint.

    Args:
        urls: The mirrors in order of preference; ``hf://`` URLs must name a commit.
        auth: Name of the environment variable that holds its token, or ``None``.
        name: Name of the checkpoint, for messages.
        bounds: Which hosts the mirrors may redirect to.
    """

    def __init__(self, urls: list[str], auth: str | None, name: str, bounds: Bounds = UNBOUNDED) -> None:
        self._urls, self._auth, self._name, self._bounds = urls, auth, name, bounds
        self._cancel, self._settings = Cancel(), replace(tuning_constants.DEFAULT, connections=1)
        self._client = Client(self._cancel, self._settings)

    def close(self) -> None:
        self._client.close()

    def measure(
        self,
        inner: str,
        size: int | None,
        target: str | None,
        advance: Callable[[int], None],
        limit: Callable[[int], None],
    ) -> tuple[Measured, str]:
        """Read a whole file; return what it is, and the URL of the mirror, as declared.

        Args:
            inner: Path of the file below each URL; empty if the URLs name the file.
            size: Its declared length in bytes, or ``None``; a mirror with another length is skipped.
            target: Path to write its bytes to, or ``None``.
            advance: Called with the number of bytes received; negative if they must be received again.
            limit: Called with the length of the file so far, and with the announced one; raises if it is too long.

        Raises:
            DownloadError: No mirror delivered it; an `IntegrityError` if one delivered a file of another length.
            StorageError: It cannot be written.
        """
        attempts = []
        hint, wrong = "", None
        for url in self._urls:
            try:
                with _opened_for_writing(target) as stream:
                    return self._read(url, inner, size, _PartialRead(size, stream, advance, limit)), url
            except SourceError as error:
                attempts.append(Attempt(redacted(resolved_url(url, inner)), str(error), 1))
                hint = hint or error.hint
                if isinstance(error, WrongBytesError):
                    wrong = wrong or (error, attempts[-1].url)
        raise self._not_delivered(inner, attempts, hint, wrong)

    def _not_delivered(
        self, inner: str, attempts: list[Attempt], hint: str, wrong: tuple[WrongBytesError, str] | None
    ) -> DownloadError:
        """Return the error of a file that no mirror delivered."""
        what = inner or "its file"
        lines = "".join(f"\n  {each.url}: {each.reason}" for each in attempts) or "\n  it declares no URL"
        message = f"checkpoint {self._name}: {what} cannot be pinned, no mirror delivered it{lines}"
        about: dict[str, Any] = {"checkpoint": self._name, "file": inner, "attempts": tuple(attempts)}
        if wrong:
            error, url = wrong
            about |= {"expected": error.expected, "actual": error.actual, "url": url}
            hint = "nothing was changed; correct the declared size, or leave the mirror out"
            return IntegrityError(message, hint=hint, **about)
        if not attempts:
            hint = f"give it a URL; for your own weights, run `weightcache publish PATH {self._name}`"
        return DownloadError(message, hint=hint or "nothing was changed; check the URL, or try again", **about)

    def opening(self, url: str, inner: str) -> Opening:
        """Return the beginning and the length of a file at one mirror.

        Raises:
            SourceError: The mirror does not have the file, or failed.
        """
        try:
            with closing(self._open(url, inner, 0, HEAD)) as body:
                return _opening(body)
        except RangeError:  # an empty file has no first byte
            with closing(self._open(url, inner, 0, None)) as body:
                return _opening(body)

    def read_small(self, url: str, inner: str, limit: int) -> bytes:
        """Return a file of at most ``limit`` bytes.

        Raises:
            SourceError: The mirror does not have it or failed, or it is longer.
        """

        def check(size: int) -> None:
            if size > limit:
                raise SourceError(f"it has more than {limit} bytes")

        stream = io.BytesIO()
        self._read(url, inner, None, _PartialRead(None, stream, lambda _: None, check))
        return stream.getvalue()

    def _open(
        self,
        url: str,
        inner: str,
        start: int,
        end: int | None,
        size: int | None = None,
        validator: str | None = None,
    ) -> Body:
        return self._client.open(
            resolved_url(url, inner),
            auth=self._auth,
            hub=hub_page(url),
            start=start,
            end=end,
            size=size,
            validator=validator,
            # The Hub's own files are on hosts that the Hub chooses.
            may_follow=None if url.startswith("hf:") else self._bounds.allows,
        )

    def _read(self, url: str, inner: str, size: int | None, received: _PartialRead) -> Measured:
        limits, failures, furthest = self._settings, 0, 0
        while True:
            try:
                with closing(self._open(url, inner, received.size, None, size, received.validator)) as body:
                    return received.read_from(body)
            except RangeError:
                if not received.size:
                    raise  # a part, though the whole file was requested: a retry would get the same response
                received.reset()
            except TransientError as error:
                failures = 1 if received.size > furthest else failures + 1
                furthest = max(furthest, received.size)
                if failures >= limits.tries or error.retry_after > limits.retry_after_max:
                    raise
                if received.validator is None:
                    received.reset()
                backoff = random.uniform(0, min(limits.backoff_max, limits.backoff * 2**failures))  # noqa: S311 (no secret)
                self._cancel.sleep(max(error.retry_after, backoff))


class _PartialRead:
    """The bytes of one file that have been received."""

    def __init__(
        self,
        wanted: int | None,
        stream: BinaryIO | None,
        advance: Callable[[int], None],
        limit: Callable[[int], None],
    ) -> None:
        self._wanted, self._stream, self._advance, self._limit = wanted, stream, advance, limit
        self._buffer = bytearray(CHUNK)
        self.size = 0
        self.validator: str | None = None
        self.reset()

    def reset(self) -> None:
        """Start again from the first byte."""
        self._advance(-self.size)
        self.size, self.validator, self._head = 0, None, b""
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(usedforsecurity=False)
        if self._stream is not None:
            self._stream.seek(0)
            self._stream.truncate()

    def read_from(self, body: Body) -> Measured:
        """Read the rest of the file from a response.

        Raises:
            TransientError: The connection broke off.
            WrongBytesError: The file does not have the declared length.
            StorageError: The disk is full.
        """
        if body.offset != self.size:
            self.reset()  # the file changed, or the mirror does not support ranges
        self.validator = body.validator
        if not self.size:
            # Git's id of a file is a digest of its length and its bytes.
            self._git.update(f"blob {body.total}\0".encode())
        self._limit(body.total or 0)
        view = memoryview(self._buffer)
        while count := body.read_into(view):
            self._head += bytes(view[: min(count, max(0, HEAD - self.size))])
            self._sha256.update(view[:count])
            self._git.update(view[:count])
            self._write(view[:count])
            self.size += count
            self._limit(self.size)
            self._advance(count)
            if self._wanted is not None and self.size > self._wanted:  # a response without a length may never end
                raise WrongBytesError(f"{self._wanted} bytes", f"{self.size} bytes or more")
        if body.total is not None and self.size != body.total:
            raise TransientError(f"the connection broke off after {self.size} of {body.total} bytes")
        if self._wanted not in (None, self.size):
            raise WrongBytesError(f"{self._wanted} bytes", f"{self.size} bytes")
        git_id = "" if body.total is None else self._git.hexdigest()
        opening = Opening(self.size, self._head, body.content_type, body.suggested_name)
        return Measured(self._sha256.hexdigest(), self.size, git_id, opening)

    def _write(self, data: memoryview) -> None:
        if self._stream is not None:
            try:
                while data:  # an unbuffered write may be short on a full disk; only the next one fails
                    data = data[self._stream.write(data) :]
            except OSError as error:
                raise StorageError.of(error, "write to", self._stream.name) from None


def _opening(body: Body) -> Opening:
    data, buffer = bytearray(), memoryview(bytearray(HEAD))
    while len(data) < HEAD and (count := body.read_into(buffer[: HEAD - len(data)])):
        data += buffer[:count]
    return Opening(body.total, bytes(data), body.content_type, body.suggested_name)


@contextmanager
def _opened_for_writing(path: str | None) -> Iterator[BinaryIO | None]:
    if path is None:
        yield None
        return
    try:
        stream = open(path, "w+b", buffering=0)  # noqa: SIM115 (closed below; only an error of opening it is caught here)
    except OSError as error:
        raise StorageError.of(error, "write to", path) from None
    with stream:
        yield stream
        try:
            os.fsync(stream.fileno())
        except OSError as error:
            raise StorageError.of(error, "write to", path) from None
