"""How much the service takes, how fast, and from how many at once."""

from __future__ import annotations

import io
import logging
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from PIL import Image

from fakes import FakeDetector, Gate, fake_backend
from fashion_crop.web.backend import Backend
from service_requests import UntilCancelled, begun, crops, error, image
from serving import Client, noise, photo, serving
from support import until


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(client: Client) -> None:
    with begun(client, "Content-Length: 21000000") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_a_length_is_counted_as_it_comes() -> None:
    with serving(fake_backend(), max_bytes=100_000) as client:
        with begun(client, "Transfer-Encoding: chunked") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            begin = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            connection.sendall(b"%x\r\n%b\r\n" % (len(begin), begin))
            for _ in range(17):  # 170,000 bytes, and no end of it
                connection.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        assert crops(client).status_code == 200


def test_a_photo_that_is_larger_by_less_than_a_form_has_is_refused_too() -> None:
    data = photo()
    with serving(fake_backend(), max_bytes=len(data)) as client:
        assert crops(client, data).status_code == 200
        response = crops(client, data + b"x")
    assert (response.status_code, error(response)["code"]) == (413, "image-too-large")


def test_a_photo_is_not_written_to_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # what a spooled file becomes
    with serving(fake_backend()) as client, serving(fake_backend(), max_bytes=1000):
        assert crops(client, noise(1000, 1000), prompts="shirt").status_code == 200  # 3 MB
        assert crops(client, bytes(20_000_100)).status_code == 413


def test_a_client_that_sends_nothing_is_sent_away() -> None:
    with serving(fake_backend(), grace=0.2, max_queue=0) as client:
        with begun(client, "Content-Length: 1000") as connection:
            answer = b""
            while b"}" not in answer:
                received = connection.recv(1000)
                assert received
                answer += received
        assert b"HTTP/1.1 408 " in answer
        assert b"too-slow" in answer
        until(lambda: client.post("/v1/detect", files=image()).status_code == 200)


def test_a_client_that_does_not_read_its_answer_loses_its_place(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fashion_crop")
    fields = {"prompts": ",".join(map(str, range(40))), "padding": "1", "background": "original"}
    with serving(fake_backend(), grace=3.0, slowest=1_000_000, max_queue=0) as client:
        buffer = io.BytesIO()
        Image.effect_noise((600, 600), 80).save(buffer, "JPEG", quality=5)
        data = buffer.getvalue()  # 30 kB, which are there at once, for an answer of many MB
        request = client.build_request("POST", "/v1/crops", files=image(data), data=fields)
        with begun_whole(client, request):
            until(lambda: "too slow" in caplog.text)
            until(lambda: client.post("/v1/detect", files=image()).status_code == 200)
        assert 'fashion_crop_requests_total{route="/v1/crops",status="499"} 1.0' in client.get("/metrics").text


def begun_whole(client: Client, request: httpx.Request) -> socket.socket:
    """Send a request, and leave it at that."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the answer does not fit into it
    connection.connect((client.base_url.host, client.base_url.port))
    head = f"{request.method} {request.url.raw_path.decode()} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection.sendall(head.encode() + b"\r\n" + request.read())
    return connection


@contextmanager
def in_background(
    held: FakeDetector, count: int, work: Callable[[], httpx.Response]
) -> Iterator[list[Future[httpx.Response]]]:
    with ThreadPoolExecutor(count) as pool:
        try:
            yield [pool.submit(work) for _ in range(count)]
        finally:
            held.gate.opened.set()  # else a test that fails never ends


def test_photos_queue_and_one_too_many_is_refused_at_once() -> None:
    held = FakeDetector(gate=Gate())
    with serving(fake_backend(held), workers=1, max_queue=2) as client:
        with in_background(held, 5, lambda: crops(client, prompts="shirt")) as answers:
            assert held.gate.entered.acquire(timeout=60)
            until(lambda: sum(each.done() for each in answers) == 2)
            assert len(held.calls) == 1  # two wait
            for path in ("/healthz", "/readyz", "/v1/info"):
                assert client.get(path).status_code == 200
            response = crops(client)
            assert (response.status_code, error(response)["code"]) == (503, "busy")
            assert int(response.headers["retry-after"]) > 0
            held.gate.opened.set()
        assert sorted(each.result().status_code for each in answers) == [200, 200, 200, 503, 503]
        assert crops(client).status_code == 200


def test_two_workers_work_at_once() -> None:
    held = FakeDetector(gate=Gate())
    with serving(fake_backend(held), workers=2, max_queue=1) as client:
        with in_background(held, 3, lambda: crops(client)) as answers:
            assert held.gate.entered.acquire(timeout=60)
            assert held.gate.entered.acquire(timeout=60)
            held.gate.opened.set()
        assert [each.result().status_code for each in answers] == [200, 200, 200]


def test_who_hangs_up_while_waiting_leaves_the_queue() -> None:
    held = FakeDetector(gate=Gate())
    with serving(fake_backend(held), workers=1, max_queue=1) as client:
        with in_background(held, 1, lambda: crops(client)) as at_work:
            assert held.gate.entered.acquire(timeout=60)
            with begun_whole(client, client.build_request("POST", "/v1/crops", files=image())):
                until(lambda: client.waiting() == 1)
                assert crops(client).status_code == 503
            until(lambda: client.waiting() == 0)
            with in_background(held, 1, lambda: crops(client)) as next_one:
                until(lambda: client.waiting() == 1)
        assert [each.result().status_code for each in (*at_work, *next_one)] == [200, 200]
    assert len(held.calls) == 2  # nothing was computed for the client that left


def test_who_hangs_up_ends_the_work() -> None:
    endless = UntilCancelled()
    with serving(Backend(endless), workers=1, max_queue=0) as client:
        with begun_whole(client, client.build_request("POST", "/v1/crops", files=image())):
            assert endless.began.wait(60)
            assert not endless.ended.is_set()
        assert endless.ended.wait(60)
        until(lambda: crops(client, b"text").status_code == 415)  # the place is free


def test_who_hangs_up_while_sending_leaves_its_place() -> None:
    with serving(fake_backend(), workers=1, max_queue=0) as client:
        with begun(client, "Content-Length: 1000") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            assert crops(client).status_code == 503
        until(lambda: crops(client).status_code == 200)
