"""Reads that bypass the page cache: when they are used, and that the bytes are the same."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from prefetching import descriptors
from support import blob
from weightcache import prefetch_files
from weightcache._prefetch import direct_reads, prefetched_file
from weightcache._prefetch import prefetcher as prefetch_reader
from weightcache._prefetch.direct_reads import TRIAL, DirectReads

CHUNK = 64 << 10
LARGE = blob(16 * CHUNK + 12345)
MIB = 1 << 20


def decided(plain: float, direct: float) -> list[bool]:
    """Report reads of 8 MiB that take so many seconds, and return what is wanted of chunk 0 and chunk 1 after each."""
    reads, answers = DirectReads(allowed=True), []
    for _ in range(TRIAL + 1):
        answers.append(reads.wanted(8 * MIB, 8 * MIB))
        reads.ended(direct=False, count=8 * MIB, seconds=plain)
    for _ in range(TRIAL):
        assert not reads.wanted(0, 8 * MIB)
        reads.ended(direct=True, count=8 * MIB, seconds=direct)
    return [*answers, reads.wanted(0, 8 * MIB), reads.wanted(8 * MIB, 8 * MIB)]


def test_cached_reads_stay_plain() -> None:
    assert decided(plain=0.004, direct=0.001) == [False] * (TRIAL + 3)


def test_slow_reads_alternate_until_the_better_way_is_known() -> None:
    assert decided(plain=0.07, direct=0.07) == [False, *[True] * TRIAL, True, True]
    assert decided(plain=0.07, direct=0.08) == [False, *[True] * TRIAL, False, False]


def test_small_reads_and_unaligned_ones_are_never_direct() -> None:
    reads = DirectReads(allowed=True)
    reads.ended(direct=False, count=100, seconds=1.0)
    assert not reads.wanted(8 * MIB, 8 * MIB)
    reads.ended(direct=False, count=MIB, seconds=1.0)
    assert reads.wanted(8 * MIB, 8 * MIB)
    assert not reads.wanted(8 * MIB + 1, 8 * MIB)


def test_what_is_not_allowed_or_refused_is_not_wanted() -> None:
    forbidden, refused = DirectReads(allowed=False), DirectReads(allowed=True)
    for reads in (forbidden, refused):
        reads.ended(direct=False, count=MIB, seconds=1.0)
    refused.refused()
    assert not forbidden.wanted(8 * MIB, 8 * MIB)
    assert not refused.wanted(8 * MIB, 8 * MIB)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Make every read slow and count, and note of each whether it is direct."""
    monkeypatch.setattr(prefetch_reader, "READ_CHUNK", CHUNK)
    monkeypatch.setattr(prefetched_file, "READ_CHUNK", CHUNK)
    monkeypatch.setattr(direct_reads, "COUNTED_BYTES", 0)
    monkeypatch.setattr(direct_reads, "SLOW", float("inf"))
    monkeypatch.setattr(direct_reads, "TOLERATED", float("inf"))
    noted: list[bool] = []
    preadv = os.preadv

    def reading(descriptor: int, buffers: Any, position: int) -> int:
        noted.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
        return preadv(descriptor, buffers, position)

    monkeypatch.setattr(os, "preadv", reading)
    return noted


def is_direct_here(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_into_memory_the_bytes_are_the_same_to_the_last(tmp_path: Path, ways: list[bool]) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    if not is_direct_here(tmp_path / "large"):
        pytest.skip("this file system has no O_DIRECT")
    with prefetch_files(tmp_path / "large", into="memory", threads=1) as handle:
        assert Path(handle.path(tmp_path / "large")).read_bytes() == LARGE
        assert descriptors(tmp_path) == []
    assert ways == [False, True] * TRIAL + [False] + [True] * (17 - 2 * TRIAL - 1)


def test_into_the_cache_no_read_bypasses_it(tmp_path: Path, ways: list[bool]) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    assert prefetch_files(tmp_path / "large", threads=1).wait(60)
    assert ways == [False] * 17


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOENT])
def test_a_file_system_that_refuses_them_gets_plain_reads(
    number: int, tmp_path: Path, ways: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    opened = os.open

    def refusing(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refusing)
    with prefetch_files(tmp_path / "large", into="memory", threads=1) as handle:
        assert Path(handle.path(tmp_path / "large")).read_bytes() == LARGE
    assert ways == [False] * 17


def test_a_direct_read_that_fails_is_read_again_plainly(
    tmp_path: Path, ways: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    if not is_direct_here(tmp_path / "large"):
        pytest.skip("this file system has no O_DIRECT")
    reading = os.preadv

    def refusing(descriptor: int, buffers: Any, position: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return reading(descriptor, buffers, position)

    monkeypatch.setattr(os, "preadv", refusing)
    with prefetch_files(tmp_path / "large", into="memory", threads=1) as handle:
        assert Path(handle.path(tmp_path / "large")).read_bytes() == LARGE
    assert ways == [False] * 17
