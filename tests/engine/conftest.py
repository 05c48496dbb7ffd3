"""Fixtures: a file and a directory, as training leaves them; and containers that share a Volume."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tagging import Container, Make
from volume_model import Volume


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
