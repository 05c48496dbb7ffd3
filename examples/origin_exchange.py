"""Requests, resources and the answer to one request, as `origin.Origin` serves them."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping
    from http.server import BaseHTTPRequestHandler


PIECE = 64 * 1024  # bytes a send; small, so that what a killed client did not read stays small as well


@dataclass
class Request:
    """One request as the origin saw it, and how many bytes of body it sent."""

    path: str
    headers: Mapping[str, str]
    sent: int = 0
    status: int = 0
    client: tuple[str, int] = ("", 0)  # the connection's other end
    busy: bool = True  # whether it is still being answered


@dataclass
class Resource:
    """One file of the origin.

    Attributes:
        body: Its bytes.
        etag: The ETag header, or ``None`` for none.
        ranges: Whether Range is honoured.
        length: Whether Content-Length is sent; else the body is chunked.
        gzip: Whether the body is sent compressed, as some servers do even when asked not to.
        rate: Bytes a second for each connection, or 0 for as fast as it goes.
        faults: Replace the next answers, one each; ``None`` among them is a good answer.
        always: Replaces every answer after those.
        on_sent: Called with the number of bytes sent so far in all, after each piece.
    """

    body: bytes | mmap.mmap
    etag: str | None = None
    ranges: bool = True
    length: bool = True
    gzip: bool = False
    rate: float = 0.0
    faults: list[Fault | None] = field(default_factory=list)
    always: Fault | None = None
    on_sent: Callable[[int], object] | None = None


class Exchange:
    """One request being answered. Faults call its methods."""

    def __init__(self, origin: Any, handler: BaseHTTPRequestHandler, resource: Resource, request: Request) -> None:
        self.origin, self.handler, self.resource, self.request = origin, handler, resource, request

    def head(self, status: int, headers: Mapping[str, object]) -> None:
        self.request.status = status
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name, str(value))
        self.handler.end_headers()
        self.handler.wfile.flush()

    def body(self, data: bytes | memoryview) -> None:
        """Send bytes, counted and at the resource's rate."""
        view, began, sent = memoryview(data), time.monotonic(), 0
        while sent < len(view):
            piece = view[sent : sent + PIECE]
            self.handler.wfile.write(piece)
            sent += len(piece)
            self.request.sent += len(piece)
            if self.resource.on_sent:
                self.resource.on_sent(self.origin.sent())
            if self.resource.rate:
                self.origin.stopping.wait(max(0.0, began + sent / self.resource.rate - time.monotonic()))

    def wanted(self) -> tuple[int, int] | None:
        """The range that was asked for and is to be honoured, as (first, last), or ``None``."""
        resource, header = self.resource, self.request.headers.get("Range")
        if not header or not resource.ranges or resource.gzip:
            return None
        condition = self.request.headers.get("If-Range")
        if condition and condition != resource.etag:
            return None
        first, _, last = header.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) if last else len(resource.body) - 1, len(resource.body) - 1)

    def good_headers(self) -> dict[str, object]:
        headers: dict[str, object] = {"Content-Type": "application/octet-stream"}
        if self.resource.etag:
            headers["ETag"] = self.resource.etag
        if self.resource.ranges:
            headers["Accept-Ranges"] = "bytes"
        return headers

    def good(self) -> None:
        """Answer as a good mirror does."""
        resource, headers = self.resource, self.good_headers()
        view = memoryview(resource.body)
        try:
            if (wanted := self.wanted()) is not None:
                first, last = wanted
                if first >= len(view):
                    self.head(416, {"Content-Range": f"bytes */{len(view)}", "Content-Length": 0})
                    return
                headers["Content-Range"] = f"bytes {first}-{last}/{len(view)}"
                headers["Content-Length"] = last + 1 - first
                self.head(206, headers)
                self.body(view[first : last + 1])
                return
            data: bytes | memoryview = view
            if resource.gzip:
                data = gzip.compress(view, 1)
                headers["Content-Encoding"] = "gzip"
            if resource.length:
                self.head(200, {**headers, "Content-Length": len(data)})
                self.body(data)
            else:
                self.chunked(data, headers)
        finally:
            view.release()

    def chunked(self, data: bytes | memoryview, headers: Mapping[str, object]) -> None:
        self.head(200, {**headers, "Transfer-Encoding": "chunked"})
        for offset in range(0, len(data), PIECE):
            piece = data[offset : offset + PIECE]
            self.handler.wfile.write(b"%x\r\n" % len(piece))
            self.body(piece)
            self.handler.wfile.write(b"\r\n")
        self.handler.wfile.write(b"0\r\n\r\n")

    def hang_up(self, *, reset: bool = False) -> None:
        """End the connection, with a TCP reset if asked."""
        self.handler.close_connection = True
        connection = self.handler.connection
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            os.close(connection.detach())


Fault = Callable[[Exchange], object]
