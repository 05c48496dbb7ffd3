"""Mirrors over HTTP: requests a file, or a part of it, and follows redirects."""

from __future__ import annotations

import logging
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, NamedTuple

from weightcache._environment import set_variable
from weightcache.errors import redacted
from weightcache.manifest.urls import expanded, local_path

from .auth import declared_token, hub_token
from .error_response import RequestInfo, error_from
from .file_response import FULL_RESPONSE, HttpBody
from .http_session import Bearer, Cookies, NoAuth, Session
from .mirror_stream import Body, LocalBody, SourceError, TransientError
from .response_head import READ_HEAD, header_number

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

    from weightcache._runtime.cancel import Cancel
    from weightcache._runtime.tuning_constants import Settings

_log = logging.getLogger("weightcache")

MAX_REDIRECTS = 10


class _Wanted(NamedTuple):
    """What is requested: a file or a part of it, and with which token."""

    url: str  # as it is declared
    address: str  # with its variables filled in
    headers: dict[str, str]
    bearer: Bearer | None
    auth: str | None
    hub: str
    start: int
    size: int | None
    validator: str | None
    may_follow: Callable[[str], bool] | None


class Client:
    """Requests of one `ensure`: a session with its connections, proxies, netrc and TLS settings."""

    def __init__(self, cancel: Cancel, settings: Settings) -> None:
        self._cancel, self._settings = cancel, settings
        self._session = Session(settings.connections)
        # Targets of redirects: a hub that signs URLs gets one request, and not one for each part.
        self._targets: dict[str, str] = {}
        self._served: set[str] = set()

    def close(self) -> None:
        self._session.close()

    def open(
        self,
        url: str,
        *,
        auth: str | None,
        hub: str,
        start: int,
        end: int | None,
        size: int | None,
        validator: str | None = None,
        may_follow: Callable[[str], bool] | None = None,
    ) -> Body:
        """Request ``url`` from ``start`` to ``end`` (exclusive; ``None`` is the end of the file).

        Args:
            url: The URL. ``${VARIABLE}`` in it stands for the value of an environment variable.
            auth: Name of the environment variable with the bearer token.
            hub: The page of the Hub's repository if the file is of one: then the user's token for the Hub is sent
                where no ``auth`` is declared.
            start: Offset of the first byte wanted. The body may start at 0 instead: see its ``offset``.
            end: Offset after the last byte wanted.
            size: Declared size of the file, if any.
            validator: Strong ETag of the bytes before ``start``, where no digest is known that can verify them. If
                it changed, the mirror sends the whole file.
            may_follow: Whether the mirror may redirect to a URL; ``None`` for any, where a digest verifies the bytes.

        Raises:
            SourceError: One of the five kinds.
        """
        if (path := local_path(url)) is not None:
            return LocalBody(path, start, size)
        address = _address(url)
        bearer = self._bearer(address, auth, hub)
        part = _part(start, end, validator)
        wanted = _Wanted(url, address, part, bearer, auth, hub, start, size, validator, may_follow)
        if (known := self._targets.get(url)) is not None:
            try:
                return self._get(wanted, known)
            except SourceError as error:
                if known == address or type(error) is not SourceError:
                    raise
                # Signed URLs expire.
                _log.info("%s: %s at the target of its redirect; asking for a new one", redacted(url), error)
        return self._get(wanted, address)

    def _get(self, wanted: _Wanted, target: str) -> Body:
        """Return the response of ``target``, or of where it redirects to, as a body.

        Raises:
            SourceError: One of the five kinds.
        """
        url, bearer, ranged = wanted.url, wanted.bearer, "Range" in wanted.headers
        response, self._targets[url] = self._follow(target, wanted)
        try:
            if response.status_code not in FULL_RESPONSE and response.status_code != 206:
                origin, served = bearer.origin if bearer else "", url in self._served
                sent = RequestInfo(wanted.address, ranged, origin, wanted.auth, wanted.hub, served)
                seconds = min(READ_HEAD, self._settings.stall_timeout)
                raise error_from(response, sent, self._session.proxy(response.url or ""), seconds)
            body = HttpBody(
                response, self._settings, wanted.address, ranged, wanted.start, wanted.size, wanted.validator
            )
            self._served.add(url)
            return body
        except BaseException:
            self._targets.pop(url, None)
            response.close()
            raise

    def _bearer(self, url: str, auth: str | None, hub: str) -> Bearer | None:
        found = declared_token(auth) if auth is not None else hub_token() if hub else None
        return Bearer(self._session, url, found.value, found.origin) if found else None

    def _follow(self, url: str, wanted: _Wanted) -> tuple[requests.Response, str]:
        # Not by requests: every hop is checked, and the token is sent to the declared host only.
        ends = time.monotonic() + 2 * self._settings.stall_timeout
        cookies = Cookies()  # kept from redirect to redirect; never for another file, or another part
        encrypted = wanted.address.startswith("https://")
        for _ in range(MAX_REDIRECTS + 1):
            self._cancel.check()
            seconds = min(self._settings.stall_timeout, ends - time.monotonic())
            if seconds <= 0:
                raise TransientError(f"its redirects took longer than {2 * self._settings.stall_timeout:g} s")
            # What netrc has for the host is not for everybody on the way, if a mirror leads from https to http.
            auth = wanted.bearer or (NoAuth() if encrypted and url.startswith("http://") else None)
            limit = self._settings.connect_timeout
            response = self._session.get_once(url, wanted.headers, auth, cookies, limit, seconds)
            if (target := self._session.redirect(url, response)) is None:
                return response, url
            _drain(response)
            url = target
            if not url.startswith(("http://", "https://")):
                raise SourceError(f"redirects to {redacted(url) or 'no URL'}; only http and https are followed")
            if wanted.may_follow is not None and not wanted.may_follow(url):
                raise SourceError(f"redirects to {redacted(url)}, whose host is not allowed")
        raise SourceError(f"more than {MAX_REDIRECTS} redirects, the last to {redacted(url)}")


def _part(start: int, end: int | None, validator: str | None) -> dict[str, str]:
    """Return the headers that request a part of a file, if its ETag still is ``validator``."""
    if not start and end is None:
        return {}
    part = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
    return {**part, "If-Range": validator} if validator else part


def _address(url: str) -> str:
    """Return a URL with its variables filled in."""
    try:
        return expanded(url)
    except (KeyError, ValueError) as error:
        why = "is not set" if isinstance(error, KeyError) else "holds what no URL may"
        name = error.args[0]
        problem = f"environment variable {name} (in its URL) {why}"
        raise SourceError(problem, hint=set_variable(name), request_sent=False) from None


def _drain(response: requests.Response) -> None:
    """Read the short body of a redirect, so that the connection can be used again; close it on a long one.

    The deadline of the head holds for the body too.
    """
    with closing(response), suppress(Exception):
        length = header_number(response.headers.get("Content-Length"))
        if length is not None and length <= 1 << 16:
            response.raw.read(decode_content=False)
