"""Servers that never end an answer and never fall silent: each is given up in time, and the next mirror is asked."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from origin import Fault, Origin
from raw_server import raw_server
from support import blob, change_settings, directory, one
from weightcache import DownloadError, ensure
from weightcache._runtime import tuning_constants
from weightcache._runtime.cancel import Cancel
from weightcache._store.partial_directory import BLOCK
from weightcache._transfer import mirror_client as transfer_client
from weightcache._transfer import read_deadline
from weightcache._transfer.mirror_stream import SourceError

DATA = blob(BLOCK + 777)
GAP = 0.02  # seconds between two bytes; the stall timeout is many times as long

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, connect_timeout=0.3, stall_timeout=0.3, slow_window=0.3, slow_window_bytes=100_000)
    change_settings(monkeypatch, tries=2, backoff=0.001)


def drip(exchange: Any, data: bytes = b"a", *, first: bytes = b"", flood: bool = False) -> None:
    """Send ``first``, then ``data`` again and again until the client leaves; slowly, or as a ``flood``."""
    write = exchange.handler.wfile.write
    exchange.handler.close_connection = True
    write(first)
    while not exchange.origin.stopping.is_set():
        if flood:
            write(data * 1000)
            continue
        for byte in data:
            write(bytes([byte]))
            exchange.origin.stopping.wait(GAP)


def shape(data: bytes, *, first: bytes = b"", flood: bool = False) -> Fault:
    return lambda exchange: drip(exchange, data, first=first, flood=flood)


HANDSHAKE = b"\x16\x03\x03\x40\x00"  # of 16 KiB
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SHAPES: dict[str, Fault] = {
    "a status line": shape(b"a", first=b"HTTP/1.1 200 "),
    "a header": shape(b"a", first=b"HTTP/1.1 200 OK\r\nX: "),
    "headers": shape(b"A: b\r\n", first=b"HTTP/1.1 200 OK\r\n"),
    "a flood of headers": shape(b"A: b\r\n", first=b"HTTP/1.1 200 OK\r\n", flood=True),
    "interim answers": shape(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a flood of interim answers": shape(b"HTTP/1.1 100 Continue\r\n\r\n", flood=True),
    "the body of a redirect": shape(b"a", first=b"HTTP/1.1 302 F\r\nLocation: /x\r\nContent-Length: 65000\r\n\r\n"),
    "a chunk's size": shape(b"0", first=CHUNKED),
    "a chunk's extension": shape(b"a", first=CHUNKED + b"5;"),
    "a flood of extensions": shape(b"a", first=CHUNKED + b"5;", flood=True),
    "trailers": shape(b"A: b\r\n", first=CHUNKED + b"5\r\nhello\r\n0\r\n"),
    "a flood of trailers": shape(b"A: b\r\n", first=CHUNKED + b"5\r\nhello\r\n0\r\n", flood=True),
    "chunks of one byte": shape(b"1\r\na\r\n", first=CHUNKED),
    "a compressed body": shape(
        b"a", first=CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"ffff\r\n"
    ),
    "a body of known length": shape(b"a", first=b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA)),
    "a body without a length": shape(b"a", first=b"HTTP/1.0 200 OK\r\n\r\n"),
    "a page of another length": shape(b"a", first=b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"),
    "the page of a refusal": shape(b"a", first=b"HTTP/1.1 404 No\r\nContent-Length: 900\r\n\r\n"),
}


def read_whole(url: str) -> str:
    """Read a file as a connection does; return what it failed with."""
    client = transfer_client.Client(Cancel(), tuning_constants.DEFAULT)
    with closing(client):
        try:
            with closing(client.open(url, auth=None, hub="", start=0, end=None, size=len(DATA))) as body:
                while body.read_into(memoryview(bytearray(1 << 16))):
                    pass
        except SourceError as error:
            return str(error)
    return ""


def test_every_shape_ends_in_time(origin: Origin) -> None:
    for number, fault in enumerate(SHAPES.values()):
        origin.put(f"/{number}", DATA, always=fault)
    with ThreadPoolExecutor(len(SHAPES)) as threads:
        said = list(threads.map(read_whole, [origin.url(f"/{number}") for number in range(len(SHAPES))]))
    failed = dict(zip(SHAPES, said, strict=True))
    assert [name for name, why in failed.items() if not why] == []
    assert failed["the page of a refusal"].startswith("HTTP 404")
    assert failed["a page of another length"].startswith(f"wrong bytes: expected {len(DATA)} bytes, got 900 bytes")


@pytest.mark.parametrize(
    "name", ["a header", "interim answers", "the body of a redirect", "a chunk's size", "trailers"]
)
def test_the_next_mirror_is_asked(name: str, origin: Origin, mirror: Origin, root: Path) -> None:
    origin.put("/a", DATA, always=SHAPES[name])
    mirror.put("/b", DATA)
    weights = ensure(one(DATA, origin.url("/a"), mirror.url("/b")), root=root, progress=False)
    assert weights["sam2"].read_bytes() == DATA


def test_alone_it_is_an_error(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, always=SHAPES["interim answers"])
    with pytest.raises(DownloadError, match=r"/a: no answer within 0\.3 s \(2 request"):
        ensure(one(DATA, origin.url("/a")), root=root, progress=False)


@pytest.mark.parametrize("name", ["interim answers", "a chunk's extension"])
@pytest.mark.parametrize("way", ["TLS", "proxy", "kept alive"])
def test_on_every_way(
    name: str, way: str, origin: Origin, mirror: Origin, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.put("/b/2", DATA)
    files = {"2": DATA}
    if way == "TLS":
        with secure_origin(tmp_path, monkeypatch) as secure:
            secure.put("/a/2", DATA, always=SHAPES[name])
            weights = ensure(directory(files, secure.url("/a"), mirror.url("/b")), root=root, progress=False)
    elif way == "proxy":
        monkeypatch.setenv("http_proxy", origin.url(""))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        origin.put("http://weights.invalid/a/2", DATA, always=SHAPES[name])
        weights = ensure(directory(files, "http://weights.invalid/a", mirror.url("/b")), root=root, progress=False)
    else:
        origin.put("/a/1", DATA)
        mirror.put("/b/1", DATA)
        origin.put("/a/2", DATA[1:], always=SHAPES[name])
        mirror.put("/b/2", DATA[1:])
        files = {"1": DATA, "2": DATA[1:]}
        weights = ensure(directory(files, origin.url("/a"), mirror.url("/b")), root=root, progress=False)
    for path, data in files.items():
        assert (weights["bert"] / path).read_bytes() == data


@contextmanager
def secure_origin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.pem"))
    with Origin(tls=context) as origin:
        yield origin


def dripping(*parts: bytes) -> Callable[[socket.socket, threading.Event], object]:
    """Answer what comes with one part after another, and go on with bytes that say nothing."""

    def answer(connection: socket.socket, stopping: threading.Event) -> None:
        for part in parts[:-1]:
            connection.sendall(part)
            connection.recv(65536)
        connection.sendall(parts[-1])
        while not stopping.wait(GAP):
            connection.sendall(b"a")

    return answer


@pytest.mark.parametrize(
    ("parts", "through", "said"),
    [
        ([HANDSHAKE], "", r"no answer within 0\.[0-9]+ s"),
        ([b"HTTP/1.1 200 OK\r\nX: "], "proxy", "through the proxy"),
        ([b"HTTP/1.1 407 "], "proxy", "through the proxy"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", HANDSHAKE], "proxy", "no answer within .* through the proxy"),
    ],
)
def test_what_comes_before_the_first_request(
    parts: list[bytes], through: str, said: str, mirror: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TLS handshake that drips, and a proxy's answer to CONNECT."""
    mirror.put("/b", DATA)
    with raw_server(dripping(*parts)) as port:
        url = f"https://127.0.0.1:{port}/a"
        if through:
            url = "https://weights.invalid/a"
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
        weights = ensure(one(DATA, url, mirror.url("/b")), root=root, progress=False)
        assert weights["sam2"].read_bytes() == DATA
        with pytest.raises(DownloadError, match=said):
            ensure(one(DATA, url, name="other"), root=root / "other", progress=False)


@pytest.mark.parametrize("drips", [False, True])
def test_a_proxy_that_speaks_tls_itself(
    drips: bool, mirror: Origin, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS within TLS; the bundle of the environment is asked about the proxy's certificate, too."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    mirror.put("/b", DATA)

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def proxy(connection: socket.socket, stopping: threading.Event) -> None:
        with context.wrap_socket(connection, server_side=True) as client:
            client.recv(65536)
            if drips:
                dripping(b"HTTP/1.1 200 OK\r\n\r\n", HANDSHAKE)(client, stopping)
                return
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with socket.create_connection((secure.host, secure.port)) as server:
                back = threading.Thread(target=pump, args=(server, client))
                back.start()
                pump(client, server)
                server.shutdown(socket.SHUT_RDWR)
                back.join()

    with Origin(tls=context, host="localhost") as secure, raw_server(proxy, greeted=False) as port:
        secure.put("/a", DATA)
        monkeypatch.setenv("https_proxy", f"https://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        urls = [secure.url("/a"), *([mirror.url("/b")] if drips else [])]
        weights = ensure(one(DATA, *urls), root=root, progress=False)
    assert weights["sam2"].read_bytes() == DATA


def test_redirects_have_one_deadline_together(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answers in time, and leads on."""

    def late(exchange: Any) -> None:
        exchange.origin.stopping.wait(0.2)
        exchange.head(302, {"Location": f"{exchange.request.path}x", "Content-Length": 0})

    for count in range(12):
        origin.put("/a" + count * "x", DATA, always=late)
    with pytest.raises(DownloadError, match=r"no answer within|redirects took longer than 0\.6 s"):
        ensure(one(DATA, origin.url("/a")), root=root, progress=False)


def test_an_interim_answer_is_no_answer(origin: Origin, root: Path) -> None:
    def patient(exchange: Any) -> None:
        exchange.handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 3)
        exchange.good()

    origin.put("/a", DATA, always=patient)
    assert ensure(one(DATA, origin.url("/a")), root=root, progress=False)["sam2"].read_bytes() == DATA


@pytest.mark.parametrize(
    ("scheme", "timeout", "timers"),
    [("", 5.0, []), ("http", 5.0, []), ("https", None, []), ("https", 5.0, [5.0])],
)
def test_only_tls_within_tls_costs_a_thread(
    scheme: str, timeout: float | None, timers: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[float] = []

    class Timer:
        daemon = False

        def __init__(self, seconds: float, _work: object) -> None:
            self.seconds = seconds

        def start(self) -> None:
            started.append(self.seconds)

        def cancel(self) -> None:
            pass

    class Connection:
        def __init__(self) -> None:
            self.proxy, self.timeout, self.is_connected = (
                SimpleNamespace(scheme=scheme) if scheme else None,
                timeout,
                False,
            )

        def connect(self) -> None:
            self.is_connected = True

    monkeypatch.setattr(read_deadline.threading, "Timer", Timer)
    connection = read_deadline.timed(Connection)()
    connection.connect()
    assert connection.is_connected
    assert started == timers
