"""A small HTTP origin on loopback that serves files as a good mirror does, and misbehaves on request.

It stands in for the internet in the demo and the tests. A good answer has a length, a strong ETag, ranges and
If-Range; `Resource` switches each of these off, and a *fault* (a function of one `Exchange`) replaces an answer::

    with Origin() as origin:
        origin.put("/a.bin", data, faults=[truncated(at=1000)])   # the first answer breaks off, the next ones are good
        requests.get(origin.url("/a.bin"))
        origin.sent()                                             # body bytes sent, of all requests
"""

from __future__ import annotations

import hashlib
import mmap
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from origin_exchange import PIECE, Exchange, Fault, Request, Resource

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Callable, Iterable, Mapping


def status(code: int, headers: Mapping[str, object] | None = None, body: bytes = b"") -> Fault:
    """Answer with a status (and a page)."""

    def fault(exchange: Exchange) -> None:
        exchange.head(code, {"Content-Length": len(body), **(headers or {})})
        exchange.body(body)

    return fault


def redirect(target: str, code: int = 302) -> Fault:
    """Send the client elsewhere."""
    return status(code, {"Location": target})


def _first(exchange: Exchange) -> int:
    """Send the head of a good answer and return the offset at which its body begins."""
    total, headers = len(exchange.resource.body), exchange.good_headers()
    first, last = exchange.wanted() or (0, total - 1)
    headers["Content-Length"] = last + 1 - first
    if exchange.wanted():
        exchange.head(206, {**headers, "Content-Range": f"bytes {first}-{last}/{total}"})
    else:
        exchange.head(200, headers)
    return first


def broken(at: int, *, reset: bool = False) -> Fault:
    """Promise the whole body, send ``at`` bytes of it, and hang up."""

    def fault(exchange: Exchange) -> None:
        first = _first(exchange)
        exchange.body(bytes(exchange.resource.body[first : first + at]))
        exchange.hang_up(reset=reset)

    return fault


def hang_up(*, reset: bool = False) -> Fault:
    """Hang up on the request, without a word."""
    return lambda exchange: exchange.hang_up(reset=reset)


def stalled(at: int) -> Fault:
    """Send ``at`` bytes of the body, then nothing more, and keep the connection."""

    def fault(exchange: Exchange) -> None:
        first = _first(exchange)
        exchange.body(bytes(exchange.resource.body[first : first + at]))
        exchange.origin.stopping.wait()

    return fault


def other_bytes(body: bytes, etag: str | None = None) -> Fault:
    """Serve, whole and in good order, another file."""

    def fault(exchange: Exchange) -> None:
        replaced = Resource(body, etag=etag)
        Exchange(exchange.origin, exchange.handler, replaced, exchange.request).good()

    return fault


def wrong_part(content_range: str, body: bytes) -> Fault:
    """Answer 206 with a Content-Range of one's own."""
    return status(206, {"Content-Range": content_range}, body)


def gate(at: int, reached: threading.Event, go_on: threading.Event) -> Fault:
    """Send ``at`` bytes, say so, and wait to be let on."""

    def fault(exchange: Exchange) -> None:
        first = _first(exchange)
        exchange.body(bytes(exchange.resource.body[first : first + at]))
        reached.set()
        go_on.wait()
        exchange.body(bytes(exchange.resource.body[first + at :]))

    return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    origin: Origin

    def do_GET(self) -> None:
        request = Request(
            self.path, {name.title(): value for name, value in self.headers.items()}, client=self.client_address
        )
        self.origin.requests.append(request)
        if self.origin.on_request:
            self.origin.on_request(request)
        resource = self.origin.files.get(unquote(self.path.partition("?")[0]), Resource(b"", always=status(404)))
        with self.origin.lock:
            fault = resource.faults.pop(0) if resource.faults else resource.always
        exchange = Exchange(self.origin, self, resource, request)
        try:
            (fault or Exchange.good)(exchange)
        except OSError:  # the client went away
            self.close_connection = True
        finally:
            request.busy = False

    def log_message(self, *_: object) -> None:
        """Say nothing: requests are kept in `Origin.requests`."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""


class Origin:
    """A server on a free port of loopback; a context manager.

    Attributes:
        files: Path → `Resource`; may be changed at any time.
        requests: Every request so far.
        on_request: Called with each request as it arrives, before it is answered.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.files: dict[str, Resource] = {}
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], object] | None = None
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        handler = type("Handler", (_Handler,), {"origin": self})
        self._server = _Server((host, 0), handler)
        self._scheme, self.host = ("https" if tls else "http"), host
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_address[1]

    def __enter__(self) -> Origin:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, path: str, body: bytes | str | os.PathLike[str], **options: Any) -> Resource:
        """Serve ``body`` (bytes, or the path of a file) at ``path``; see `Resource` for the options."""
        if not isinstance(body, bytes):
            with open(body, "rb") as stream:
                body = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        options.setdefault("etag", f'"{hashlib.sha256(memoryview(body)).hexdigest()[:16]}"')
        self.files[path] = Resource(body, **options)
        return self.files[path]

    def url(self, path: str) -> str:
        return f"{self._scheme}://{self.host}:{self.port}{path}"

    def sent(self, path: str | None = None) -> int:
        """Bytes of body sent, of all requests or of those for ``path``."""
        return sum(request.sent for request in self._of(path))

    def gets(self, path: str | None = None) -> int:
        """How many requests there were, in all or for ``path``."""
        return sum(1 for _ in self._of(path))

    def busy(self) -> int:
        """How many requests are being answered."""
        return sum(request.busy for request in list(self.requests))

    def _of(self, path: str | None) -> Iterable[Request]:
        return [each for each in list(self.requests) if path is None or each.path.partition("?")[0] == path]
