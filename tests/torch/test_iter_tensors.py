"""`iter_tensors`: tensors come while others are read, in bounded memory, and nothing stays open."""

from __future__ import annotations

from pathlib import Path

import pytest

from torch_files import assert_identical, write_shards
from weightcache._prefetch.range_reader import RangeReader
from weightcache.torch import iter_tensors

torch = pytest.importorskip("torch")


def test_tensors_are_those_of_the_directory(tmp_path: Path) -> None:
    expected = write_shards(tmp_path)
    assert_identical(dict(iter_tensors(tmp_path)), expected)
    with RangeReader(2) as reader:
        assert list(reader.fill([])) == []
