"""What a read over TLS takes: all records that are there, with few questions to the kernel."""

from __future__ import annotations

import fcntl
import socket
import ssl
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import trustme

from support import blob
from weightcache._runtime.tuning_constants import Settings
from weightcache._transfer import read_deadline
from weightcache._transfer.file_response import HttpBody

RECORD = 16384
DATA = blob(6 * RECORD)


@pytest.fixture
def body() -> Iterator[HttpBody]:
    """An answer over TLS of which every byte has arrived."""
    authority = trustme.CA()
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.configure_trust(trusting)
    near, far = socket.socketpair()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def answer() -> None:
        with serving.wrap_socket(far, server_side=True) as server:
            server.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode())
            for at in range(0, len(DATA), RECORD):
                server.sendall(DATA[at : at + RECORD])
            sent.set()
            assert read.wait(30)

    sent, read = threading.Event(), threading.Event()
    thread = threading.Thread(target=answer)
    thread.start()
    with trusting.wrap_socket(near, server_hostname="127.0.0.1") as client:
        original = read_deadline._TimedResponse(client, method="GET")
        original.begin()
        assert sent.wait(30)
        response: Any = requests.Response()
        response.status_code, response.headers = 200, requests.structures.CaseInsensitiveDict(original.headers)
        response.raw = SimpleNamespace(_original_response=original, release_conn=lambda: None, close=lambda: None)
        response.close = original.close
        yield HttpBody(response, Settings(), "https://weights.example/a", False, 0, len(DATA), None)
        original.close()
        read.set()
    thread.join(30)


def test_one_question_is_enough_for_all_that_is_there(body: HttpBody, monkeypatch: pytest.MonkeyPatch) -> None:
    questions, ioctl = list[object](), fcntl.ioctl
    monkeypatch.setattr(fcntl, "ioctl", lambda *args: (questions.append(args), ioctl(*args))[1])
    room = memoryview(bytearray(len(DATA)))
    first = body.read_into(room)  # what came with the head, or one record
    assert body.read_into(room[first:]) == len(DATA) - first
    assert bytes(room) == DATA
    assert len(questions) <= 2


@pytest.mark.parametrize("size", [5, RECORD - 1, RECORD + 1])
def test_a_buffer_that_ends_inside_a_record_loses_nothing(body: HttpBody, size: int) -> None:
    got, room = bytearray(), memoryview(bytearray(size))
    while count := body.read_into(room[: len(DATA) - len(got)]):
        got += room[:count]
    assert got == DATA
