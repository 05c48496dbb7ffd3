"""A declared sha256 judges the bytes, and no validator or label of a server does: nothing is sent twice for those."""

from __future__ import annotations

import errno
import gzip
import itertools
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from origin import Exchange, Origin, Resource, broken
from origin import status as answer
from support import blob, one, sha256
from weightcache import DownloadError, IntegrityError, ensure
from weightcache._store.partial_directory import BLOCK

DATA = blob(3 * BLOCK + 77)
OTHER = blob(len(DATA), 9)

pytestmark = pytest.mark.usefixtures("one_connection")


def fetched(root: Path, *urls: str, data: bytes = DATA, **more: Any) -> bytes:
    return ensure(one(data, *urls, **more), root=root, progress=False)["sam2"].read_bytes()


def relabelled(headers: Callable[[], dict[str, str]], *, breaks: bool = True) -> Callable[[Exchange], None]:
    """Answer well but for some headers, and break off after a block and a bit of each answer."""

    def fault(exchange: Exchange) -> None:
        good, body = exchange.good_headers, exchange.body
        exchange.good_headers = lambda: {**good(), **headers()}  # type: ignore[method-assign]

        def cut(data: bytes | memoryview) -> None:
            body(data[: BLOCK + 9])
            if len(data) > BLOCK + 9:
                exchange.hang_up()
                raise OSError

        exchange.body = cut if breaks else body  # type: ignore[method-assign]
        exchange.good()

    return fault


COUNT = itertools.count()
LABELS: dict[str, Callable[[], dict[str, str]]] = {
    "an ETag of each node": lambda: {"ETag": f'"node-{next(COUNT)}"'},
    "a weak ETag of each node": lambda: {"ETag": f'W/"node-{next(COUNT)}"'},
    "no ETag, another date": lambda: {
        "ETag": "",
        "Last-Modified": f"Mon, 0{next(COUNT) % 9 + 1} Jan 2024 00:00:00 GMT",
    },
    "an invalid ETag": lambda: {"ETag": '"\xff \x01'},
    "aws-chunked": lambda: {"Content-Encoding": "aws-chunked"},
    "aws-chunked, with a comma": lambda: {"Content-Encoding": "aws-chunked,"},
    "binary": lambda: {"Content-Encoding": "binary"},
    "none": lambda: {"Content-Encoding": "none"},
    "identity, twice": lambda: {"Content-Encoding": "Identity, identity"},
    "utf-8": lambda: {"Content-Encoding": "utf-8"},
    "something unknown": lambda: {"Content-Encoding": "x-made-up"},
}


@pytest.mark.parametrize("size", [True, False])
@pytest.mark.parametrize("headers", LABELS.values(), ids=LABELS)
def test_a_label_does_not_send_the_file_again(
    headers: Callable[[], dict[str, str]], size: bool, origin: Origin, root: Path
) -> None:
    origin.put("/a", DATA, always=relabelled(headers))
    assert fetched(root, origin.url("/a"), size=size) == DATA
    assert origin.sent() <= 1.1 * len(DATA)


def test_a_server_that_answers_a_condition_with_the_whole_file(origin: Origin, root: Path) -> None:
    """Such as one that compares If-Range with the ETag of another node: it is not asked under a condition."""
    origin.put("/a", DATA, faults=[broken(BLOCK + 9)], etag='"x"')

    def strict(exchange: Exchange) -> None:
        exchange.resource = Resource(DATA, ranges="If-Range" not in exchange.request.headers)
        exchange.good()

    origin.files["/a"].always = strict
    assert fetched(root, origin.url("/a")) == DATA
    assert origin.sent() <= 1.1 * len(DATA)


@pytest.mark.parametrize("label", ["gzip", "aws-chunked, gzip", "gzip, aws-chunked", "identity, GZIP"])
@pytest.mark.parametrize("size", [True, False])
def test_what_is_really_compressed_is_decoded(label: str, size: bool, origin: Origin, root: Path) -> None:
    packed = gzip.compress(DATA, 1)

    def compressed(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Encoding": label, "Content-Length": len(packed)})
        exchange.body(packed)

    origin.put("/a", DATA, always=compressed)
    assert fetched(root, origin.url("/a"), size=size) == DATA


@pytest.mark.parametrize("size", [True, False])
def test_a_small_body_that_unpacks_to_a_large_one_fills_no_memory(size: bool, origin: Origin, root: Path) -> None:
    """With its size declared, no more than that is written; without, as much as the disk has, as of any mirror."""
    unpacked = 60 << 20
    packed = gzip.compress(bytes(unpacked), 1)
    origin.put("/a", b"", always=answer(200, {"Content-Encoding": "gzip"}, packed))
    tracemalloc.start()
    with pytest.raises(IntegrityError, match="more than 1000 bytes" if size else "actual   sha256"):
        fetched(root, origin.url("/a"), data=blob(1000), size=size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_a_part_of_a_stored_gz_file_is_of_use(origin: Origin, root: Path) -> None:
    """S3 gives a .gz file in parts with the label that it was uploaded with; the whole length decides."""
    packed = gzip.compress(DATA, 1)
    origin.put("/a", packed, always=relabelled(lambda: {"Content-Encoding": "gzip"}))
    assert fetched(root, origin.url("/a"), data=packed) == packed
    assert origin.sent() <= 1.1 * len(packed)


def test_a_file_that_changes_to_the_right_one(origin: Origin, root: Path) -> None:
    """Half of the old file and half of the new one are wiped, and the new one is fetched in one answer."""
    old = Resource(OTHER, etag='"old"')
    origin.put("/a", DATA, faults=[lambda x: broken(BLOCK + 9)(Exchange(x.origin, x.handler, old, x.request))])
    assert fetched(root, origin.url("/a")) == DATA
    assert origin.sent() <= 2.1 * len(DATA)


@pytest.mark.parametrize("etags", [('"old"', '"new"'), (None, None), ('"same"', '"same"')])
def test_a_file_that_changes_to_a_wrong_one(etags: tuple[str | None, str | None], origin: Origin, root: Path) -> None:
    new = Resource(OTHER, etag=etags[1])
    origin.put("/a", DATA, etag=etags[0], faults=[broken(BLOCK + 9)])
    origin.files["/a"].always = lambda x: Exchange(x.origin, x.handler, new, x.request).good()
    with pytest.raises(IntegrityError) as caught:
        fetched(root, origin.url("/a"))
    assert origin.sent() <= 2.6 * len(DATA)
    if etags[0] != '"same"':  # else the server itself says that both halves are of one file
        assert caught.value.actual == sha256(OTHER)


def test_a_file_of_another_length_is_not_joined(origin: Origin, root: Path) -> None:
    longer = Resource(DATA + b"!")
    origin.put("/a", DATA, faults=[broken(BLOCK + 9)])
    origin.files["/a"].always = lambda x: Exchange(x.origin, x.handler, longer, x.request).good()
    with pytest.raises(DownloadError):
        fetched(root, origin.url("/a"), size=False)
    assert origin.sent() <= 2.6 * len(DATA)


def test_a_read_of_a_local_file_that_fails_once_is_tried_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system."""
    (tmp_path / "local.pt").write_bytes(DATA)
    real, failures = os.readv, [errno.EIO]

    def readv(descriptor: int, buffers: Any) -> int:
        if failures:
            raise OSError(failures.pop(), "Input/output error")
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "readv", readv)
    assert fetched(root, (tmp_path / "local.pt").as_uri()) == DATA
    assert failures == []
