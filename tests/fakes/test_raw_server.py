"""The server of bare sockets sends what the test says, and leaves no thread."""

from __future__ import annotations

import socket
import threading

from raw_server import raw_server


def exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(request)
        return client.makefile("rb").read()


def test_a_greeted_server_answers_after_the_request() -> None:
    before = set(threading.enumerate())
    with raw_server(lambda connection, _: connection.sendall(b"\0no http")) as port:
        assert exchange(port, b"GET") == b"\0no http"
        assert exchange(port, b"GET") == b"\0no http"
    assert set(threading.enumerate()) <= before


def test_a_server_that_is_not_greeted_leaves_the_request_to_its_answer() -> None:
    with raw_server(lambda connection, _: connection.sendall(connection.recv(3)), greeted=False) as port:
        assert exchange(port, b"GET") == b"GET"


def test_an_answer_that_waits_ends_with_the_server() -> None:
    begun = threading.Event()

    def wait(_: socket.socket, stopping: threading.Event) -> None:
        begun.set()
        stopping.wait()

    with raw_server(wait, greeted=False) as port:
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        assert begun.wait(30)  # else the listener may close before it accepts
    with client:
        assert client.recv(1) == b""
