"""Answers that no server should give: each is a `DownloadError` that can be shown, and the next mirror is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from origin import Origin, redirect
from support import blob, one
from weightcache import DownloadError, ensure
from weightcache._store.partial_directory import BLOCK

DATA = blob(BLOCK + 777)
NINES = b"9" * 5000  # int() of more than 4300 digits raises

HEADS: dict[str, bytes] = {
    "a range without end": b"206 P\r\nContent-Range: bytes 0-" + NINES + b"/*\r\nContent-Length: 100",
    "a range of a file without end": b"206 P\r\nContent-Range: bytes 0-99/" + NINES + b"\r\nContent-Length: 100",
    "a range from beyond": b"206 P\r\nContent-Range: bytes " + NINES + b"-" + NINES + b"/*\r\nContent-Length: 100",
    "a length without end": b"200 OK\r\nContent-Length: " + NINES,
    "a large length": b"200 OK\r\nContent-Length: 99999999999999999",
    "two lengths": b"200 OK\r\nContent-Length: 50\r\nContent-Length: 60",
    "a negative length": b"200 OK\r\nContent-Length: -1",
    "a long wait": b"503 X\r\nRetry-After: " + NINES + b"\r\nContent-Length: 0",
    "a year without end": b"503 X\r\nRetry-After: Wed, 21 Oct 99999999 07:28:00 GMT\r\nContent-Length: 0",
    "a limit without end": b'403 X\r\nRateLimit: "a";r=0;t=' + NINES + b"\r\nContent-Length: 0",
    "a status without end": NINES + b" X\r\nContent-Length: 0",
    "no status": b"099 X\r\nContent-Length: 0",
    "an ETag of no text": b'200 OK\r\nETag: "\xff\x01"\r\nContent-Length: 50',
    "nested compressions": b"200 OK\r\nContent-Encoding: gzip" + b", gzip" * 200 + b"\r\nContent-Length: 50",
    "an unknown host": b"302 F\r\nLocation: http://xn--/\r\nContent-Length: 0",
    "a host that is too long": b"302 F\r\nLocation: http://" + b"a" * 70_000 + b"/\r\nContent-Length: 0",
    "a port without end": b"302 F\r\nLocation: http://a:" + NINES + b"/\r\nContent-Length: 0",
    "a flood of headers": b"200 OK\r\n" + b"X: y\r\n" * 1000 + b"Content-Length: 50",
    "a header without end": b"200 OK\r\nX: " + b"y" * 200_000 + b"\r\nContent-Length: 50",
    "a chunk without end": b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000,
    "a negative chunk": b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5",
    "a deep error": b"403 X\r\nContent-Length: 4000\r\n\r\n" + b"[" * 4000,
    "an error without end": b'403 X\r\nContent-Length: 5050\r\n\r\n{"code": ' + NINES,
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first request be for a part."""
    monkeypatch.setattr("weightcache._transfer.file_transfer.PART", BLOCK)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("size", [True, False])
def test_an_answer_that_no_server_should_give(
    head: bytes, size: bool, origin: Origin, mirror: Origin, root: Path
) -> None:
    def hostile(exchange: Any) -> None:
        exchange.handler.wfile.write(b"HTTP/1.1 " + head + b"\r\n\r\n" + b"x" * 50)
        exchange.hang_up()

    origin.put("/a", DATA, always=hostile)
    mirror.put("/b", DATA)
    with pytest.raises(DownloadError) as caught:
        ensure(one(DATA, origin.url("/a"), size=size), root=root, progress=False)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).replace("\n", "").isprintable()
    weights = ensure(one(DATA, origin.url("/a"), mirror.url("/b"), size=size), root=root, progress=False)
    assert weights["sam2"].read_bytes() == DATA


def test_ten_redirects_are_followed_and_no_eleventh(origin: Origin, root: Path) -> None:
    origin.put("/11", DATA)
    for number in range(11):
        origin.put(f"/{number}", DATA, always=redirect(f"/{number + 1}"))
    assert ensure(one(DATA, origin.url("/1")), root=root, progress=False)["sam2"].read_bytes() == DATA
    with pytest.raises(DownloadError, match=r"more than 10 redirects, the last to .*/11 "):
        ensure(one(DATA, origin.url("/0")), root=root / "other", progress=False)
