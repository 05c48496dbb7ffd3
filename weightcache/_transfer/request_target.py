"""The request line: a URL is sent as it is written.

requests and urllib3 write a URL anew before they send it: ``%7E`` becomes ``~``, ``%2f`` becomes ``%2F``, ``[`` becomes
``%5B``, ``%zz`` becomes ``%25zz``, and ``/a/../b`` becomes ``/b``. A signature is made over the bytes of a URL, and a
key in a bucket may hold any of them, so each of these is another file or a refused signature.
"""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from requests.adapters import HTTPAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))  # ASCII that may stand in a request line as it is
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")

# What the next request of this thread asks for: on the way through requests and urllib3 there is no place for it.
_now = threading.local()


def request_target(url: str) -> str:
    """Return path and query of an http URL as they are written; only what no request line may hold is encoded."""
    rest = _ORIGIN.sub("", url, count=1).partition("#")[0]
    return quote(rest if rest.startswith("/") else f"/{rest}", safe=_PRINTABLE)


@contextmanager
def sent_as_written(url: str) -> Iterator[None]:
    """Let the requests that this thread sends through an `AsWritten` adapter ask for ``url`` as it is written."""
    _now.target = request_target(url)
    try:
        yield
    finally:
        _now.target = ""


class _Connection:
    """Mixed into urllib3's connections: `putrequest` is the last place that a URL passes."""

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        if target := getattr(_now, "target", ""):
            proxied = _ORIGIN.match(url)  # a proxy for http is given the whole URL
            url = f"{proxied[0] if proxied else ''}{target}"
        super().putrequest(method, url, *args, **kwargs)  # type: ignore[misc]


class AsWritten(HTTPAdapter):
    """An adapter that sends what `sent_as_written` names."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        # Of the pool that is there, and not by a pool class: a proxy's and SOCKS's have connections of their own.
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if not issubclass(pool.ConnectionCls, _Connection):
            pool.ConnectionCls = type("AsWritten", (_Connection, pool.ConnectionCls), {})
        return pool
