"""`weightcache bench`: what it reads, and what it makes of it. Its figures are nobody's to assert."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from support import blob
from weightcache import NotCachedError, StorageError, publish
from weightcache._prefetch.prefetched_file import READ_CHUNK
from weightcache.cli import bench
from weightcache.cli.bench import COMBINATIONS, MIB
from weightcache.cli.main import main


@pytest.fixture
def filled(root: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "large.bin").write_bytes(blob(5 * READ_CHUNK + 3))
    (folder / "small.bin").write_bytes(b"small")
    (folder / "empty").write_bytes(b"")
    publish(folder, name="w", root=root)
    (root / "w" / "stranger").write_bytes(b"not published")
    return root


def test_it_reads_and_tells(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--root", str(filled), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["bytes"]) == (3, 5 * READ_CHUNK + 8)
    assert sum(way["bytes"] for way in told["ways"]) == told["bytes"]  # each byte is read by one way
    assert all(way["first"] > 0 and way["again"] > 0 for way in told["ways"])
    assert main(["bench", "--root", str(filled)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["chunk", "at", "once", "read", "first", "again"]
    assert len(said) == len(told["ways"]) + 2


def test_no_two_ways_read_the_same_bytes_and_none_more_than_its_share() -> None:
    sizes = {"a": 40 * READ_CHUNK + 1, "b": 3, "c": 100 * READ_CHUNK}
    shares = bench._shares(sizes, 10**12)
    pieces = sorted(piece for share in shares for piece in share)
    assert all(first[0] != second[0] or first[2] <= second[1] for first, second in itertools.pairwise(pieces))
    assert sum(end - start for _, start, end in pieces) == sum(sizes.values())
    counts = [sum(end - start for _, start, end in share) for share in shares]
    assert max(counts) - min(counts) <= 4 * READ_CHUNK
    few = bench._shares(sizes, 1000)  # at most what is asked for, though a piece is larger
    assert sum(end - start for share in few for _, start, end in share) == 1000
    limited = bench._shares(sizes, 8 * len(COMBINATIONS) * READ_CHUNK)
    assert [sum(end - start for _, start, end in share) for share in limited] == [8 * READ_CHUNK] * len(COMBINATIONS)


def test_of_many_files_it_reads_the_largest_and_never_opens_all() -> None:
    shares = bench._shares({str(size): size for size in range(1, 10_001)}, 10**12)
    read = {int(path) for share in shares for path, _, _ in share}
    assert read == set(range(10_001 - bench.MAX_FILES, 10_001))


def test_a_file_that_is_gone_is_a_storage_error(filled: Path) -> None:
    there = next(filled.glob("w/*/small.bin"))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StorageError, match=r"cannot read .*gone"):
        bench._read([(str(there), 0, 5), (f"{there}-gone", 0, 5)], MIB, 1)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("rates", "threads", "said"),
    [
        (
            [100, 100, 400, 800, 810, 805, 300, 700],
            8,
            "prefetch(..., threads=8): all 1.0 GB take 1.2 s, one stream takes",
        ),
        ([100, 110, 400, 500, 900, 950, 300, 700], 16, "threads=16"),
        ([500, 510, 505, 500, 480, 470, 500, 500], 1, "one stream is as fast as several here (500.0 MB/s)"),
        ([4000, 4000, 4000, 4000, 4000, 4000, 4000, 4000], 1, "cached already"),
    ],
)
def test_its_advice(rates: list[int], threads: int, said: str) -> None:
    ways = [
        bench.Measured(chunk, count, 10 * MIB, rate * 1e6, 5000 * 1e6)
        for (chunk, count), rate in zip(COMBINATIONS, rates, strict=True)
    ]
    advice = bench._advice(ways, 10**9)
    assert advice["threads"] == threads
    assert said in advice["advice"]
    assert advice["warm"] == ("cached already" in said)


def test_it_gives_no_advice_on_too_little() -> None:
    def measured(count: int) -> bench.Measured:
        return bench.Measured(MIB, 1, count, 1e6, 5e9)

    for ways in ([measured(READ_CHUNK - 1)] * len(COMBINATIONS), [measured(10 * READ_CHUNK)]):
        assert "too little to measure" in bench._advice(ways, READ_CHUNK)["advice"]


def test_where_nothing_is_published(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--root", str(root)]) == 1
    assert "nothing is published" in capsys.readouterr().err
    with pytest.raises(NotCachedError, match="nothing to read"):
        bench.bench(str(root), 10**9)
    with pytest.raises(SystemExit):
        main(["bench", "--root", str(root), "--size", "0"])


def test_a_file_that_cannot_be_read(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StorageError, match=r"cannot read .*: Input/output error"):
        bench.bench(str(filled), 10**9)
