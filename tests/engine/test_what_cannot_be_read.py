"""What cannot be read is not taken for what is not there: nothing is deleted, and no report calls it missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import directory, quiet, visible
from weightcache import NotCachedError, StorageError, Tag, prune, publish, set_tag, status, tags, verify
from weightcache._store.layout import Layout
from weightcache._store.root_checks import find_symlink

OTHER = {"checkpoints": {"other": {"urls": [], "file": "other", "sha256": "0" * 64}}}
TAG = Tag("tagger")
Fail = Callable[[str, str], None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Let calls of `os` fail for each path that ends so, however often they are tried."""

    def failing(names: str, ending: str) -> None:
        for name in names.split():
            real = getattr(os, name)

            def call(path: Any, *arguments: Any, real: Any = real, **options: Any) -> Any:
                if str(path).endswith(ending):
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
                return real(path, *arguments, **options)

            monkeypatch.setattr(os, name, call)

    return failing


@pytest.fixture
def tagged(root: Path, tmp_path: Path) -> Path:
    """A root with a published version that a tag keeps."""
    for data in (b"old", b"new"):
        (tmp_path / "model.bin").write_bytes(data)
        publish(tmp_path / "model.bin", name="tagger", root=root, tag="newest")
    return root


@pytest.mark.parametrize(
    ("calls", "ending"),
    [
        ("scandir", "/tags"),
        ("scandir", "/tags/tagger"),
        ("listdir", "/tags/tagger/newest"),
        ("open", ".json"),
        ("scandir", "/receipts"),
        ("listdir", "/receipts/tagger"),
        ("listdir", "/partial"),
        ("lstat", "/.weightcache"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_prune_deletes_nothing(
    calls: str, ending: str, dry_run: bool, tagged: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = visible(tagged)
    assert len(before) == 2
    fail(calls, ending)
    with pytest.raises(StorageError, match=r"cannot read .*Input/output error") as caught:
        prune(OTHER, root=tagged, older_than=0, dry_run=dry_run)
    monkeypatch.undo()
    assert caught.value.errno == errno.EIO
    assert visible(tagged) == before


def test_prune_tells_of_what_it_could_not_delete(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.bin").write_bytes(b"data")
    made = publish(tmp_path / "model.bin", name="own", root=root)
    real, listed = os.listdir, list[str]()

    def listdir(path: Any) -> list[str]:
        listed.append(str(path))
        if listed.count(str(path)) > 2 and str(path).endswith("/receipts/own"):  # after the receipt is withdrawn
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(StorageError, match="receipts/own"):
        prune(OTHER, root=root, older_than=0, dry_run=False)
    monkeypatch.setattr(os, "listdir", real)
    assert prune(OTHER, root=root, older_than=0, dry_run=False) == [root / "own" / made.version]
    assert visible(root) == []


def test_prune_keeps_a_version_that_is_declared_again(root: Path, tmp_path: Path) -> None:
    """A prune that was killed withdrew it, and then a rollback declares it: without a URL, it would be lost."""
    (tmp_path / "model.bin").write_bytes(b"data")
    made = publish(tmp_path / "model.bin", name="own", root=root)
    receipt = root / f".weightcache/receipts/own/{made.digest}.json"
    receipt.rename(receipt.with_suffix(".pruning"))
    manifest = {"checkpoints": {"own": {"urls": [], "file": "model.bin", "sha256": made.digest}}}
    for dry_run in (True, False):
        assert prune(manifest, root=root, older_than=0, dry_run=dry_run) == []
    assert [each.name for each in receipt.parent.iterdir()] == [receipt.name]
    assert quiet(manifest, root, offline=True).report["own"].outcome == "hit"
    receipt.rename(receipt.with_suffix(".pruning"))
    assert prune(OTHER, root=root, older_than=0, dry_run=False) == [root / "own" / made.version]


@pytest.mark.parametrize(("calls", "ending"), [("scandir", "/tags"), ("listdir", "/tags/tagger/newest")])
def test_tags_that_cannot_be_listed_are_an_error(calls: str, ending: str, tagged: Path, fail: Fail) -> None:
    fail(calls, ending)
    with pytest.raises(StorageError, match="cannot read"):
        tags(root=tagged)


def test_a_file_that_cannot_be_examined_is_not_called_missing(root: Path, tmp_path: Path, fail: Fail) -> None:
    (tmp_path / "model.bin").write_bytes(b"data")
    made = publish(tmp_path / "model.bin", name="own", root=root)
    manifest = {"checkpoints": {"own": {"urls": [], "file": "model.bin", "sha256": made.digest}}}
    fail("lstat", "/model.bin")
    [seen] = status(manifest, root=root)
    said = "has a receipt, but model.bin cannot be examined: Input/output error"
    assert (seen.state, seen.detail) == ("damaged", said)
    with pytest.raises(StorageError, match=r"model\.bin: Input/output error"):
        verify(manifest, root=root)


@pytest.mark.parametrize(
    ("calls", "ending", "state"), [("open", ".json", "unverified"), ("listdir", "/partial", "missing")]
)
def test_the_detail_names_what_cannot_be_read(
    calls: str, ending: str, state: str, root: Path, tmp_path: Path, fail: Fail
) -> None:
    (tmp_path / "model.bin").write_bytes(b"data")
    made = publish(tmp_path / "model.bin", name="own", root=root)
    digest = made.digest if state == "unverified" else "1" * 64
    fail(calls, ending)
    [seen] = status({"checkpoints": {"own": {"urls": [], "file": "model.bin", "sha256": digest}}}, root=root)
    assert seen.state == state
    assert "; cannot read " in seen.detail
    assert seen.detail.endswith(": Input/output error")


def test_a_directory_that_cannot_be_examined_may_be_a_link(root: Path, fail: Fail) -> None:
    (root / "a/b").mkdir(parents=True)
    layout = Layout(root)
    assert find_symlink(layout, f"{root}/a/none/c") == ""
    fail("lstat", "/a/b")
    with pytest.raises(StorageError, match="a/b"):
        find_symlink(layout, f"{root}/a/b/c")


def test_a_receipt_of_other_files_is_not_tagged(root: Path, tmp_path: Path) -> None:
    """The receipt of one version lists the files of another one, and both are there."""
    (tmp_path / "model").mkdir()
    made = []
    for data in (b"right", b"planted, and longer"):
        (tmp_path / "model/x").write_bytes(data)
        made.append(publish(tmp_path / "model", name="tagger", root=root))
    first, second = (root / f".weightcache/receipts/tagger/{each.digest}.json" for each in made)
    first.write_text(second.read_text().replace(made[1].digest, made[0].digest))
    (root / "tagger" / made[0].version / "x").write_bytes(b"planted, and longer")
    with pytest.raises(NotCachedError, match="no complete version"):
        set_tag(TAG, made[0].digest, root=root)
    assert set_tag(TAG, made[1].digest, root=root).digest == made[1].digest


def test_verify_does_not_leave_the_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/secret_name").write_bytes(b"")
    (root / "own").mkdir(parents=True)
    manifest = directory({"x": b"data"}, name="own")
    place = status(manifest, root=root)[0].path
    place.symlink_to(tmp_path / "home")
    [seen] = verify(manifest, root=root)
    assert seen.extra == ()


def test_the_errors_of_tags_name_ten_of_many(root: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"data")
    for number in range(13):
        publish(tmp_path / "model.bin", name="tagger", root=root, tag=f"t{number}")
    with pytest.raises(NotCachedError, match=r"and 3 more") as caught:
        quiet(Tag("tagger", "none"), root)
    assert str(caught.value).count("tag t") == 10
