"""Mirrors over HTTP: one session with its redirects, proxies, netrc and TLS, and one response as a `Body`.

No reason ever quotes an exception of requests: those hold the URL with its query, and a signed query is a secret.
"""

from __future__ import annotations

import email.utils
import os
import re
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import requests
import urllib3
from requests.auth import AuthBase

from ._rules import local_path
from ._source import CHUNK, Body, LocalBody, RangeError, SourceError, TransientError, WrongBytesError
from .errors import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._cancel import Cancel

MAX_REDIRECTS = 10
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


TIMEOUTS = Timeouts()


class _Bearer(AuthBase):
    """Sends a token to the host of the declared URL and to no other one.

    An `AuthBase` and not a header: requests would let netrc replace a header, also after a redirect.
    """

    def __init__(self, session: requests.Session, declared: str, token: str) -> None:
        self._session, self._declared, self._token = session, declared, token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.pop("Authorization", None)
        if not self._session.should_strip_auth(self._declared, request.url or ""):  # type: ignore[no-untyped-call]
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that nothing is a redirect: requests would read a redirect's whole body into memory, however long."""


class Client:
    """Requests of one `ensure`: a session with its connections, proxies, netrc and TLS settings."""

    def __init__(self, cancel: Cancel) -> None:
        self._cancel = cancel
        self._session = _Session()
        with suppress(PackageNotFoundError):  # the package may be mounted without its metadata
            self._session.headers["User-Agent"] = f"weightcache/{version('weightcache')}"
        # identity: sizes, ranges and digests speak of the file's bytes, not of a compressed form.
        self._session.headers["Accept-Encoding"] = "identity"

    def close(self) -> None:
        self._session.close()

    def open(
        self,
        url: str,
        *,
        auth: str | None,
        start: int,
        end: int | None,
        size: int | None,
        validator: str | None,
    ) -> Body:
        """Request ``url`` from ``start`` to ``end`` (exclusive; ``None`` is the end of the file).

        Args:
            url: Where.
            auth: Name of the environment variable with the bearer token.
            start: Offset of the first byte wanted. The body may begin at 0 instead: look at its ``offset``.
            end: Offset after the last byte wanted.
            size: Declared size of the file, if any.
            validator: Strong ETag of the bytes before ``start``: if it changed, the whole file is sent.

        Raises:
            SourceError: One of the four kinds.
        """
        if (path := local_path(url)) is not None:
            return LocalBody(path, start, size)
        headers = {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            if validator:
                headers["If-Range"] = validator
        response = self._follow(url, headers, self._bearer(url, auth))
        try:
            return _HttpBody(response, self._cancel, "Range" in headers, start, size, validator, auth)
        except BaseException:
            response.close()
            raise

    def _bearer(self, url: str, auth: str | None) -> _Bearer | None:
        if auth is None:
            return None
        token = os.environ.get(auth, "").strip()  # a newline from `echo` would be an invalid header
        if not token:
            raise SourceError(f"environment variable {auth} (its `auth`) is not set")
        if not (token.isascii() and token.isprintable()):
            raise SourceError(f"environment variable {auth} (its `auth`) holds characters no token has")
        return _Bearer(self._session, url, token)

    def _follow(self, url: str, headers: dict[str, str], auth: _Bearer | None) -> requests.Response:
        # By hand: every hop is checked, and the token goes only where it belongs.
        for _ in range(MAX_REDIRECTS + 1):
            self._cancel.check()
            response = self._get(url, headers, auth)
            target = requests.Session.get_redirect_target(self._session, response)
            if target is None:
                return response
            _let_go(response)
            url = urljoin(url, target)
            if not url.startswith(("http://", "https://")):
                raise SourceError(f"redirects to {redacted(url)}; only http and https are followed")
        raise SourceError(f"more than {MAX_REDIRECTS} redirects, the last to {redacted(url)}")

    def _get(self, url: str, headers: dict[str, str], auth: _Bearer | None) -> requests.Response:
        timeouts = (TIMEOUTS.connect, TIMEOUTS.stall)
        failure: SourceError
        try:
            return self._session.get(
                url, headers=headers, auth=auth, stream=True, allow_redirects=False, timeout=timeouts
            )
        except requests.exceptions.SSLError as error:
            failure = SourceError(f"TLS: {_in_words(error, 'the handshake failed')}")
        except requests.exceptions.ConnectTimeout:
            failure = TransientError(f"no connection within {TIMEOUTS.connect:g} s")
        except requests.exceptions.Timeout:
            failure = TransientError(f"no answer within {TIMEOUTS.stall:g} s")
        except requests.exceptions.ProxyError as error:
            failure = TransientError(f"proxy: {_in_words(error, 'it refused')}")
        except requests.exceptions.ConnectionError as error:
            failure = TransientError(_in_words(error, "the connection failed"))
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,
        ) as error:
            failure = SourceError(f"the request cannot be made ({type(error).__name__})")
        raise failure  # outside the handler: no context with the URL's query hangs on it


class _HttpBody(Body):
    def __init__(
        self,
        response: requests.Response,
        cancel: Cancel,
        ranged: bool,
        start: int,
        size: int | None,
        validator: str | None,
        auth: str | None,
    ) -> None:
        self._response, self._cancel = response, cancel
        status = response.status_code
        if status == 416 and ranged:
            raise RangeError("HTTP 416: it has no such range")
        if status not in (200, 206):
            raise _status_error(response, auth)
        etag = response.headers.get("ETag", "")
        self.validator = etag if etag.startswith('"') else None
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        length = _number(response.headers.get("Content-Length"))
        # A server that labels a .gz file as gzip-encoded sends the file itself: its length tells.
        self._decode = encoding not in ("", "identity") and (length is None or length != size)
        self.resumable = not self._decode
        self.partial = status == 206
        if self.partial:
            if self._decode:
                raise RangeError(f"a part of a {encoding}-encoded body is of no use")
            if validator and self.validator and self.validator != validator:
                raise RangeError("the file changed between two requests (ETag)")
            self.offset, self.total = _content_range(response, ranged, start)
        elif not self._decode:
            self.total = length
        if None not in (self.total, size) and self.total != size:
            raise WrongBytesError(f"{size} bytes", f"{self.total} bytes")

    def chunks(self) -> Iterator[bytes]:
        raw: Any = self._response.raw
        window_ends, window_got = time.monotonic() + TIMEOUTS.window, 0
        failure: SourceError | None = None
        try:
            with self._cancel.interrupting(raw.shutdown):
                while chunk := raw.read(CHUNK, decode_content=True) if self._decode else raw.read1(CHUNK):
                    window_got += len(chunk)
                    if time.monotonic() > window_ends:
                        if window_got < TIMEOUTS.window_bytes:
                            failure = TransientError(f"only {window_got} bytes in {TIMEOUTS.window:g} s")
                            break
                        window_ends, window_got = time.monotonic() + TIMEOUTS.window, 0
                    yield chunk
                    self._cancel.check()
        except urllib3.exceptions.ReadTimeoutError:
            failure = TransientError(f"it sent nothing for {TIMEOUTS.stall:g} s")
        except urllib3.exceptions.DecodeError:
            failure = SourceError("its compressed body cannot be decoded")
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            self._cancel.check()  # an interrupted read fails like a broken one
            failure = TransientError(_in_words(error, "the connection broke off"))
        if failure is not None:
            raise failure

    def close(self) -> None:
        self._response.close()


def _status_error(response: requests.Response, auth: str | None) -> SourceError:
    status = response.status_code
    text = f"HTTP {status} {re.sub('[^ -~]', '', response.reason or '')[:60]}".rstrip()
    if status in _TRANSIENT_STATUS:
        return TransientError(text, _retry_after(response.headers.get("Retry-After")))
    if status in (401, 403):
        text += f"; the token from {auth} was sent" if auth else "; no `auth` is declared for it"
    return SourceError(text)


def _retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for: a number, or a date (RFC 9110, 10.2.3)."""
    if not value:
        return 0.0
    if (seconds := _number(value)) is not None:
        return float(seconds)
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _content_range(response: requests.Response, ranged: bool, start: int) -> tuple[int, int | None]:
    value = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(value)
    if not ranged or not match or int(match[1]) != start or int(match[2]) < start:
        raise RangeError(f"HTTP 206 with Content-Range {re.sub('[^ -~]', '', value)[:60]!r}, wanted from {start}")
    return start, None if match[3] == "*" else int(match[3])


def _number(value: str | None) -> int | None:
    text = (value or "").strip()
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _let_go(response: requests.Response) -> None:
    """Read the short body of a redirect, so that the connection serves again; close on a long one."""
    with closing(response), suppress(Exception):
        if (_number(response.headers.get("Content-Length")) or 1 << 30) <= 1 << 16:
            response.raw.read(decode_content=False)


def _in_words(error: BaseException, otherwise: str) -> str:
    match = _SYSTEM_MESSAGE.search(str(error))
    return (match[1] or match[2]).strip() if match else otherwise
