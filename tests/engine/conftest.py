"""Fixtures: a file and a directory, as training leaves them; and containers that share a Volume."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tagging import Container, Make
from trained import DATA, FILES, write
from volume_model import Volume


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


@pytest.fixture
def shared(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "server")


@pytest.fixture
def container(shared: Volume, tmp_path: Path) -> Make:
    """Start another container that mounts the shared Volume."""
    numbers = itertools.count()

    def make() -> Container:
        folder = tmp_path / f"container-{next(numbers)}"
        folder.mkdir()
        return Container(shared, folder)

    return make
