"""Fixtures: a manifest, its weights in a root, and a program's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import blob, directory, one
from weightcache import Weights, ensure

DINO, SAM = blob(3000, 1), blob(2000, 2)
FOLDER = {"config.json": b"{}", "deep/vocab.txt": b"a\nb\n"}


@pytest.fixture
def manifest(origin: Origin) -> dict[str, Any]:
    """Two files and a directory, as the seed of this project has them."""
    origin.put("/dino", DINO)
    origin.put("/sam", SAM)
    for path, data in FOLDER.items():
        origin.put(f"/bert/{path}", data)
    checkpoints = one(DINO, origin.url("/dino"), name="groundingdino")["checkpoints"]
    checkpoints |= one(SAM, origin.url("/sam"), name="sam2")["checkpoints"]
    return {"version": 1, "checkpoints": checkpoints | directory(FOLDER, origin.url("/bert"))["checkpoints"]}


@pytest.fixture
def weights(manifest: dict[str, Any], root: Path) -> Weights:
    return ensure(manifest, root=root, progress=False)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The folder of a program."""
    path = tmp_path / "app"
    path.mkdir()
    return path
