"""Mirrors over HTTP: one session with its redirects, proxies, netrc and TLS.

No reason ever quotes an exception of requests: those hold the URL with its query, and a signed query is a secret.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.auth import AuthBase
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssl_ import create_urllib3_context

from ._response import HttpBody, Timeouts, header_number, in_words
from ._rules import expanded, local_path
from ._source import Body, LocalBody, SourceError, TransientError
from ._target import AsWritten, sent_as_written
from ._tokens import declared_token, hub_token, refusal
from .errors import redacted

if TYPE_CHECKING:
    from ._cancel import Cancel

_log = logging.getLogger("weightcache")

MAX_REDIRECTS = 10
TIMEOUTS = Timeouts()


class _Bearer(AuthBase):
    """Sends a token to the host of the declared URL and to no other one.

    An `AuthBase` and not a header: requests would let netrc replace a header, also after a redirect.
    """

    def __init__(self, session: requests.Session, declared: str, token: str, origin: str) -> None:
        self._session, self._declared, self._token, self.origin = session, declared, token, origin

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.pop("Authorization", None)
        if not self._session.should_strip_auth(self._declared, request.url or ""):  # type: ignore[no-untyped-call]
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that nothing is a redirect: requests would read a redirect's whole body into memory, however long."""


class _Adapter(AsWritten):
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
        # Where redirects led: a hub that signs URLs is asked once, and not for each part.
        self._targets: dict[str, str] = {}
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
        hub: str,
        start: int,
        end: int | None,
        size: int | None,
        validator: str | None,
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
            validator: Strong ETag of the bytes before ``start``: if it changed, the whole file is sent.

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
                if response.status_code in (401, 403):
                    raise refusal(response, bearer.origin if bearer else "", auth, hub)
                return HttpBody(response, TIMEOUTS, "Range" in headers, start, size, validator)
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

    def _bearer(self, url: str, auth: str | None, hub: str) -> _Bearer | None:
        found = declared_token(auth) if auth is not None else hub_token() if hub else None
        return _Bearer(self._session, url, found.value, found.origin) if found else None

    def _follow(self, url: str, headers: dict[str, str], auth: _Bearer | None) -> tuple[requests.Response, str]:
        # By hand: every hop is checked, and the token goes only where it belongs.
        for _ in range(MAX_REDIRECTS + 1):
            self._cancel.check()
            response = self._get(url, headers, auth)
            if (target := self._redirect(url, response)) is None:
                return response, url
            _let_go(response)
            url = target
            if not url.startswith(("http://", "https://")):
                shown = re.sub("[^ -~]", "", redacted(url))
                raise SourceError(f"redirects to {shown or 'no URL'}; only http and https are followed")
        raise SourceError(f"more than {MAX_REDIRECTS} redirects, the last to {redacted(url)}")

    def _redirect(self, url: str, response: requests.Response) -> str | None:
        """Return where an answer leads, or ``None`` if it is one; empty if what it says is no URL."""
        with suppress(ValueError):  # a Location that is not UTF-8, or such as `http://[`
            target = requests.Session.get_redirect_target(self._session, response)
            joined = None if target is None else urljoin(url, target)
            # As it is written: joining takes a URL apart and puts it together, which loses an empty query.
            return target if target and target.startswith(("http://", "https://")) else joined
        return ""

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
            with sent_as_written(url):
                return self._session.send(request, allow_redirects=False, timeout=timeouts, **self._settings(url))
        except requests.exceptions.SSLError as error:
            failure = SourceError(f"TLS: {in_words(error, 'the handshake failed')}")
        except requests.exceptions.ConnectTimeout:
            failure = TransientError(f"no connection within {TIMEOUTS.connect:g} s")
        except requests.exceptions.Timeout:
            failure = TransientError(f"no answer within {TIMEOUTS.stall:g} s")
        except requests.exceptions.ProxyError as error:
            failure = TransientError(f"proxy: {in_words(error, 'it refused')}")
        except requests.exceptions.ConnectionError as error:
            failure = TransientError(in_words(error, "the connection failed"))
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,
        ) as error:
            failure = SourceError(f"the request cannot be made ({type(error).__name__})")
        raise failure  # outside the handler: no context with the URL's query hangs on it


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
        raise SourceError(f"environment variable {name} (in its URL) {why}", hint=hint, asked=False) from None


def _let_go(response: requests.Response) -> None:
    """Read the short body of a redirect, so that the connection serves again; close on a long one."""
    with closing(response), suppress(Exception):
        if (header_number(response.headers.get("Content-Length")) or 1 << 30) <= 1 << 16:
            response.raw.read(decode_content=False)
