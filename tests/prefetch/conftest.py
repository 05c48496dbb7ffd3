"""Fixtures: files to read, and a check after each test that a prefetch left nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefetching import LARGE, all_memfds, descriptors, memfds, others, readers
from weightcache._prefetch import memory_limit as prefetch_memory


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    others.clear()
    others.update(all_memfds())
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("weightcache-prefetch"):
            thread.join(30)
    assert (descriptors(tmp_path), memfds(), readers(), prefetch_memory.reservations) == ([], [], [], {})


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files: of several chunks, of a few bytes, and of none."""
    paths = []
    for name, data in (("large", LARGE), ("small", b"small"), ("empty", b"")):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    return paths
