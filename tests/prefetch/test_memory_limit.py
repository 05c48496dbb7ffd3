"""Prefetch: how much memory it takes, of the container, the cgroup and this process."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from prefetching import LARGE, Gate, memfds
from weightcache import prefetch_files
from weightcache._prefetch import memory_limit as prefetch_memory
from weightcache._prefetch import prefetcher as prefetch_reader
from weightcache._prefetch.prefetched_file import READ_CHUNK


def test_what_does_not_fit_into_memory_is_not_read(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_reader, "free_memory", lambda: 1000.0)
    with prefetch_files(*files, into="memory") as handle:
        assert handle.path(files[0]) == str(files[0])
        assert handle.path(files[1]) != str(files[1])
        assert "16.8 MB do not fit into memory" in handle.stats.skipped[0]


@pytest.mark.parametrize(
    ("texts", "free"),
    [
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable:    1000 kB\n"}, 1024000),
        ({"meminfo": "MemAvailable: 1000 kB\n", "memory.max": "max\n", "memory.current": "5"}, 1024000),
        (
            {
                "meminfo": "MemAvailable: 1000 kB\n",
                "memory.max": "600000",
                "memory.current": "500000",
                "memory.stat": "anon 1\ninactive_file 400000\n",
            },
            500000,
        ),
        (
            {
                "meminfo": "MemAvailable: 1000 kB\n",
                "memory.limit_in_bytes": "600000",
                "memory.usage_in_bytes": "500000",
                "memory.stat": "inactive_file 0\ntotal_inactive_file 100000",
            },
            200000,
        ),
        ({}, float("inf")),
    ],
)
def test_the_memory_of_a_container(texts: dict[str, str], free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def text(path: str) -> str:
        try:
            return texts[os.path.basename(path)]
        except KeyError:
            raise FileNotFoundError(path) from None

    monkeypatch.setattr(prefetch_memory, "_text", text)
    assert prefetch_memory.free_memory() == pytest.approx(prefetch_memory.MEMORY_SHARE * free)


@pytest.mark.parametrize(
    ("limited", "free"),
    [
        ({"/sys/fs/cgroup/a/b/memory.max": "70000", "/sys/fs/cgroup/a/b/memory.current": "20000"}, 50000),
        ({"/sys/fs/cgroup/a/memory.max": "70000", "/sys/fs/cgroup/a/memory.current": "10000"}, 60000),
        ({"/sys/fs/cgroup/memory.max": "70000", "/sys/fs/cgroup/memory.current": "0"}, 70000),
        (
            {
                "/sys/fs/cgroup/memory/c/memory.limit_in_bytes": "70000",
                "/sys/fs/cgroup/memory/c/memory.usage_in_bytes": "30000",
            },
            40000,
        ),
        ({}, 1024000),
    ],
)
def test_the_memory_of_the_cgroup_and_of_those_around_it(
    limited: dict[str, str], free: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of a container the top has no limit, and the service's own cgroup may have one."""
    texts = {"/proc/meminfo": "MemAvailable: 1000 kB\n", "/proc/self/cgroup": "4:cpu,memory:/c\n0::/a/b\n", **limited}

    def text(path: str) -> str:
        try:
            return texts[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    monkeypatch.setattr(prefetch_memory, "_text", text)
    assert prefetch_memory.free_memory() == pytest.approx(prefetch_memory.MEMORY_SHARE * free)


def test_memory_is_not_promised_twice(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first is read, all of its memory seems to be free."""
    monkeypatch.setattr(prefetch_memory, "_cgroups", list)
    monkeypatch.setattr(prefetch_memory, "_meminfo", lambda: 1.5 * len(LARGE) / prefetch_memory.MEMORY_SHARE)
    gate = Gate(monkeypatch)
    with prefetch_files(files[0], into="memory", threads=1) as handle:
        assert gate.reached.wait(60)
        with prefetch_files(files[0], into="memory", threads=1) as second:
            assert second.wait(0) is False
            assert "16.8 MB do not fit into memory, 8.4 MB are free" in second.stats.skipped[0]
        gate.go_on.set()
        assert handle.wait(60)
        assert prefetch_memory.free_memory() == pytest.approx(1.5 * len(LARGE))  # taken, as the machine would report
    with prefetch_files(files[0], into="memory") as third:
        assert third.wait(60)


def test_a_promise_shrinks_as_memory_is_taken(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    promised, read = [], prefetch_reader.read_chunk

    def noting(*args: Any) -> int:
        promised.append(sum(prefetch_memory.reservations.values()))
        return read(*args)

    monkeypatch.setattr(prefetch_reader, "read_chunk", noting)
    with prefetch_files(*files, into="memory", threads=1) as handle:
        assert handle.wait(60)
    assert promised == [len(LARGE) + 5, len(LARGE) + 5 - READ_CHUNK, len(LARGE) + 5 - 2 * READ_CHUNK, 5]


def test_memory_of_many_files_leaves_the_process_files_to_open(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(300)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with prefetch_files(*paths, into="memory") as handle:
            assert not handle.wait(60)
            assert len(memfds()) == 64
            assert Path(handle.path(paths[-1])).read_bytes() == b"x" * 299  # the largest have room
            assert handle.path(paths[0]) == str(paths[0])
            assert "each takes one of the 256 that may be open" in handle.stats.skipped[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_memory_of_this_machine() -> None:
    assert 0 < prefetch_memory.free_memory() < 1 << 50
