"""Fixtures: a slow volume on a directory with files, and a skip where none can be mounted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import slowvol
from slow_volume import DATA, FAST
from slowvol import SlowVolume
from support import forbidden, lacking


@pytest.fixture(scope="module", autouse=True)
def mountable() -> None:
    if reason := slowvol.available():
        (lacking if "not installed" in reason else forbidden)(f"no slow volume here: {reason}")


@pytest.fixture(scope="module")
def backing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backing")
    (folder / "models" / "deep").mkdir(parents=True)
    (folder / "models" / "weights.pt").write_bytes(DATA)
    (folder / "models" / "empty").touch()
    (folder / "models" / "weights.pt").chmod(0o640)
    (folder / "current.pt").symlink_to("models/weights.pt")
    os.link(folder / "models" / "weights.pt", folder / "models" / "deep" / "again.pt")
    return folder


@pytest.fixture
def volume(backing: Path) -> Iterator[SlowVolume]:
    with SlowVolume(backing, **FAST) as mounted:
        yield mounted


@pytest.fixture
def weights(volume: SlowVolume) -> Path:
    return volume.path / "models" / "weights.pt"
