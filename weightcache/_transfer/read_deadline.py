"""A deadline for everything but a body of known length: heads, chunk sizes, trailers, short pages.

The timeout of a socket starts again with each byte. So a server that sends one byte a second, or the same line for
ever, never runs into it. The stream here ends a read when its time is over, however many bytes arrived in that time.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from contextlib import suppress
from functools import cache
from typing import Any


class TimedStream(io.RawIOBase):
    """The bytes of a socket. Until `limit` or `unlimit` is called, all reads together have the socket's timeout.

    Attributes:
        socket_stream: The stream below, without a deadline.
    """

    def __init__(self, socket_stream: io.RawIOBase, sock: Any) -> None:
        self.socket_stream, self._socket = socket_stream, sock
        self.limit(sock.gettimeout())

    def limit(self, seconds: float | None) -> None:
        """End every read within ``seconds`` from now; ``None`` is no limit."""
        self._deadline: float | None = None if seconds is None else time.monotonic() + seconds

    def unlimit(self, timeout: float) -> None:
        """Give each read ``timeout`` seconds for its first byte, and no other deadline."""
        self._deadline = None
        self._socket.settimeout(timeout)

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the time for this answer is over")
            self._socket.settimeout(left)
        return self.socket_stream.readinto(buffer)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.socket_stream.fileno()

    def close(self) -> None:
        self.socket_stream.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """A response whose head must arrive within the timeout that its socket has when the read starts.

    That holds for the final response with all interim ones before it, and for a proxy's response to CONNECT.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(TimedStream(self.fp.detach(), sock))


class _TimedConnection:
    """A connection of urllib3 that no server can hold up. Mixed into the classes of urllib3."""

    response_class = _TimedResponse
    proxy: Any
    sock: Any
    timeout: float | None

    def connect(self) -> None:
        if getattr(self.proxy, "scheme", "") != "https" or not self.timeout:
            super().connect()  # type: ignore[misc]  # a handshake is one call, which observes the timeout
            return
        # urllib3 does TLS within TLS itself, with many reads: another thread ends it.
        timer = threading.Timer(self.timeout, self._cut_off)
        timer.daemon = True
        with suppress(RuntimeError):  # no thread left
            timer.start()
        try:
            super().connect()  # type: ignore[misc]
        finally:
            timer.cancel()

    def _cut_off(self) -> None:
        with suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


@cache
def timed(connection: type[Any]) -> type[Any]:
    """Return a connection class of urllib3 whose responses have a deadline."""
    if issubclass(connection, _TimedConnection):
        return connection
    return type(connection.__name__, (_TimedConnection, connection), {})


def stream_of(response: Any) -> TimedStream | None:
    """Return the stream below a response of requests; ``None`` once it was read to its end."""
    original = getattr(response.raw, "_original_response", None)  # requests itself takes its cookies from there
    stream = getattr(getattr(original, "fp", None), "raw", None)
    return stream if isinstance(stream, TimedStream) else None
