"""What a planted receipt can make `ensure` hash before it downloads: a few files, and each of them once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import blob, one, quiet, sha256
from weightcache._store import file_operations

DATA = blob(100_000)
FALSE = "7" * 64


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that were hashed or copied."""
    paths: list[str] = []
    read = file_operations._read

    def noting(path: str, *rest: Any, **options: Any) -> Any:
        paths.append(path)
        return read(path, *rest, **options)

    monkeypatch.setattr(file_operations, "_read", noting)
    return paths


def plant(root: Path, *, files: int, linked: bool, right: bool = False) -> None:
    """Write a receipt of many files that are said to be ``DATA``; only the last one may be."""
    place = root / "evil" / FALSE[:16]
    place.mkdir(parents=True)
    for number in range(files):
        if linked and number:
            os.link(place / "0000", place / f"{number:04}")
        else:
            (place / f"{number:04}").write_bytes(bytes(len(DATA)))
    if right:
        (place / f"{files - 1:04}").unlink()
        (place / f"{files - 1:04}").write_bytes(DATA)
    listed = {f"{number:04}": {"sha256": sha256(DATA), "size": len(DATA)} for number in range(files)}
    receipt = root / ".weightcache" / "receipts" / "evil" / f"{FALSE}.json"
    receipt.parent.mkdir(parents=True)
    receipt.write_text(json.dumps({"format": 1, "name": "evil", "digest": FALSE, "files": listed}))


@pytest.mark.parametrize(("linked", "most"), [(True, 1), (False, 4)], ids=["hard links", "files"])
def test_few_planted_files_are_hashed(linked: bool, most: int, root: Path, origin: Origin, hashed: list[str]) -> None:
    origin.put("/a", DATA)
    plant(root, files=30, linked=linked)
    assert quiet(one(DATA, origin.url("/a")), root).report["sam2"].outcome == "downloaded"
    assert len(hashed) == most


def test_the_bound_is_for_all_files_with_the_same_bytes(root: Path, origin: Origin, hashed: list[str]) -> None:
    origin.put("/a", DATA)
    plant(root, files=30, linked=False)
    manifest = {
        "checkpoints": {
            name: one(DATA, origin.url("/a"))["checkpoints"]["sam2"] for name in ("first", "second", "third")
        }
    }
    quiet(manifest, root)
    assert len(hashed) <= 4 + 2  # and of the two copies of what was downloaded


def test_a_good_file_behind_many_links_to_a_wrong_one_is_copied(root: Path) -> None:
    plant(root, files=30, linked=True, right=True)
    assert quiet(one(DATA), root, offline=True).report["sam2"].outcome == "copied"


@pytest.mark.parametrize("offline", [True, False])
def test_what_cannot_be_fetched_is_looked_for_in_all_files(offline: bool, root: Path, origin: Origin) -> None:
    plant(root, files=30, linked=False, right=True)
    manifest = one(DATA, *([origin.url("/a")] if offline else []))
    assert quiet(manifest, root, offline=offline).report["sam2"].outcome == "copied"
