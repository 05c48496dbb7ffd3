"""A URL reaches the server as it is written, byte for byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support import blob, one
from weightcache import ensure
from weightcache._transfer.raw_url import _Connection, request_target
from weightcache.manifest.urls import resolved_url

DATA = blob(1000)
COMMIT = "0123456789abcdef" * 2 + "01234567"

WRITTEN = [
    "/a%2Fb",
    "/a%2fb",
    "/a%7Eb",
    "/a~b",
    "/a+b%2B",
    "/a[1]{2}|^`'\"<>",
    "/a%zzb%2F%",
    "/a//b",
    "//a",
    "/./a/../b",
    "/caf%c3%a9",
    "/caf%C3%A9",
    "/a%41",
    "/a?",
    "/a?sig=%2f%2B+/=&x=%zz&y=[1]",
]


class Recorder:
    """Answers every request with `DATA`, or once with a redirect; keeps what each one asked for.

    Nothing that parses a URL: a server of the standard library changes ``//a``.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.redirects: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := connection.recv(4096)):
                return
            head += data
        self.asked.append(head.split(b" ")[1].decode())
        start, body = "200 OK", DATA
        if self.redirects:
            start, body = f"302 Found\r\nLocation: {self.redirects.pop(0)}", b""
        answer = f"HTTP/1.1 {start}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(answer.encode() + body)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    server = Recorder()
    yield server
    server.close()


def fetch(url: str, root: Path) -> bytes:
    return ensure(one(DATA, url), root=root, progress=False)["sam2"].read_bytes()


@pytest.mark.parametrize("written", WRITTEN)
def test_a_url_is_sent_as_it_is_written(written: str, recorder: Recorder, root: Path) -> None:
    assert fetch(recorder.base + written, root) == DATA
    assert recorder.asked == [written]


def test_a_redirect_is_followed_as_it_is_written(recorder: Recorder, root: Path) -> None:
    recorder.redirects = [f"{recorder.base}/%7e/a%2fb?", f"{recorder.base}/b c/é?X-Sig=%2f[1]#part"]
    assert fetch(f"{recorder.base}/a", root) == DATA
    assert recorder.asked == ["/a", "/%7e/a%2fb?", "/b%20c/%C3%A9?X-Sig=%2f[1]"]


def test_through_a_proxy_as_well(recorder: Recorder, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", recorder.base)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetch("http://weights.invalid/a%2fb/../[1]?x=%7E", root) == DATA
    assert recorder.asked == ["http://weights.invalid/a%2fb/../[1]?x=%7E"]


@pytest.mark.parametrize("path", ["a b.pt", "a%20b.pt", "a#b?c=d&e.pt", "~/a+b[1]/é.pt", "100%.pt", "a=b,${c};d@e!.pt"])
def test_a_path_on_the_hub_is_literal(
    path: str, recorder: Recorder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", recorder.base)
    assert fetch(f"hf://org/repo@{COMMIT}/{path}", root) == DATA
    from urllib.parse import unquote

    [asked] = recorder.asked
    assert unquote(asked) == f"/org/repo/resolve/{COMMIT}/{path}"
    assert not set(asked) & set(" #?[")


def test_what_no_request_line_may_hold_is_encoded() -> None:
    assert request_target("http://h") == "/"
    assert request_target("http://h?x=1") == "/?x=1"
    assert request_target("https://u:p@h:8/é \x01\x7f?ü#f") == "/%C3%A9%20%01%7F?%C3%BC"
    assert request_target(resolved_url(f"hf://a/b@{COMMIT}", "c d")).endswith("/c%20d")


def test_a_session_makes_no_class_of_its_own(recorder: Recorder, root: Path) -> None:
    """A class of each session stays in memory for ever: a process that calls `ensure` for days would grow."""

    def classes() -> int:
        return len(_Connection.__subclasses__())

    fetch(f"{recorder.base}/first", root / "1")
    made = classes()
    for number in (2, 3):
        fetch(f"{recorder.base}/first", root / str(number))
    assert classes() == made
