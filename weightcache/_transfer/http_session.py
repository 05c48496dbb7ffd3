"""Single requests: one session with its connections, proxies, netrc and TLS, and the errors of a request.

No message quotes an exception of requests: those contain the URL with its query, and a signed query is a secret.
"""

from __future__ import annotations

import http.client
import re
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.auth import AuthBase
from requests.cookies import RequestsCookieJar as Cookies
from requests.cookies import extract_cookies_to_jar
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from .auth import is_signed
from .http_environment import (
    Proxy,
    advice_on_certificates,
    netrc_problem,
    proxy_for,
    proxy_mistake,
    proxy_refusal,
    trusted,
)
from .mirror_stream import SourceError, TransientError
from .raw_url import VerbatimAdapter, verbatim
from .read_deadline import timed
from .refused_addresses import check_host, checked
from .response_head import in_words
from .retry_policy import RETRYABLE

if TYPE_CHECKING:
    import ssl

__all__ = ["Bearer", "Cookies", "NoAuth", "Session"]

# Here GitHub's API (also of an Enterprise Server) returns a file; without this header it returns a description of it:
# https://docs.github.com/en/rest/releases/assets#get-a-release-asset
_ASSET = re.compile(r"(/api/v3)?/repos/[^/]+/[^/]+/releases/assets/[0-9]+/?")
_NO_PROXY_URL = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidProxyURL,
    urllib3.exceptions.URLSchemeUnknown,
)
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})([ -&*-~]{0,60})")


class Bearer(AuthBase):
    """Sends a token to the host of the declared URL, and to no other host.

    It is an `AuthBase` and not a header: requests would let netrc replace a header, also after a redirect.
    """

    def __init__(self, session: requests.Session, declared: str, token: str, origin: str) -> None:
        self._session, self._declared, self._token, self.origin = session, declared, token, origin

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.pop("Authorization", None)
        url = request.url or ""
        signed = url != self._declared and is_signed(url)  # after a redirect: its signature is the permission
        if not signed and not self._session.should_strip_auth(self._declared, url):  # type: ignore[no-untyped-call]
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class NoAuth(AuthBase):
    """Sends nothing. Without an `AuthBase`, requests would send what netrc has for the host."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class _Adapter(VerbatimAdapter):
    """Sets deadlines, and reads a CA bundle once: requests reads it for each connection (16 ms for certifi's)."""

    def __init__(self, connections: int) -> None:
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._bundle = DEFAULT_CA_BUNDLE_PATH
        super().__init__(pool_maxsize=connections)  # all of them are kept alive

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        pool: Any = super().get_connection_with_tls_context(request, verify, proxies, cert)
        # Here, because each kind of proxy has pools of its own. At once, because threads share the pool.
        connection: Any = timed(pool.ConnectionCls)
        pool.ConnectionCls = checked(connection)
        return pool

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        if verify:
            self._bundle = verify if isinstance(verify, str) else DEFAULT_CA_BUNDLE_PATH
        if host["scheme"] == "https" and verify:
            pool["ssl_context"] = self._context(self._bundle)
        return host, pool

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        if proxy.lower().startswith("https:"):  # else urllib3 would check the proxy with the system's certificates
            options["proxy_ssl_context"] = self._context(self._bundle)
        return super().proxy_manager_for(proxy, **options)

    def _context(self, bundle: str) -> ssl.SSLContext:
        if bundle not in self._contexts:
            self._contexts[bundle] = trusted(bundle)
        return self._contexts[bundle]

    def close(self) -> None:
        # urllib3 closes the connections of a pool when nothing refers to it any more: the traceback of an error may,
        # for as long as the caller keeps the error.
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 (it has no iterator)
                if pool := manager.pools.get(key):
                    pool.close()
        super().close()

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        conn.ca_certs = conn.ca_cert_dir = None  # they are in the context


class Session(requests.Session):
    """A session of requests for GET alone, whose failures are a `SourceError`."""

    def __init__(self, connections: int) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(connections))
        # The threads share this jar: one would iterate over it while another adds to it, and it would grow without end.
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._known_settings: dict[tuple[str, str], dict[str, Any]] = {}
        with suppress(PackageNotFoundError):  # the package may be mounted without its metadata
            self.headers["User-Agent"] = f"weightcache/{version('weightcache')}"
        # identity: sizes, ranges and digests are those of the file, not of a compressed form.
        self.headers["Accept-Encoding"] = "identity"

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return no target: requests would read the whole body of a redirect into memory, however long it is."""

    def redirect(self, url: str, response: requests.Response) -> str | None:
        """Return where a response redirects to; ``None`` if it is no redirect, empty if its target is no URL."""
        with suppress(ValueError):  # a Location that is not UTF-8, or such as `http://[`
            target = super().get_redirect_target(response)
            joined = None if target is None else urljoin(url, target)
            # As it is written: `urljoin` would lose an empty query.
            return target if target and target.startswith(("http://", "https://")) else joined
        return ""

    def settings(self, url: str) -> dict[str, Any]:
        """Return the environment's proxies and CA bundle for a host. Finding them takes longer than a request."""
        host = urlsplit(url)[:2]
        if host not in self._known_settings:
            self._known_settings[host] = dict(self.merge_environment_settings(url, {}, True, None, None))
        return self._known_settings[host]

    def proxy(self, url: str) -> Proxy | None:
        """Return the proxy that a URL is requested through, if any."""
        with suppress(ValueError):
            return proxy_for(url, self.settings(url).get("proxies") or {})
        return None

    def get_once(
        self,
        url: str,
        headers: dict[str, str],
        auth: AuthBase | None,
        cookies: Cookies,
        connect_timeout: float,
        seconds: float,
    ) -> requests.Response:
        """Return the response to a GET, without its redirect. Its head arrives within ``seconds``; its body is unread.

        The cookies of the response are added to ``cookies``.

        Raises:
            SourceError: There is no response; the class depends on the cause.
        """
        try:
            check_host(urlsplit(url).hostname or "")
            credentials = auth or (NoAuth() if is_signed(url) and "@" not in urlsplit(url).netloc else None)
            if _ASSET.fullmatch(urlsplit(url).path):
                headers = {**headers, "Accept": "application/octet-stream"}
            request = self.prepare_request(requests.Request("GET", url, headers, auth=credentials, cookies=cookies))
            limits = (min(connect_timeout, seconds), seconds)
            with verbatim(url):
                response = self.send(request, allow_redirects=False, timeout=limits, **self.settings(url))
            extract_cookies_to_jar(cookies, response.request, response.raw)  # type: ignore[no-untyped-call]
            return response
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            ValueError,
        ) as error:
            failure = _failure(error, self.proxy(url), connect_timeout, seconds)
        raise failure  # outside the handler, so that its context has no URL with a query


def _failure(error: Exception, proxy: Proxy | None, connect_timeout: float, seconds: float) -> SourceError:
    through = f" through {proxy}" if proxy else ""
    if isinstance(error, requests.exceptions.ProxyError):
        return _proxy_failure(error, proxy)
    if isinstance(error, requests.exceptions.SSLError):
        return _tls_failure(error, through)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return TransientError(f"no connection within {connect_timeout:g} s{through}")
    if isinstance(error, requests.exceptions.Timeout):
        limit = re.search(r"read timeout=([0-9.]{1,20})", str(error))  # shorter in a handshake
        return TransientError(f"no answer within {float(limit[1]) if limit else seconds:g} s{through}")
    if isinstance(error, requests.exceptions.ConnectionError):
        return TransientError(in_words(error, "the connection failed") + through)
    if any(isinstance(each, urllib3.exceptions.InvalidHeader) for each in error.args):  # as requests passes it on
        return SourceError("the answer has a Content-Length that is wrong: several numbers that differ")
    if isinstance(error, _NO_PROXY_URL) or (proxy and proxy.has_unknown_scheme):
        return proxy_mistake(proxy)
    if isinstance(error, UnicodeError) and (problem := netrc_problem()):
        return SourceError(problem, hint="correct the netrc file", request_sent=False)
    return SourceError(f"the request cannot be made ({type(error).__name__})")


def _proxy_failure(error: Exception, proxy: Proxy | None) -> SourceError:
    where = str(proxy or "the proxy")
    if match := _TUNNEL.search(str(error)):
        status = f"HTTP {match[1]}{match[2].rstrip()}"
        if match[1] == "407":
            return proxy_refusal(proxy, status)
        if int(match[1]) in RETRYABLE:
            return TransientError(f"{where} answered {status}")
        return SourceError(
            f"{where} refuses to connect there: {status}",
            hint=f"let the proxy permit the host, or name it in NO_PROXY; the proxy is that of {proxy.variable}"
            if proxy
            else "",
        )
    words = in_words(error, "it refused")
    if words.startswith("certificate verify failed"):
        return SourceError(f"{where}: TLS: {words}", hint=advice_on_certificates())
    return TransientError(f"{where}: {words}")


def _tls_failure(error: Exception, through: str) -> SourceError:
    text = str(error)
    if "EOF occurred" in text or "UNEXPECTED_EOF" in text:
        return TransientError(f"TLS: the connection broke off in the handshake{through}")
    if "timed out" in text:
        return TransientError(f"TLS: the handshake took too long{through}")
    code = re.search(r"\[SSL: ([A-Z0-9_]{3,60})\]", text)
    otherwise = f"the handshake failed{f' ({code[1]})' if code else ''}"
    words = in_words(error, otherwise)
    hint = advice_on_certificates() if words.startswith("certificate verify failed") else ""
    return SourceError(f"TLS: {words}{through}", hint=hint)
