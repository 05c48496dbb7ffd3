"""`prune`: what it removes, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from origin import Origin
from support import blob, directory, one, quiet, sha256, visible
from weightcache import prune
from weightcache._store.partial_directory import BLOCK

DATA = blob(3 * BLOCK + 12_345)


def test_prune(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    for path in ("x", "deep/y"):
        origin.put(f"/d/{path}", path.encode())
    old = directory({"x": b"x", "deep/y": b"deep/y"}, origin.url("/d"), name="old")
    keep = one(DATA, origin.url("/a"), name="keep")
    place_of_old = quiet(old, root)["old"]
    quiet(keep, root)
    by_hand = root / "by-hand" / "0"
    by_hand.mkdir(parents=True)
    (by_hand / "f").write_bytes(b"no receipt")
    assert prune(keep, root=root) == []  # young
    assert prune(keep, root=root, older_than=0) == [place_of_old]
    assert prune(keep, old, root=root, older_than=0) == []
    assert place_of_old.exists()
    (place_of_old / "deep/mine").write_bytes(b"extra")
    assert prune(keep, root=root, older_than=0, dry_run=False) == [place_of_old]
    assert visible(root) == sorted(
        ["by-hand/0/f", f"keep/{sha256(DATA)[:16]}/weights.pt", f"old/{place_of_old.name}/deep/mine"]
    )
    assert prune(keep, root=root, older_than=0, dry_run=False) == []
    with pytest.raises(ValueError, match="every manifest"):
        prune(root=root)


def test_prune_removes_emptied_directories(origin: Origin, root: Path) -> None:
    origin.put("/d/deep/y", b"y")
    quiet(directory({"deep/y": b"y"}, origin.url("/d"), name="old"), root)
    prune(one(DATA), root=root, older_than=0, dry_run=False)
    assert not (root / "old").exists()
    assert root.exists()


def test_prune_does_not_follow_a_receipt_out_of_its_place(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    quiet(one(DATA, origin.url("/a")), root)
    precious = root.parent / "precious"
    precious.write_bytes(b"x")
    [receipt] = (root / ".weightcache/receipts/sam2").iterdir()
    data = json.loads(receipt.read_text())
    data["files"]["../../../precious"] = {"sha256": "0" * 64, "size": 1}
    data["files"][str(precious)] = {"sha256": "0" * 64, "size": 1}
    receipt.write_text(json.dumps(data))
    prune(one(b"other"), root=root, older_than=0, dry_run=False)
    assert precious.exists()
    assert visible(root) == []


def test_prune_spares_a_receipt_without_a_time(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    quiet(one(DATA, origin.url("/a")), root)
    [receipt] = (root / ".weightcache/receipts/sam2").iterdir()
    receipt.write_text(receipt.read_text().replace('"verified"', '"verifled"'))
    assert prune(one(b"other"), root=root) == []


def test_prune_of_a_root_that_is_not_there(root: Path) -> None:
    assert prune(one(b"x"), root=root) == []
    assert not root.exists()
