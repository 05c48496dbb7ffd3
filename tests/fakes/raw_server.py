"""A server of bare sockets, for answers that no HTTP server would give."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def raw_server(answer: Callable[[socket.socket, threading.Event], object], *, greeted: bool = True) -> Iterator[int]:
    """Give each connection to ``answer``, after its first bytes if it is ``greeted`` with some; yield the port."""
    stopping, threads = threading.Event(), list[threading.Thread]()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if greeted:
                connection.recv(65536)
            answer(connection, stopping)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=(listener.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:  # after a failure too: else the process of the tests would wait for these threads at its end
            stopping.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()
