"""The request target: a URL is sent as it is written.

requests and urllib3 normalize a URL before they send it: ``%7E`` becomes ``~``, ``%2f`` becomes ``%2F``, ``[`` becomes
``%5B``, ``%zz`` becomes ``%25zz``, and ``/a/../b`` becomes ``/b``. A signature covers the bytes of a URL, and a
key in a bucket may contain any of them. So each of these changes names another file, or breaks the signature.
"""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from requests.adapters import HTTPAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))  # ASCII that may stand in a request line as it is
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")

# The target of the next request of this thread: requests and urllib3 have no parameter for it.
_thread = threading.local()


def request_target(url: str) -> str:
    """Return path and query of an http URL as they are written; only what a request line may not have is encoded."""
    rest = _ORIGIN.sub("", url, count=1).partition("#")[0]
    return quote(rest if rest.startswith("/") else f"/{rest}", safe=_PRINTABLE)


@contextmanager
def verbatim(url: str) -> Iterator[None]:
    """Send the next requests of this thread through a `VerbatimAdapter` to ``url`` as it is written."""
    _thread.target = request_target(url)
    try:
        yield
    finally:
        _thread.target = ""


class _Connection:
    """Mixed into the connections of urllib3: `putrequest` is the last function that sees a URL."""

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        if target := getattr(_thread, "target", ""):
            proxied = _ORIGIN.match(url)  # a proxy for http gets the whole URL
            url = f"{proxied[0] if proxied else ''}{target}"
        super().putrequest(method, url, *args, **kwargs)  # type: ignore[misc]


@cache  # a class of each pool would stay for ever: others remember what they made of it
def _verbatim(connection: type[Any]) -> type[Any]:
    return type(connection.__name__, (_Connection, connection), {})


class VerbatimAdapter(HTTPAdapter):
    """An adapter that sends the request target that `verbatim` sets."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        # Change the pool that is there, not a pool class: proxies and SOCKS have connection classes of their own.
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if not issubclass(pool.ConnectionCls, _Connection):
            pool.ConnectionCls = _verbatim(pool.ConnectionCls)
        return pool
