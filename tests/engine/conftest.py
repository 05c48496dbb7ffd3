"""Fixtures: a file and a directory, as training leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trained import DATA, FILES, write


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A file, as training leaves it."""
    path = tmp_path / "out" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory, as training leaves it."""
    return write(tmp_path / "run", FILES)
