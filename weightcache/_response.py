"""One HTTP response as a `Body`: what it says of itself, its bytes, and the ways in which it fails.

No reason ever quotes an exception of requests: those hold the URL with its query, and a signed query is a secret.
"""

from __future__ import annotations

import email.utils
import fcntl
import http.client
import io
import re
import ssl
import sys
import termios
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import urllib3

from ._source import Body, ChangedError, RangeError, SourceError, TransientError, WrongBytesError

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

RECORD_OVERHEAD = 22  # bytes that a record of TLS 1.3 has beside the data; TLS 1.2 has 7 more, which is near enough
MANY = 1 << 30
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)
_SYSTEM_MESSAGE = re.compile(r"\[Errno -?\d+\] ([A-Za-z ,]+)|(certificate verify failed: [^(]+)")


@dataclass
class Timeouts:
    """How long to wait for a mirror. Tests shorten them.

    Attributes:
        connect: Seconds until a connection stands.
        stall: Seconds without a byte after which a connection is replaced.
        window: Seconds over which a connection must bring ``window_bytes``, or it is replaced as well.
        window_bytes: See ``window``.
    """

    connect: float = 10.0
    stall: float = 30.0
    window: float = 60.0
    window_bytes: int = 60 * 1024


class HttpBody(Body):
    """See `Body`."""

    def __init__(
        self,
        response: requests.Response,
        timeouts: Timeouts,
        ranged: bool,
        start: int,
        size: int | None,
        validator: str | None,
    ) -> None:
        self._response, self._timeouts = response, timeouts
        status = response.status_code
        if status == 416 and ranged:
            raise RangeError("HTTP 416: it has no such range")
        if status not in (200, 206):
            raise _status_error(response)
        etag = response.headers.get("ETag", "")
        self.validator = etag if etag.startswith('"') else None
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        length = header_number(response.headers.get("Content-Length"))
        # A server that labels a .gz file as gzip-encoded sends the file itself: its length tells.
        self._decode = encoding not in ("", "identity") and (length is None or length != size)
        self.resumable = not self._decode
        if status == 206:
            if self._decode:
                raise RangeError(f"a part of a {encoding}-encoded body is of no use")
            if validator and self.validator and self.validator != validator:
                raise ChangedError("the file changed between two requests (ETag)")
            self.offset, self.end, self.total = _content_range(response, ranged, start)
        elif not self._decode:
            self.end = self.total = length
        if None not in (self.total, size) and self.total != size:
            raise WrongBytesError(f"{size} bytes", f"{self.total} bytes")
        original = getattr(response.raw, "_original_response", None)  # requests itself takes its cookies from there
        known = isinstance(original, http.client.HTTPResponse) and not original.chunked and original.length is not None
        self._plain: Any = original if known and not self._decode else None
        self._read_ahead = True
        self._window_ends, self._window_got = time.monotonic() + self._timeouts.window, 0

    def read_into(self, view: memoryview) -> int:
        failure: SourceError
        try:
            count = self._read(view)
        except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
            failure = TransientError(f"it sent nothing for {self._timeouts.stall:g} s")
        except urllib3.exceptions.DecodeError:
            failure = SourceError("its compressed body cannot be decoded")
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            failure = TransientError(in_words(error, "the connection broke off"))
        else:
            self._window_got += count
            if not count or (now := time.monotonic()) <= self._window_ends:
                return count
            if self._window_got >= self._timeouts.window_bytes:
                self._window_ends, self._window_got = now + self._timeouts.window, 0
                return count
            failure = TransientError(f"only {self._window_got} bytes in {self._timeouts.window:g} s")
        raise failure  # outside the handler: no context with the URL's query hangs on it

    def _read(self, view: memoryview) -> int:
        raw: Any = self._response.raw
        plain = self._plain
        if plain is None:
            data = raw.read(len(view), decode_content=True) if self._decode else raw.read1(len(view))
            view[: len(data)] = data
            return len(data)
        if not plain.length:
            return 0
        count = self._read_plain(plain.fp, view[: plain.length])
        if not count:
            raise TransientError("the connection broke off")
        plain.length -= count
        if not plain.length:
            plain.close()
            raw.release_conn()
        return count

    def _read_plain(self, stream: io.BufferedReader, view: memoryview) -> int:
        if self._read_ahead:
            # What came with the head. readinto1 would go on to wait for more, and lose this when the connection stalls.
            data = stream.read1(len(view))
            view[: len(data)] = data
            self._read_ahead = len(view) < io.DEFAULT_BUFFER_SIZE
            return len(data)
        # Straight to where the bytes are wanted. TLS hands out one record of 16 KiB a call: then all that is at hand.
        receive, at_hand = _receiver(stream), 0
        count = got = receive(view)
        while got and count < len(view):
            if at_hand <= 0 and (at_hand := self._queued()) <= 0:
                break
            try:
                got = receive(view[count:])
            except OSError:
                break  # the next call fails again, and this one has something to return
            count, at_hand = count + got, at_hand - got - RECORD_OVERHEAD
        return count

    def _queued(self) -> int:
        """Return how many bytes the kernel holds; for a socket that cannot say, any number."""
        with suppress(OSError):
            held = fcntl.ioctl(self._plain.fp.fileno(), termios.FIONREAD, bytes(4))
            return int.from_bytes(held, sys.byteorder)
        return MANY

    def is_ready(self, count: int) -> bool:
        if self._plain is None or self._read_ahead or not self._plain.length:
            return True
        return bool(self._queued() >= min(count, self._plain.length))

    def interrupt(self) -> None:
        with suppress(Exception):  # the read may have ended by itself
            self._response.raw.shutdown()

    def close(self) -> None:
        self._response.close()


def _receiver(stream: io.BufferedReader) -> Callable[[memoryview], int]:
    """Return what reads from the network into a buffer.

    Of TLS it is the socket's own method: three functions written in Python lie between that one and the stream's, and
    each record of 16 KiB is a call.
    """
    socket = getattr(stream.raw, "_sock", None)
    if isinstance(socket, ssl.SSLSocket):
        return lambda view: socket.read(len(view), view)  # type: ignore[return-value]  # with a buffer it is a count
    return lambda view: stream.raw.readinto(view) or 0


def status_in_words(response: requests.Response) -> str:
    """Return the status of an answer, with what of the server's reason is safe to show."""
    return f"HTTP {response.status_code} {re.sub('[^ -~]', '', response.reason or '')[:60]}".rstrip()


def _status_error(response: requests.Response) -> SourceError:
    status, text = response.status_code, status_in_words(response)
    if status in _TRANSIENT_STATUS:
        after = _retry_after(response.headers.get("Retry-After"))
        return TransientError(text, after, crowded=status in (429, 503))
    return SourceError(text)


def _retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for: a number, or a date (RFC 9110, 10.2.3)."""
    if not value:
        return 0.0
    if (seconds := header_number(value)) is not None:
        return float(seconds)
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _content_range(response: requests.Response, ranged: bool, start: int) -> tuple[int, int, int | None]:
    value = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(value)
    if not ranged or not match or int(match[1]) != start or int(match[2]) < start:
        raise RangeError(f"HTTP 206 with Content-Range {re.sub('[^ -~]', '', value)[:60]!r}, wanted from {start}")
    return start, int(match[2]) + 1, None if match[3] == "*" else int(match[3])


def header_number(value: str | None) -> int | None:
    text = (value or "").strip()
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def in_words(error: BaseException, otherwise: str) -> str:
    """Return what of an exception's text is safe to show."""
    match = _SYSTEM_MESSAGE.search(str(error))
    return (match[1] or match[2]).strip() if match else otherwise
