"""How long new memory takes, which does not make a storage look slow."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest

from weightcache import prefetch_files
from weightcache._prefetch import page_cost as module
from weightcache._prefetch import reader_pool
from weightcache._prefetch.page_cost import MOST, SAMPLE, page_cost
from weightcache._prefetch.prefetched_file import READ_CHUNK
from weightcache.torch import load_state_dict


def test_the_time_of_the_first_mebibyte_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5.0, 5.001, 9.0, 9.1])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    memory = memoryview(mmap.mmap(-1, 4 * SAMPLE))
    assert page_cost(memory, 3 * SAMPLE) == pytest.approx(0.003)
    assert page_cost(memory, 3 * SAMPLE) == MOST  # another process had the processor


def test_where_it_cannot_be_measured_it_is_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert page_cost(memoryview(mmap.mmap(-1, SAMPLE - 1)), READ_CHUNK) == 0
    memory = memoryview(mmap.mmap(-1, SAMPLE))
    monkeypatch.setattr(module.os, "preadv", lambda *_: (_ for _ in ()).throw(OSError))
    assert page_cost(memory, READ_CHUNK) == 0
    monkeypatch.setattr(module.os, "open", lambda *_: (_ for _ in ()).throw(OSError))
    assert page_cost(memory, READ_CHUNK) == 0


@pytest.mark.parametrize("into", ["memory", "cache", "tensors"])
def test_a_pool_measures_it_once_and_reads_the_right_bytes(
    into: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(reader_pool, "page_cost", lambda memory, size: sizes.append(size) or page_cost(memory, size))
    numbers = bytes(range(256)) * (3 * READ_CHUNK // 256)
    if into == "tensors":
        found = load_state_dict(_safetensors(tmp_path / "all.safetensors", numbers))
        assert bytes(found["numbers"].numpy()) == numbers
    else:
        (tmp_path / "weights").write_bytes(numbers)
        with prefetch_files(tmp_path / "weights", into=into, threads=4) as reading:
            assert reading.wait()
            assert Path(reading.path(tmp_path / "weights")).read_bytes() == numbers
    assert sizes == ([] if into == "cache" else [READ_CHUNK])


def _safetensors(path: Path, numbers: bytes) -> Path:
    torch: Any = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    save({"numbers": torch.frombuffer(bytearray(numbers), dtype=torch.uint8)}, path)
    return path
