"""The volume that benchmarks read on (benchmarks/slowvol): it has the bytes of a directory, and cannot be changed."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slow_volume import BLOCK, BLOCKS, DATA, SHA256, digest, pread
from slowvol import SlowVolume
from support import sha256


def test_a_whole_read(weights: Path) -> None:
    assert digest(weights) == SHA256


def test_reads_at_random_offsets(weights: Path) -> None:
    chance = random.Random(1)
    with open(weights, "rb") as stream:
        for _ in range(300):
            at, size = chance.randrange(len(DATA) + 1000), chance.choice([1, 100, 5000, 300_000, 3 * BLOCK])
            assert sha256(os.pread(stream.fileno(), size, at)) == sha256(DATA[at : at + size])


def test_reads_of_a_mapping(weights: Path) -> None:
    with open(weights, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        for at in random.Random(2).sample(range(len(DATA)), 300):
            assert mapping[at] == DATA[at]
        assert sha256(mapping[:]) == SHA256


def test_reads_past_the_page_cache(weights: Path) -> None:
    fd = os.open(weights, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 2 * BLOCK) as room:  # aligned to a page
        try:
            for at in range(0, len(DATA), 2 * BLOCK):
                size = os.preadv(fd, [room], at)
                assert sha256(room[:size]) == sha256(DATA[at : at + 2 * BLOCK])
        finally:
            os.close(fd)


def test_many_readers_at_once(volume: SlowVolume, weights: Path) -> None:
    wrong: list[int] = []

    def read(number: int) -> None:
        offsets = random.Random(number).sample(range(0, len(DATA), 50_000), 40)
        wrong.extend(at for at in offsets if pread(weights, 50_000, at) != DATA[at : at + 50_000])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert volume.stats()["blocks_fetched"] == BLOCKS
    assert volume.stats()["max_streams"] <= 2  # of one read over a boundary: nothing takes any time here


def test_the_tree_is_that_of_the_backing_directory(volume: SlowVolume, backing: Path) -> None:
    there = {path.relative_to(backing) for path in backing.rglob("*")}
    assert {path.relative_to(volume.path) for path in volume.path.rglob("*")} == there
    for path in there:
        seen, real = (volume.path / path).lstat(), (backing / path).lstat()
        for field in ("st_mode", "st_size", "st_ino", "st_nlink", "st_uid", "st_gid", "st_mtime_ns"):
            assert getattr(seen, field) == getattr(real, field), (path, field)
    assert (volume.path / "current.pt").readlink() == Path("models/weights.pt")
    assert digest(volume.path / "current.pt") == SHA256
    assert (volume.path / "models" / "empty").read_bytes() == b""
    assert os.statvfs(volume.path).f_blocks == os.statvfs(backing).f_blocks
    with pytest.raises(FileNotFoundError):
        (volume.path / "models" / "missing").stat()
    with pytest.raises(FileNotFoundError):
        (volume.path / "models" / "missing").open()


CHANGES: dict[str, Callable[[Path], Any]] = {
    "write": lambda root: os.open(root / "current.pt", os.O_WRONLY),
    "read and write": lambda root: os.open(root / "current.pt", os.O_RDWR),
    "write the counters": lambda root: os.open(root / ".slowvol" / "stats", os.O_WRONLY),
    "create": lambda root: os.open(root / "new", os.O_WRONLY | os.O_CREAT),
    "truncate": lambda root: os.truncate(root / "current.pt", 0),
    "unlink": lambda root: os.unlink(root / "current.pt"),
    "rename": lambda root: os.rename(root / "models", root / "renamed"),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "rmdir": lambda root: os.rmdir(root / "models" / "deep"),
    "symlink": lambda root: os.symlink("models", root / "new"),
    "link": lambda root: os.link(root / "models" / "weights.pt", root / "new"),
    "chmod": lambda root: os.chmod(root / "models", 0o700),
    "utime": lambda root: os.utime(root / "models"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_can_be_changed(volume: SlowVolume, change: Callable[[Path], Any]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # its number is what matters
        change(volume.path)
    assert caught.value.errno == errno.EROFS
