"""Reading what no digest is known of yet: one stream, hashed as it comes, so that it can be pinned.

It is not the engine of `ensure`. That one asks for parts on many connections and lets the digest judge what they make;
here there is nothing to judge by, so the bytes of two answers are joined only where a strong ETag says that they are of
one file.
"""

from __future__ import annotations

import hashlib
import os
import random
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from weightcache._runtime import settings
from weightcache._runtime.cancel import Cancel
from weightcache._store.file_kind import HEAD
from weightcache._transfer.client import Client
from weightcache._transfer.stream import RangeError, SourceError, TransientError, WrongBytesError
from weightcache.errors import Attempt, DownloadError, IntegrityError, StorageError, redacted
from weightcache.manifest.urls import hub_page, resolved_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, BinaryIO

    from weightcache._transfer.stream import Body

CHUNK = 1 << 20  # bytes


class Opening(NamedTuple):
    """The beginning of a mirror's answer.

    Attributes:
        size: Length of the whole file in bytes, or ``None`` if the mirror does not say.
        head: The first `HEAD` bytes; all of a shorter file.
        content_type: The Content-Type header; empty if there is none.
        suggested_name: What the mirror calls the file; empty if it does not say.
    """

    size: int | None
    head: bytes
    content_type: str
    suggested_name: str


class Measured(NamedTuple):
    """What a mirror delivered.

    Attributes:
        sha256: Digest of its bytes.
        size: How many there were.
        git_id: What Git calls a file of these bytes; empty if the mirror did not announce their number, and so
            perhaps broke off before the end.
        opening: How it begins, and what was said of it.
    """

    sha256: str
    size: int
    git_id: str
    opening: Opening


class Reader:
    """Asks mirrors for files of which no digest is known.

    Args:
        urls: Mirrors of one checkpoint, in order of preference; ``hf://`` ones name a commit.
        auth: Name of the environment variable that holds its token, or ``None``.
        name: Name of the checkpoint, for messages.
    """

    def __init__(self, urls: list[str], auth: str | None, name: str) -> None:
        self._urls, self._auth, self._name = urls, auth, name
        self._cancel = Cancel()
        self._settings = replace(settings.DEFAULT, connections=1)
        self._client = Client(self._cancel, self._settings)

    def close(self) -> None:
        self._client.close()

    def measure(
        self, inner: str, size: int | None, keep: str | None, advance: Callable[[int], None]
    ) -> tuple[Measured, str]:
        """Read a file to its end; return what it is, and the mirror that gave it, as it was declared.

        Args:
            inner: Path of the file below each URL, or empty if the URLs name it themselves.
            size: Its declared length in bytes, if any; a mirror that has another one is left.
            keep: Where its bytes are written, or ``None``.
            advance: Called with the bytes that came; negative if they must come again.

        Raises:
            DownloadError: No mirror gave it; an `IntegrityError` if one gave a file of another length.
            StorageError: It cannot be written.
        """
        attempts = []
        hint, wrong = "", None
        for url in self._urls:
            try:
                with _written(keep) as stream:
                    return self._read(url, inner, size, stream, advance), url
            except SourceError as error:
                attempts.append(Attempt(redacted(resolved_url(url, inner)), str(error), 1))
                hint = hint or error.hint
                if isinstance(error, WrongBytesError):
                    wrong = wrong or (error, attempts[-1].url)
        raise self.failed(inner, attempts, hint, wrong)

    def failed(
        self, inner: str, attempts: list[Attempt], hint: str, wrong: tuple[WrongBytesError, str] | None
    ) -> DownloadError:
        """Return the error of a file that no mirror gave."""
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
            hint = f"give it a URL; weights of your own `weightcache publish PATH {self._name}` brings, and prints"
        return DownloadError(message, hint=hint or "nothing was changed; look at the URL, or try again", **about)

    def opening(self, url: str, inner: str) -> Opening:
        """Ask one mirror how a file begins, and how long it is.

        Raises:
            SourceError: It does not give the file at all.
        """
        try:
            with closing(self._open(url, inner, 0, HEAD)) as body:
                return _opening(body)
        except RangeError:  # an empty file has no first byte
            with closing(self._open(url, inner, 0, None)) as body:
                return _opening(body)

    def small(self, url: str, inner: str, limit: int) -> bytes:
        """Return a file of at most ``limit`` bytes.

        Raises:
            SourceError: The mirror does not give it, or it is longer.
        """
        with closing(self._open(url, inner, 0, None)) as body:
            data = _read(body, limit + 1)
        if len(data) > limit:
            raise SourceError(f"it has more than {limit} bytes")
        return data

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
        )

    def _read(
        self, url: str, inner: str, size: int | None, stream: BinaryIO | None, advance: Callable[[int], None]
    ) -> Measured:
        limits = self._settings
        failures, furthest, so_far = 0, 0, _SoFar(size, stream, advance)
        while True:
            try:
                with closing(self._open(url, inner, so_far.size, None, size, so_far.validator)) as body:
                    return so_far.take(body)
            except RangeError:
                if not so_far.size:
                    raise  # a part, though all was asked for: it would answer the same for ever
                so_far.forget()
            except TransientError as error:
                failures = 1 if so_far.size > furthest else failures + 1
                furthest = max(furthest, so_far.size)
                if failures >= limits.tries or error.retry_after > limits.retry_after_max:
                    raise
                if so_far.validator is None:
                    so_far.forget()
                backoff = random.uniform(0, min(limits.backoff_max, limits.backoff * 2**failures))  # noqa: S311 (no secret)
                self._cancel.sleep(max(error.retry_after, backoff))


class _SoFar:
    """The bytes of one file as far as they came."""

    def __init__(self, wanted: int | None, stream: BinaryIO | None, advance: Callable[[int], None]) -> None:
        self._wanted, self._stream, self._advance = wanted, stream, advance
        self._buffer = bytearray(CHUNK)
        self.size = 0
        self.validator: str | None = None
        self.forget()

    def forget(self) -> None:
        """Begin again."""
        self._advance(-self.size)
        self.size, self.validator, self._head = 0, None, b""
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(usedforsecurity=False)
        if self._stream is not None:
            self._stream.seek(0)
            self._stream.truncate()

    def take(self, body: Body) -> Measured:
        """Read a body to its end.

        Raises:
            TransientError: It broke off.
            WrongBytesError: It is not as long as it is declared.
            StorageError: The disk is full.
        """
        if body.offset != self.size:
            self.forget()  # it changed, or is given whole only
        self.validator = body.validator
        if not self.size:
            self._git.update(f"blob {body.total}\0".encode())  # how Git names a file: by a digest over its length, too
        view = memoryview(self._buffer)
        while count := body.read_into(view):
            self._head += bytes(view[: min(count, max(0, HEAD - self.size))])
            self._sha256.update(view[:count])
            self._git.update(view[:count])
            self._keep(view[:count])
            self.size += count
            self._advance(count)
            if self._wanted is not None and self.size > self._wanted:  # a body without a length may never end
                raise WrongBytesError(f"{self._wanted} bytes", f"{self.size} bytes or more")
        if body.total is not None and self.size != body.total:
            raise TransientError(f"the connection broke off after {self.size} of {body.total} bytes")
        if self._wanted not in (None, self.size):
            raise WrongBytesError(f"{self._wanted} bytes", f"{self.size} bytes")
        git_id = "" if body.total is None else self._git.hexdigest()
        opening = Opening(self.size, self._head, body.content_type, body.suggested_name)
        return Measured(self._sha256.hexdigest(), self.size, git_id, opening)

    def _keep(self, data: memoryview) -> None:
        if self._stream is not None:
            try:
                while data:  # unbuffered, a write takes what there is room for, and only the next one fails
                    data = data[self._stream.write(data) :]
            except OSError as error:
                raise StorageError.of(error, "write to", self._stream.name) from None


def _read(body: Body, limit: int) -> bytes:
    data, buffer = b"", memoryview(bytearray(min(limit, CHUNK)))
    while len(data) < limit and (count := body.read_into(buffer[: limit - len(data)])):
        data += buffer[:count]
    return data


def _opening(body: Body) -> Opening:
    return Opening(body.total, _read(body, HEAD), body.content_type, body.suggested_name)


@contextmanager
def _written(path: str | None) -> Iterator[BinaryIO | None]:
    if path is None:
        yield None
        return
    try:
        stream = open(path, "w+b", buffering=0)  # noqa: SIM115 (closed below; only the opening is translated here)
    except OSError as error:
        raise StorageError.of(error, "write to", path) from None
    with stream:
        yield stream
        try:
            os.fsync(stream.fileno())
        except OSError as error:
            raise StorageError.of(error, "write to", path) from None
