"""A response with a file or a part of it: its headers, its bytes, and its errors.

No message quotes an exception of requests: those contain the URL with its query, and a signed query is a secret.
"""

from __future__ import annotations

import fcntl
import http.client
import io
import re
import ssl
import sys
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import urllib3

from weightcache._store.content_sniffing import HEAD

from .content_disposition import suggested_name
from .mirror_stream import Body, ChangedError, RangeError, SourceError, TransientError, WrongBytesError
from .read_deadline import stream_of
from .response_head import READ_HEAD, header_number, in_words, read_head, unexpected_content

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

    from weightcache._runtime.tuning_constants import Settings

RECORD_OVERHEAD = 22  # bytes of a TLS 1.3 record besides the data; TLS 1.2 has 7 more, which is close enough
MANY = 1 << 30
# 201: the request made the file. 203: a proxy may have changed it. The digest decides.
FULL_RESPONSE = frozenset({200, 201, 203})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_ETAG = re.compile('"[!#-~]*"')
# Other values (aws-chunked, binary, none, utf-8) are set by mistake and do not change the bytes.
_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd"})


class HttpBody(Body):
    """See `Body`.

    Args:
        response: The response, with status 206 or one of `FULL_RESPONSE`.
        settings: How long to wait for its bytes.
        declared: The declared URL, with its variables filled in.
        ranged: Whether a part was requested.
        start: Offset of the first byte that was requested.
        size: The declared length of the file, if any.
        validator: Strong ETag that the response must have, if any.
    """

    def __init__(
        self,
        response: requests.Response,
        settings: Settings,
        declared: str,
        ranged: bool,
        start: int,
        size: int | None,
        validator: str | None,
    ) -> None:
        self._response, self._settings, self._declared = response, settings, declared
        self.content_type = response.headers.get("Content-Type", "")
        etag = response.headers.get("ETag", "")
        self.validator = etag if _ETAG.fullmatch(etag) else None
        length = header_number(response.headers.get("Content-Length"))
        self._plain: Any = None
        self._read_ahead = True
        if response.status_code == 206:
            self.offset, self.end, self.total = _content_range(response, ranged, start)
        else:
            self.end = self.total = length
        encoding = _encoding(response)
        # A server that labels a .gz file as gzip-encoded sends the file itself, which its length shows.
        self._decode = bool(encoding) and (self.total is None or self.total != size)
        self.resumable = not self._decode
        if self._decode and response.status_code == 206:
            raise RangeError(f"a part of a {encoding}-encoded body cannot be decoded")
        if validator and self.validator and self.validator != validator and response.status_code == 206:
            raise ChangedError("the file changed between two requests (ETag)")
        if self._decode:
            self.end = self.total = None
            response.raw.headers["Content-Encoding"] = encoding
        if None not in (self.total, size) and self.total != size:
            raise self._another_size(size)
        original = getattr(response.raw, "_original_response", None)
        known = isinstance(original, http.client.HTTPResponse) and not original.chunked and original.length is not None
        if (stream := stream_of(response)) and known and not self._decode:
            self._plain = original
            stream.unlimit(self._settings.stall_timeout)
        self._window_ends, self._window_got = time.monotonic() + self._settings.slow_window, 0

    @property
    def suggested_name(self) -> str:
        return suggested_name(self._response.headers.get("Content-Disposition", ""), self._response.url or "")

    def _another_size(self, size: int | None) -> WrongBytesError:
        head = b""
        if not self.offset and self.total:
            head = read_head(self._response, min(HEAD, self.total), min(READ_HEAD, self._settings.stall_timeout))
        name = unquote(urlsplit(self._declared).path)
        looks_like = self.unexpected_content(head, name) if head or not self.total else ""
        return WrongBytesError(f"{size} bytes", f"{self.total} bytes", looks_like)

    def unexpected_content(self, head: bytes, name: str) -> str:
        return unexpected_content(head, self._response, self._declared, name)

    def read_into(self, view: memoryview) -> int:
        failure: SourceError
        try:
            count = self._read(view)
        except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
            failure = TransientError(f"it sent nothing for {self._settings.stall_timeout:g} s")
        except urllib3.exceptions.DecodeError:
            failure = SourceError("its compressed body cannot be decoded")
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError, AttributeError) as error:
            # AttributeError: of a response that another thread interrupts.
            failure = TransientError(in_words(error, "the connection broke off"))
        else:
            self._window_got += count
            if not count or (now := time.monotonic()) <= self._window_ends:
                return count
            if self._window_got >= self._settings.slow_window_bytes:
                self._window_ends, self._window_got = now + self._settings.slow_window, 0
                return count
            failure = TransientError(f"only {self._window_got} bytes in {self._settings.slow_window:g} s")
        raise failure  # outside the handler, so that its context has no URL with a query

    def _read(self, view: memoryview) -> int:
        raw: Any = self._response.raw
        plain = self._plain
        if plain is None:
            # Chunk sizes and trailers are read as well, and may never end: a byte of the file must arrive in time.
            if stream := stream_of(self._response):
                stream.limit(self._settings.stall_timeout)
            data = raw.read1(len(view), decode_content=self._decode)
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
            # What arrived with the head. readinto1 would wait for more, and lose this when the connection stalls.
            data = stream.read1(len(view))
            view[: len(data)] = data
            self._read_ahead = len(view) < io.DEFAULT_BUFFER_SIZE
            return len(data)
        # Read into the caller's buffer. TLS returns one record of 16 KiB a call: then read on what has arrived.
        receive, at_hand = _receiver(stream.raw.socket_stream), 0  # type: ignore[attr-defined]
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
        with suppress(Exception):  # the read may have ended already
            self._response.raw.shutdown()

    def close(self) -> None:
        self._response.close()


def _encoding(response: requests.Response) -> str:
    """Return the codings of a Content-Encoding that change the bytes; empty if there are none."""
    named = (each.strip().lower() for each in response.headers.get("Content-Encoding", "").split(","))
    return ", ".join(each for each in named if each in _CODINGS)


def _receiver(stream: Any) -> Callable[[memoryview], int]:
    """Return a function that reads from a socket's stream into a buffer.

    For TLS it is the method of the socket: between that one and the method of the stream are three functions in Python,
    and each record of 16 KiB is a call.
    """
    sock = getattr(stream, "_sock", None)
    if isinstance(sock, ssl.SSLSocket):
        return lambda view: sock.read(len(view), view)  # type: ignore[return-value]  # with a buffer it is a count
    return lambda view: stream.readinto(view) or 0


def _content_range(response: requests.Response, ranged: bool, start: int) -> tuple[int, int, int | None]:
    value = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(value)
    if not ranged or not match or int(match[1]) != start or int(match[2]) < start:
        raise RangeError(f"HTTP 206 with Content-Range {re.sub('[^ -~]', '', value)[:60]!r}, wanted from {start}")
    return start, int(match[2]) + 1, None if match[3] == "*" else int(match[3])
