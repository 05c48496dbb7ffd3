"""Mirrors over HTTP: a file, or a part of it, asked for where its URL leads."""

from __future__ import annotations

import logging
import re
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from weightcache.errors import redacted
from weightcache.manifest.urls import expanded, local_path

from .auth import declared_token, hub_token
from .error_response import RequestInfo, error_from
from .response import WHOLE, HttpBody
from .response_head import READ_HEAD, header_number
from .session import Bearer, Session
from .stream import Body, LocalBody, SourceError, TransientError

if TYPE_CHECKING:
    import requests

    from weightcache._runtime.cancel import Cancel
    from weightcache._runtime.settings import Settings

_log = logging.getLogger("weightcache")

MAX_REDIRECTS = 10


class Client:
    """Requests of one `ensure`: a session with its connections, proxies, netrc and TLS settings."""

    def __init__(self, cancel: Cancel, settings: Settings) -> None:
        self._cancel, self._settings = cancel, settings
        self._session = Session(settings.connections)
        # Where redirects led: a hub that signs URLs is asked once, and not for each part.
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
    ) -> Body:
        """Request ``url`` from ``start`` to ``end`` (exclusive; ``None`` is the end of the file).

        Args:
            url: Where. ``${VARIABLE}`` in it stands for the value of an environment variable.
            auth: Name of the environment variable with the bearer token.
            hub: The page of the Hub's repository if the file is of one: then the user's token for the Hub is sent
                where no ``auth`` is declared.
            start: Offset of the first byte wanted. The body may begin at 0 instead: look at its ``offset``.
            end: Offset after the last byte wanted.
            size: Declared size of the file, if any.
            validator: Strong ETag of the bytes before ``start``, where no digest is known that can judge them: if it
                changed, the whole file is sent.

        Raises:
            SourceError: One of the five kinds.
        """
        if (path := local_path(url)) is not None:
            return LocalBody(path, start, size)
        headers = _part(start, end, validator)
        address = _address(url)
        bearer = self._bearer(address, auth, hub)

        def answer(at: str) -> Body:
            response, self._targets[url] = self._follow(at, headers, bearer)
            try:
                ranged = "Range" in headers
                if response.status_code not in WHOLE and response.status_code != 206:
                    sent = RequestInfo(address, ranged, bearer.origin if bearer else "", auth, hub, url in self._served)
                    raise error_from(
                        response,
                        sent,
                        self._session.proxy(response.url or ""),
                        min(READ_HEAD, self._settings.stall_timeout),
                    )
                body = HttpBody(response, self._settings, address, ranged, start, size, validator)
                self._served.add(url)
                return body
            except BaseException:
                self._targets.pop(url, None)
                response.close()
                raise

        if (known := self._targets.get(url)) is not None:
            try:
                return answer(known)
            except SourceError as error:
                if known == address or type(error) is not SourceError:
                    raise
                _log.info("%s: %s where it led before; asking it again", redacted(url), error)  # signed URLs expire
        return answer(address)

    def _bearer(self, url: str, auth: str | None, hub: str) -> Bearer | None:
        found = declared_token(auth) if auth is not None else hub_token() if hub else None
        return Bearer(self._session, url, found.value, found.origin) if found else None

    def _follow(self, url: str, headers: dict[str, str], auth: Bearer | None) -> tuple[requests.Response, str]:
        # By hand: every hop is checked, and the token goes only where it belongs.
        ends = time.monotonic() + 2 * self._settings.stall_timeout
        for _ in range(MAX_REDIRECTS + 1):
            self._cancel.check()
            seconds = min(self._settings.stall_timeout, ends - time.monotonic())
            if seconds <= 0:
                raise TransientError(f"its redirects took longer than {2 * self._settings.stall_timeout:g} s")
            response = self._session.get_once(url, headers, auth, self._settings.connect_timeout, seconds)
            if (target := self._session.redirect(url, response)) is None:
                return response, url
            _let_go(response)
            url = target
            if not url.startswith(("http://", "https://")):
                shown = re.sub("[^ -~]", "", redacted(url))
                raise SourceError(f"redirects to {shown or 'no URL'}; only http and https are followed")
        raise SourceError(f"more than {MAX_REDIRECTS} redirects, the last to {redacted(url)}")


def _part(start: int, end: int | None, validator: str | None) -> dict[str, str]:
    """Return the headers that ask for a part of a file, if it still is the file that ``validator`` speaks of."""
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
        hint = f"set {name} in the environment (on Modal: a Secret)"
        raise SourceError(f"environment variable {name} (in its URL) {why}", hint=hint, request_sent=False) from None


def _let_go(response: requests.Response) -> None:
    """Read the short body of a redirect, so that the connection serves again; close on a long one.

    The deadline of its head holds for the body too.
    """
    with closing(response), suppress(Exception):
        length = header_number(response.headers.get("Content-Length"))
        if length is not None and length <= 1 << 16:
            response.raw.read(decode_content=False)
