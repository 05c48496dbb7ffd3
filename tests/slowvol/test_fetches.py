"""What benchmarks/slowvol fetches, how long that takes, and what it keeps."""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from slow_volume import BLOCK, BLOCKS, DATA, FAST, MINUTE, SHA256, digest, pread
from slowvol import SlowVolume
from support import sha256, until


def test_one_byte_fetches_its_block_and_no_other(volume: SlowVolume, weights: Path) -> None:
    assert pread(weights, 1, 2 * BLOCK) == DATA[2 * BLOCK : 2 * BLOCK + 1]
    told = volume.stats()
    assert (told["blocks_fetched"], told["bytes_fetched"]) == (1, BLOCK)
    assert pread(weights, 1, len(DATA) - 1) == DATA[-1:]
    told = volume.stats()
    assert (told["blocks_fetched"], told["bytes_fetched"]) == (2, BLOCK + len(DATA) % BLOCK)
    assert pread(weights, 1, 2 * BLOCK + BLOCK // 2) == DATA[2 * BLOCK + BLOCK // 2 :][:1]
    assert volume.stats()["blocks_fetched"] == 2


def test_one_byte_of_a_mapping_fetches_its_block_and_no_other(volume: SlowVolume, weights: Path) -> None:
    with open(weights, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert volume.stats()["blocks_fetched"] == 0
        assert mapping[3 * BLOCK + BLOCK // 2] == DATA[3 * BLOCK + BLOCK // 2]
        assert volume.stats()["blocks_fetched"] == 1


def test_metadata_fetches_nothing(volume: SlowVolume, weights: Path) -> None:
    list(volume.path.rglob("*"))
    with open(weights, "rb") as stream:
        assert os.fstat(stream.fileno()).st_size == len(DATA)
    told = volume.stats()
    assert (told["blocks_fetched"], told["reads"], told["opens"]) == (0, 0, 1)


class Stuck:
    """Readers, each at one offset, of a volume whose blocks take a minute."""

    def __init__(self, backing: Path, offsets: list[int]) -> None:
        self.volume = SlowVolume(backing, **{**FAST, "latency": MINUTE})
        self.failures: list[int | None] = []
        self.threads = [threading.Thread(target=self.read, args=(at,), daemon=True) for at in offsets]

    def read(self, at: int) -> None:
        try:
            pread(self.volume.path / "models" / "weights.pt", 1, at)
        except OSError as error:
            self.failures.append(error.errno)

    def __enter__(self) -> dict[str, float]:
        self.volume.__enter__()
        for thread in self.threads:
            thread.start()
        try:
            until(lambda: self.volume.stats()["reads"] == len(self.threads))
            return self.volume.stats()
        except BaseException:
            self.volume.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.volume.close()
        for thread in self.threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self.threads)
        assert set(self.failures) <= {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
        assert len(self.failures) == len(self.threads)


def test_two_readers_of_one_block_wait_for_one_fetch(backing: Path) -> None:
    with Stuck(backing, [0, BLOCK // 2]) as told:
        assert (told["waits"], told["blocks_fetched"], told["max_streams"]) == (2, 1, 1)


def test_readers_of_several_blocks_wait_for_as_many_streams(backing: Path) -> None:
    with Stuck(backing, [number * BLOCK for number in range(BLOCKS)]) as told:
        assert (told["waits"], told["blocks_fetched"], told["max_streams"]) == (BLOCKS, BLOCKS, BLOCKS)


def test_forty_reads_wait_at_once_and_a_directory_is_listed_meanwhile(backing: Path) -> None:
    stuck = Stuck(backing, [number * (128 << 10) for number in range(40)])
    with stuck as told:
        assert told["waits"] == 40
        assert sorted(os.listdir(stuck.volume.path)) == ["current.pt", "models"]
        assert (stuck.volume.path / "models" / "empty").read_bytes() == b""


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [
        ({"latency": 0.025}, 0.025),
        ({"stream": 50e6}, BLOCK / 50e6),
        ({"latency": 0.01, "stream": 50e6}, 0.01 + BLOCK / 50e6),
        ({"total": 50e6}, BLOCK / 50e6),
        ({"latency": 0.01, "stream": 200e6, "total": 50e6}, 0.01 + BLOCK / 50e6),
    ],
    ids=str,
)
def test_a_block_takes_the_latency_and_its_bytes_at_the_slower_rate(
    parameters: dict[str, float], seconds: float, backing: Path
) -> None:
    with SlowVolume(backing, **{**FAST, **parameters}) as volume:
        assert pread(volume.path / "current.pt", 1, 0) == DATA[:1]
        assert volume.stats()["wait_seconds"] == pytest.approx(seconds, abs=2e-6)


def test_two_blocks_at_once_share_the_line_and_not_a_stream(backing: Path) -> None:
    def wait(**parameters: float) -> float:
        with SlowVolume(backing, **{**FAST, **parameters}) as volume, mmap.mmap(-1, 8192) as room:
            fd = os.open(volume.path / "current.pt", os.O_RDONLY | os.O_DIRECT)
            assert os.preadv(fd, [room], BLOCK - 4096) == 8192  # one request over the boundary of two blocks
            os.close(fd)
            told = volume.stats()
        assert (told["reads"], told["blocks_fetched"], told["max_streams"]) == (1, 2, 2)
        return told["wait_seconds"]

    assert wait(latency=0.01, stream=50e6) == pytest.approx(0.01 + BLOCK / 50e6, abs=2e-6)
    assert wait(latency=0.01, total=50e6) == pytest.approx(0.01 + 2 * BLOCK / 50e6, abs=2e-6)


def test_what_was_fetched_stays_until_it_is_evicted(volume: SlowVolume, weights: Path) -> None:
    assert digest(weights) == SHA256
    volume.reset()
    assert digest(weights) == SHA256
    told = volume.stats()
    assert (told["blocks_fetched"], told["reads"], told["opens"]) == (0, 0, 1)
    volume.evict()
    assert digest(weights) == SHA256
    told = volume.stats()
    assert (told["blocks_fetched"], told["bytes_fetched"]) == (BLOCKS, len(DATA))
    assert told["bytes_read"] == len(DATA)


def test_eviction_reaches_files_that_are_open_and_mapped(volume: SlowVolume, weights: Path) -> None:
    with open(weights, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert sha256(mapping[:]) == SHA256
        volume.evict()
        volume.reset()
        assert sha256(mapping[:BLOCK]) == sha256(DATA[:BLOCK])
        assert volume.stats()["blocks_fetched"] >= 1
        assert sha256(os.pread(stream.fileno(), len(DATA), 0)) == SHA256
        assert volume.stats()["blocks_fetched"] == BLOCKS


def test_eviction_reaches_every_path_of_a_file(volume: SlowVolume, weights: Path) -> None:
    paths = [weights, volume.path / "models" / "deep" / "again.pt"]
    for path in paths:
        assert digest(path) == SHA256
    volume.evict()
    volume.reset()
    for path in paths:
        assert digest(path) == SHA256
    assert volume.stats()["bytes_read"] == 2 * len(DATA)


@pytest.mark.parametrize(
    ("cache", "read", "fetched"), [("pages", 0, 0), ("blocks", len(DATA), 0), ("nothing", len(DATA), BLOCKS)]
)
def test_what_is_kept_when_a_file_is_opened_again(cache: str, read: int, fetched: int, backing: Path) -> None:
    with SlowVolume(backing, **FAST, cache=cache) as volume:
        path = volume.path / "models" / "weights.pt"
        assert digest(path) == SHA256
        assert volume.stats()["blocks_fetched"] == BLOCKS
        volume.reset()
        assert digest(path) == SHA256
        told = volume.stats()
        assert (told["bytes_read"], told["blocks_fetched"]) == (read, fetched)


def test_the_counters_are_a_file_of_the_volume(volume: SlowVolume, weights: Path) -> None:
    assert digest(weights) == SHA256
    path = volume.path / ".slowvol" / "stats"
    told = json.loads(subprocess.run(["cat", path], check=True, capture_output=True).stdout)
    names = "blocks_fetched bytes_fetched reads bytes_read waits wait_seconds max_streams opens cpu_seconds"
    assert list(told) == names.split()
    assert (told["opens"], told["bytes_read"]) == (1, len(DATA))
    assert told["cpu_seconds"] > 0
    assert stat.S_ISREG(path.stat().st_mode)
    assert ".slowvol" not in os.listdir(volume.path)
    volume.reset()
    told = volume.stats()
    assert told.pop("cpu_seconds") < 60
    assert set(told.values()) == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sets the read-ahead")
def test_the_kernel_reads_ahead_as_far_as_it_was_told(backing: Path) -> None:
    with SlowVolume(backing, **FAST, readahead=1 << 20) as volume:
        device = volume.path.stat().st_dev
        limit = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        assert int(limit.read_text()) == 1024
