"""Links that somebody planted in a root: nothing outside of it is written, renamed, deleted or believed."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weightcache
from origin import Origin, broken
from origin import status as answer_with
from support import blob, directory, one, quiet, sha256
from weightcache import StorageError, ensure, prune, publish, status, verify
from weightcache._store import receipts

DATA = blob(3000)
FILES = {"x": b"x" * 10, "deep/y": b"y" * 20}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory beside the root, old enough for every sweep, with names that a root has, too."""
    outside = tmp_path / "victim"
    names = ("precious", "sub/precious", "partial/old/x", "receipts/sam2/x.json", "weights.pt", "x", "deep/y", "y")
    receipts = (f"{sha256(DATA)}.json", f"{sha256(DATA)[:16]}{48 * '0'}.json")
    for path in (*names, *receipts, *(f"receipts/sam2/{each}" for each in receipts)):
        (outside / path).parent.mkdir(parents=True, exist_ok=True)
        (outside / path).write_bytes(b"precious")
    for path in (outside, *outside.rglob("*")):
        os.utime(path, (1, 1))
    return outside


# A read of a pipe, or its opening, waits for a writer without end; one of /dev/zero has no end.
SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o666),
    "endless device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
}


def tree(folder: Path) -> dict[str, Any]:
    """What is in a directory, with its bytes, and when each was changed."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


def do_everything(manifest: dict[str, Any], root: Path, source: Path) -> list[object]:
    """Call everything that writes or deletes; return how each ended, which may be an error of ours."""
    calls: list[Callable[[], object]] = [
        lambda: ensure(manifest, root=root, progress=False),
        lambda: ensure(manifest, root=root, progress=False, rehash=True),
        lambda: publish(source, name="sam2", root=root),
        lambda: prune(one(b"other"), root=root, older_than=0, dry_run=False),
        lambda: verify(manifest, root=root),
        lambda: status(manifest, root=root),
    ]
    ends: list[object] = []
    for call in calls:
        try:
            ends.append(call())
        except weightcache.WeightCacheError as error:
            ends.append(error)
    return ends


LINKS = {
    ".weightcache": "",
    ".weightcache/partial": "",
    ".weightcache/receipts": "receipts",
    ".weightcache/receipts/sam2": "",
    "sam2": "",
    f"sam2/{sha256(DATA)[:16]}": "",
}


@pytest.mark.parametrize("link", LINKS)
def test_a_directory_that_is_a_link(link: str, victim: Path, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "weights.pt"
    source.write_bytes(DATA)
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(victim / LINKS[link])
    before = tree(victim)
    ends = do_everything(one(DATA, source.as_uri()), root, source)
    assert tree(victim) == before
    assert isinstance(ends[0], StorageError)
    assert f"{root / link}: it is a symbolic link" in str(ends[0])
    assert (root / link).is_symlink()  # it is the user's to remove


@pytest.mark.parametrize("name", [sha256(DATA), sha256(DATA)[:16] + 48 * "0", sha256(DATA)[:16] + "zz"])
def test_a_directory_with_the_name_of_a_receipt(name: str, root: Path, tmp_path: Path) -> None:
    """It is no receipt, and not withdrawn. In the place of the one that is written, it is an error."""
    source = tmp_path / "weights.pt"
    source.write_bytes(DATA)
    planted = root / f".weightcache/receipts/sam2/{name}.json"
    planted.mkdir(parents=True)
    if name == sha256(DATA):
        with pytest.raises(StorageError, match="cannot write the receipt"):
            ensure(one(DATA, source.as_uri()), root=root, progress=False)
    else:
        assert ensure(one(DATA, source.as_uri()), root=root, progress=False)["sam2"].read_bytes() == DATA
    assert planted.is_dir()


@pytest.mark.parametrize("has_receipt", [True, False])
def test_a_directory_inside_a_place_that_is_a_link(has_receipt: bool, victim: Path, root: Path, tmp_path: Path) -> None:
    for path, data in FILES.items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_bytes(data)
    manifest = directory(FILES, (tmp_path / "out").as_uri())
    place = ensure(manifest, root=root, progress=False)["bert"]
    (place / "deep/y").unlink()
    (place / "deep").rmdir()
    (place / "deep").symlink_to(victim)
    before = tree(victim)
    if not has_receipt:  # a miss withdraws it
        with pytest.raises(StorageError, match="symbolic link"):
            ensure(manifest, root=root, progress=False)
    prune(one(b"other"), root=root, older_than=0, dry_run=False)
    assert tree(victim) == before


def test_a_file_in_a_place_that_is_a_link_is_replaced_and_not_believed(root: Path, tmp_path: Path) -> None:
    source, outside = tmp_path / "source", tmp_path / "outside"
    source.write_bytes(DATA)
    outside.write_bytes(DATA)
    manifest = one(DATA, source.as_uri())
    path = root / "sam2" / sha256(DATA)[:16] / "weights.pt"
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    assert status(manifest, root=root)[0].state == "damaged"
    assert verify(manifest, root=root)[0].state == "damaged"
    assert ensure(manifest, root=root, progress=False).report["sam2"].outcome in ("healed", "downloaded")
    assert not path.is_symlink()
    path.unlink()
    path.symlink_to(outside)  # with a receipt, too
    assert status(manifest, root=root)[0].state == "damaged"
    assert not ensure(manifest, root=root, progress=False)["sam2"].is_symlink()
    assert outside.read_bytes() == DATA


def test_right_bytes_behind_a_directory_that_is_a_link_are_not_believed(root: Path, tmp_path: Path) -> None:
    source, outside = tmp_path / "source", tmp_path / "outside"
    source.write_bytes(DATA)
    outside.mkdir()
    (outside / "weights.pt").write_bytes(DATA)
    place = root / "sam2" / sha256(DATA)[:16]
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    manifest = one(DATA, source.as_uri())
    assert verify(manifest, root=root)[0].state == "damaged"
    with pytest.raises(StorageError, match="symbolic link"):
        ensure(manifest, root=root, progress=False)
    assert list(root.glob(".weightcache/receipts/*/*")) == []


def test_a_receipt_that_is_a_link_is_not_believed(root: Path, tmp_path: Path) -> None:
    """Its target may say another thing at each read, and no prune of this root would delete it."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    manifest = one(DATA, source.as_uri())
    ensure(manifest, root=root, progress=False)
    receipt = root / f".weightcache/receipts/sam2/{sha256(DATA)}.json"
    receipt.rename(tmp_path / "outside.json")
    receipt.symlink_to(tmp_path / "outside.json")
    assert status(manifest, root=root)[0].state == "unverified"
    assert ensure(manifest, root=root, progress=False).report["sam2"].outcome == "adopted"
    assert not receipt.is_symlink()


def test_what_is_behind_a_link_is_no_source_for_another_checkpoint(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    old = ensure(one(DATA, source.as_uri(), name="old"), root=root, progress=False)["old"]
    elsewhere = tmp_path / "elsewhere"
    old.parent.rename(elsewhere)
    old.parent.symlink_to(elsewhere)
    new = ensure(one(DATA, source.as_uri(), name="new"), root=root, progress=False)
    assert new.report["new"].outcome == "downloaded"
    assert (elsewhere / "weights.pt").stat().st_nlink == 1


@pytest.mark.parametrize("name", ["zzz", f"{'ab' * 32}.0123456789ab-1-1-00000000", "receipt.0123456789ab-1-1-00000000"])
@pytest.mark.parametrize("kind", ["link", "directory"])
def test_what_is_no_partial_is_not_swept(name: str, kind: str, victim: Path, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    planted = root / ".weightcache/partial" / name
    planted.parent.mkdir(parents=True)
    if kind == "link":
        planted.symlink_to(victim)
    else:
        planted.mkdir()
        (planted / "precious").write_bytes(b"precious")
    os.utime(planted, (1, 1), follow_symlinks=False)
    before = tree(victim)
    manifest = one(DATA, source.as_uri())
    ensure(manifest, root=root, progress=False)
    prune(manifest, root=root, dry_run=False)
    assert tree(victim) == before
    parses = name.startswith("ab") and kind == "directory"  # then it is a partial, of an old day
    assert planted.exists() is not parses


def test_a_link_that_is_planted_at_the_last_moment_is_not_swept_through(
    origin: Origin, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", DATA)
    theirs = tmp_path / f"theirs/{'ab' * 32}.0123456789ab-1-1-00000000"  # another root's partials, of an old day
    theirs.mkdir(parents=True)
    (theirs / "precious").write_bytes(b"precious")
    os.utime(theirs, (1, 1))
    real = receipts.write_receipt

    def write_receipt(*arguments: Any) -> None:
        real(*arguments)
        partial = root / ".weightcache/partial"
        partial.rename(root / "aside")
        partial.symlink_to(theirs.parent)

    monkeypatch.setattr(receipts, "write_receipt", write_receipt)
    with pytest.raises(StorageError, match="symbolic link"):
        quiet(one(DATA, origin.url("/a")), root)
    assert (theirs / "precious").read_bytes() == b"precious"


def test_a_dead_writers_partial_that_is_a_link_is_not_taken_over(victim: Path, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    from weightcache._runtime.writer_identity import Writer

    planted = root / f".weightcache/partial/{sha256(DATA)}.{Writer.new(str(root))}"
    planted.parent.mkdir(parents=True)
    (victim / "journal").write_text(f"opened {time.time():.0f}\n{sha256(DATA)} 0 3000 00000000\n")
    planted.symlink_to(victim)
    before = tree(victim)
    assert ensure(one(DATA, origin.url("/a")), root=root, progress=False)["sam2"].read_bytes() == DATA
    assert tree(victim) == before


def test_a_journal_that_is_also_a_file_outside_is_not_written_to(root: Path, origin: Origin, tmp_path: Path) -> None:
    data, outside = blob(3 << 20), tmp_path / "outside"
    origin.put("/a", data, faults=[broken(2 << 20)], always=answer_with(404))
    with pytest.raises(weightcache.DownloadError):
        ensure(one(data, origin.url("/a")), root=root, progress=False)
    [journal] = root.glob(".weightcache/partial/*/journal")
    os.link(journal, outside)
    before = outside.read_bytes()
    origin.files["/a"].always = None
    weights = ensure(one(data, origin.url("/a")), root=root, progress=False)
    assert (weights["sam2"].read_bytes(), weights.report["sam2"].outcome) == (data, "resumed")
    assert outside.read_bytes() == before


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("has_receipt", [True, False])
def test_what_is_no_file_in_the_place_of_one_is_never_opened(
    kind: str, has_receipt: bool, root: Path, tmp_path: Path
) -> None:
    """Neither a hit nor anything else waits for it, and `ensure` replaces it."""
    source = tmp_path / "source"
    source.write_bytes(b"")  # none of them has a size either
    manifest = one(b"", source.as_uri())
    path = ensure(manifest, root=root, progress=False)["sam2"]
    [receipt] = (root / ".weightcache/receipts/sam2").iterdir()
    for target in [path] if has_receipt else [path, receipt]:
        target.unlink()
        try:
            SPECIAL[kind](target)
        except PermissionError:
            pytest.skip("only root makes devices")
    assert status(manifest, root=root)[0].state == "damaged"
    assert verify(manifest, root=root)[0].state == "damaged"
    assert weightcache.prefetch_files(path).wait(10)
    assert quiet(one(b"", source.as_uri(), name="other"), root).report["other"].outcome == "downloaded"
    assert quiet(manifest, root)["sam2"].is_file()
    assert quiet(manifest, root).report["sam2"].outcome == "hit"


@pytest.mark.parametrize("inside", ["journal", sha256(DATA), "0.copy", f"{sha256(DATA)}.copy", f"{sha256(DATA)}.aside"])
@pytest.mark.parametrize("kind", ["link", "hard link", "directory", "pipe", "socket"])
def test_what_is_planted_in_a_partial_that_is_taken_over(
    inside: str, kind: str, victim: Path, origin: Origin, root: Path
) -> None:
    origin.put("/a", blob(3 << 20), faults=[broken(2 << 20)], always=answer_with(404))
    manifest = one(blob(3 << 20), origin.url("/a"))
    with pytest.raises(weightcache.DownloadError):
        ensure(manifest, root=root, progress=False)
    [partial] = (root / ".weightcache/partial").iterdir()
    names = {sha256(DATA): sha256(blob(3 << 20))}
    planted = partial / inside.replace(sha256(DATA), names[sha256(DATA)])
    if planted.exists():
        planted.unlink()
    if kind == "link":
        planted.symlink_to(victim / "precious")
    elif kind == "hard link":
        os.link(victim / "precious", planted)
    elif kind in SPECIAL:
        SPECIAL[kind](planted)
    else:
        planted.mkdir()
        (planted / "x").write_bytes(b"x")
    before = tree(victim)
    origin.files["/a"].always = None
    assert ensure(manifest, root=root, progress=False)["sam2"].read_bytes() == blob(3 << 20)
    assert tree(victim) == before
    assert list((root / ".weightcache/partial").iterdir()) == []


def test_receipts_behind_a_link_are_not_pruned(root: Path, tmp_path: Path) -> None:
    """Their names would be changed, which is outside of the root."""
    source, outside = tmp_path / "source", tmp_path / "outside"
    source.write_bytes(DATA)
    place = ensure(one(DATA, source.as_uri()), root=root, progress=False)["sam2"]
    (root / ".weightcache/receipts/sam2").rename(outside)
    (root / ".weightcache/receipts/sam2").symlink_to(outside)
    before = tree(outside)
    assert prune(one(b"other"), root=root, older_than=0, dry_run=False) == []
    assert (tree(outside), place.read_bytes()) == (before, DATA)


def test_a_planted_receipt_for_a_place_that_is_a_link_prunes_nothing(victim: Path, root: Path) -> None:
    digest = "ab" * 32
    (root / "x").mkdir(parents=True)
    (root / "x" / digest[:16]).symlink_to(victim)
    receipt = root / f".weightcache/receipts/x/{digest}.json"
    receipt.parent.mkdir(parents=True)
    files = {path: {"sha256": digest, "size": 8} for path in ("precious", "sub/precious")}
    said = {
        "format": 1,
        "name": "x",
        "digest": digest,
        "verified": "2020-01-01T00:00:00Z",
        "sources": [],
        "files": files,
    }
    for ending in ("json", "pruning"):  # also one of a prune that was killed
        receipt.with_suffix(f".{ending}").write_text(json.dumps(said))
    before = tree(victim)
    assert prune(one(b"other"), root=root, dry_run=True) == []
    assert prune(one(b"other"), root=root, dry_run=False) == []
    assert tree(victim) == before


def test_a_root_that_is_itself_a_link_is_followed(root: Path, tmp_path: Path) -> None:
    """As a Volume's mount path is."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    (tmp_path / "real").mkdir()
    root.symlink_to(tmp_path / "real")
    assert ensure(one(DATA, source.as_uri()), root=root, progress=False)["sam2"].read_bytes() == DATA
    assert prune(one(b"other"), root=root, older_than=0, dry_run=False) != []


@pytest.mark.parametrize("target", ["file", "nothing"])
def test_a_link_to_what_only_looks_like_a_place_is_somebodys(target: str, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    weights = ensure(one(DATA, source.as_uri()), root=root, progress=False)
    theirs = tmp_path / "backups/laptop/0123456789abcdef/disk.img"
    theirs.parent.mkdir(parents=True)
    if target == "file":
        theirs.write_bytes(b"precious")
    (tmp_path / "app").mkdir()
    link = tmp_path / "app/sam2.pt"
    link.symlink_to(theirs)
    with pytest.raises(StorageError, match="not a link to weights"):
        weights.link({"sam2": link})
    assert os.readlink(link) == str(theirs)
    link.unlink()
    link.symlink_to(root / "sam2/0123456789abcdef/weights.pt")  # an earlier version in a root
    assert weights.link({"sam2": link})["sam2"].read_bytes() == DATA
