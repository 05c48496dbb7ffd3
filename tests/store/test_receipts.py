"""Two versions whose digests begin with the same digits have one version directory: never two receipts for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support import blob, directory, one, quiet, sha256
from weightcache import Manifest, prune, publish, verify
from weightcache._store.layout import Layout
from weightcache._store.receipts import iter_receipts, receipt_files

FIRST = blob(100)
SECOND = next(data for seed in range(1, 999) if sha256(data := blob(100, seed))[0] == sha256(FIRST)[0])


@pytest.fixture(autouse=True)
def short_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a version be one digit: nobody can make files here whose digests share sixteen."""
    for module in ("_store.layout", "_store.receipts", "_engine.prune"):
        monkeypatch.setattr(f"weightcache.{module}.version_path", lambda name, digest: f"{name}/{digest[:1]}")


def sources(tmp_path: Path) -> list[tuple[bytes, Path]]:
    made = [(data, tmp_path / str(number) / "weights.pt") for number, data in enumerate((FIRST, SECOND))]
    for data, path in made:
        path.parent.mkdir()
        path.write_bytes(data)
    return made


@pytest.mark.parametrize("way", ["ensure", "publish"])
def test_a_hit_never_has_the_bytes_of_another_digest(way: str, root: Path, tmp_path: Path) -> None:
    made = sources(tmp_path)
    for data, path in made * 2:
        if way == "publish":
            publish(path, name="sam2", root=root)
        assert quiet(one(data, path.as_uri()), root)["sam2"].read_bytes() == data
        assert [digest for _, digest, _ in iter_receipts(Layout(root))] == [sha256(data)]
        assert verify(one(data, path.as_uri()), root=root)[0].state == "ready"


def test_a_file_with_the_listing_of_a_directory_has_its_digest_and_not_its_receipt(root: Path, tmp_path: Path) -> None:
    """The digest of a directory is that of its listing, which is a file too."""
    data = blob(77)  # as long as the listing
    listing = f"{sha256(data)}  weights.pt\n".encode()
    for folder, content in (("d", data), ("f", listing)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights.pt").write_bytes(content)
    of_directory = directory({"weights.pt": data}, (tmp_path / "d").as_uri(), name="sam2")
    of_file = one(listing, (tmp_path / "f/weights.pt").as_uri())
    for _ in range(2):
        assert (quiet(of_directory, root)["sam2"] / "weights.pt").read_bytes() == data
        assert quiet(of_file, root)["sam2"].read_bytes() == listing


@pytest.mark.parametrize("size", [-1, 1 << 63, True, 1.0, "1", None])
def test_a_size_that_no_file_has_is_left_out(size: Any) -> None:
    good = {"sha256": "0" * 64, "size": (1 << 63) - 1}
    assert receipt_files({"files": {"a": good, "b": {**good, "size": size}}}) == {"a": ("0" * 64, (1 << 63) - 1)}


def test_a_prune_that_was_killed_does_not_delete_the_other_version(root: Path, tmp_path: Path) -> None:
    """It withdrew the receipt of the first version, and then the second one was installed in that directory."""
    (first, old), (second, new) = sources(tmp_path)
    quiet(one(first, old.as_uri()), root)
    receipt = Path(Layout(root).receipt(Manifest.load(one(first))["sam2"]))
    receipt.rename(receipt.with_suffix(".pruning"))
    place = quiet(one(second, new.as_uri()), root)["sam2"]
    prune(one(second), root=root, dry_run=False)
    assert place.read_bytes() == second
    assert [path.name for path in receipt.parent.iterdir()] == [f"{sha256(second)}.json"]
