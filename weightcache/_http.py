"""Mirrors over HTTP: one session with its redirects, proxies, netrc and TLS, and one response as a `Body`.

No reason ever quotes an exception of requests: those hold the URL with its query, and a signed query is a secret.
"""

from __future__ import annotations

import email.utils
import fcntl
import http.client
import io
import logging
import os
import re
import ssl
import termios
import time
from array import array
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssl_ import create_urllib3_context

from ._rules import local_path
from ._source import Body, ChangedError, LocalBody, RangeError, SourceError, TransientError, WrongBytesError
from .errors import redacted

if TYPE_CHECKING:
    from ._cancel import Cancel

_log = logging.getLogger("weightcache")

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


class _Adapter(HTTPAdapter):
    """Reads a CA bundle once; requests does it for every connection, and certifi's takes 16 ms of CPU."""

    def __init__(self, connections: int) -> None:
        self._contexts: dict[str, ssl.SSLContext] = {}
        super().__init__(pool_maxsize=connections)  # all of them are kept alive

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        if host["scheme"] == "https" and verify:
            pool["ssl_context"] = self._context(verify if isinstance(verify, str) else DEFAULT_CA_BUNDLE_PATH)
        return host, pool

    def _context(self, bundle: str) -> ssl.SSLContext:
        if bundle not in self._contexts:
            context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
            context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
            self._contexts[bundle] = context
        return self._contexts[bundle]

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        conn.ca_certs = conn.ca_cert_dir = None  # they are in the context


class Client:
    """Requests of one `ensure`: a session with its connections, proxies, netrc and TLS settings."""

    def __init__(self, cancel: Cancel, connections: int) -> None:
        self._cancel = cancel
        self._session = _Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(connections))
        self._targets: dict[
            str, str
        ] = {}  # where redirects led: a hub that signs URLs is asked once, not for each part
        self._known_settings: dict[tuple[str, str], dict[str, Any]] = {}
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
            SourceError: One of the five kinds.
        """
        if (path := local_path(url)) is not None:
            return LocalBody(path, start, size)
        headers = {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            if validator:
                headers["If-Range"] = validator
        bearer = self._bearer(url, auth)

        def answer(at: str) -> Body:
            response, self._targets[url] = self._follow(at, headers, bearer)
            try:
                return _HttpBody(response, "Range" in headers, start, size, validator, auth)
            except BaseException:
                self._targets.pop(url, None)
                response.close()
                raise

        if (known := self._targets.get(url)) is not None:
            try:
                return answer(known)
            except SourceError as error:
                if known == url or type(error) is not SourceError:
                    raise
                _log.info("%s: %s where it led before; asking it again", redacted(url), error)  # signed URLs expire
        return answer(url)

    def _bearer(self, url: str, auth: str | None) -> _Bearer | None:
        if auth is None:
            return None
        token = os.environ.get(auth, "").strip()  # a newline from `echo` would be an invalid header
        if not token:
            raise SourceError(f"environment variable {auth} (its `auth`) is not set")
        if not (token.isascii() and token.isprintable()):
            raise SourceError(f"environment variable {auth} (its `auth`) holds characters no token has")
        return _Bearer(self._session, url, token)

    def _follow(self, url: str, headers: dict[str, str], auth: _Bearer | None) -> tuple[requests.Response, str]:
        # By hand: every hop is checked, and the token goes only where it belongs.
        for _ in range(MAX_REDIRECTS + 1):
            self._cancel.check()
            response = self._get(url, headers, auth)
            target = requests.Session.get_redirect_target(self._session, response)
            if target is None:
                return response, url
            _let_go(response)
            url = urljoin(url, target)
            if not url.startswith(("http://", "https://")):
                raise SourceError(f"redirects to {redacted(url)}; only http and https are followed")
        raise SourceError(f"more than {MAX_REDIRECTS} redirects, the last to {redacted(url)}")

    def _settings(self, url: str) -> dict[str, Any]:
        """Return the environment's proxies and CA bundle for a host; to look for them takes longer than to ask it."""
        host = urlsplit(url)[:2]
        if host not in self._known_settings:
            self._known_settings[host] = dict(self._session.merge_environment_settings(url, {}, True, None, None))
        return self._known_settings[host]

    def _get(self, url: str, headers: dict[str, str], auth: _Bearer | None) -> requests.Response:
        timeouts = (TIMEOUTS.connect, TIMEOUTS.stall)
        failure: SourceError
        try:
            request = self._session.prepare_request(requests.Request("GET", url, headers=headers, auth=auth))
            return self._session.send(request, allow_redirects=False, timeout=timeouts, **self._settings(url))
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
        ranged: bool,
        start: int,
        size: int | None,
        validator: str | None,
        auth: str | None,
    ) -> None:
        self._response = response
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
        self._window_ends, self._window_got = time.monotonic() + TIMEOUTS.window, 0

    def read_into(self, view: memoryview) -> int:
        failure: SourceError
        try:
            count = self._read(view)
        except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
            failure = TransientError(f"it sent nothing for {TIMEOUTS.stall:g} s")
        except urllib3.exceptions.DecodeError:
            failure = SourceError("its compressed body cannot be decoded")
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            failure = TransientError(_in_words(error, "the connection broke off"))
        else:
            self._window_got += count
            if (now := time.monotonic()) <= self._window_ends or self._window_got >= TIMEOUTS.window_bytes or not count:
                if now > self._window_ends:
                    self._window_ends, self._window_got = now + TIMEOUTS.window, 0
                return count
            failure = TransientError(f"only {self._window_got} bytes in {TIMEOUTS.window:g} s")
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
        count = got = stream.raw.readinto(view) or 0
        while got and count < len(view) and self.is_ready(1):
            try:
                got = stream.raw.readinto(view[count:]) or 0
            except OSError:
                break  # the next call fails again, and this one has something to return
            count += got
        return count

    def is_ready(self, count: int) -> bool:
        if self._plain is None or self._read_ahead or not self._plain.length:
            return True
        queued = array("i", [0])
        with suppress(OSError):
            fcntl.ioctl(self._plain.fp.fileno(), termios.FIONREAD, queued)
            return bool(queued[0] >= min(count, self._plain.length))
        return True

    def interrupt(self) -> None:
        with suppress(Exception):  # the read may have ended by itself
            self._response.raw.shutdown()

    def close(self) -> None:
        self._response.close()


def _status_error(response: requests.Response, auth: str | None) -> SourceError:
    status = response.status_code
    text = f"HTTP {status} {re.sub('[^ -~]', '', response.reason or '')[:60]}".rstrip()
    if status in _TRANSIENT_STATUS:
        after = _retry_after(response.headers.get("Retry-After"))
        return TransientError(text, after, crowded=status in (429, 503))
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


def _content_range(response: requests.Response, ranged: bool, start: int) -> tuple[int, int, int | None]:
    value = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(value)
    if not ranged or not match or int(match[1]) != start or int(match[2]) < start:
        raise RangeError(f"HTTP 206 with Content-Range {re.sub('[^ -~]', '', value)[:60]!r}, wanted from {start}")
    return start, int(match[2]) + 1, None if match[3] == "*" else int(match[3])


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
