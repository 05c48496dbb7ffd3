"""The format of tags: what is written is read, and nothing else is believed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support import sha256
from weightcache import StorageError, Tag, ensure, prune, publish, set_tag, status, tags
from weightcache._runtime.unannounced_write_check import announce_writing
from weightcache._store.layout import Layout, needs_reload
from weightcache._store.tags import _check, history, newest, next_order, retention, write_publication

HERE = Path(__file__).parents[2]
TAG = Tag("tagger")


@pytest.fixture
def two(root: Path, tmp_path: Path) -> Path:
    """A root whose tag had two versions. Returns the file of the last publication."""
    for data in (b"first", b"second"):
        (tmp_path / "model.bin").write_bytes(data)
        publish(tmp_path / "model.bin", name="tagger", root=root, tag="newest")
    return max((root / ".weightcache/tags/tagger/newest").iterdir())


def lie(path: Path, *, check: bool = True, **changes: Any) -> None:
    """Change parts of a publication, with the right check of what it says then."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(document | ({"check": _check(document)} if check else {})))


OTHER = {"weights.pt": {"sha256": "1" * 64, "size": 5}}
OWN = {"sha256": sha256(b"second"), "size": 6}
LIES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "not JSON": lambda path: path.write_bytes(b"\xff\0"),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a link": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "another format": lambda path: lie(path, format=2),
    "changed after it was written": lambda path: lie(path, keep=1, check=False),
    "of another checkpoint": lambda path: lie(path, name="other"),
    "of another tag": lambda path: lie(path, tag="stable"),
    "another order": lambda path: lie(path, order=5),
    "an order that is no number": lambda path: lie(path, order="5"),
    "another digest": lambda path: lie(path, digest="0" * 64),
    "other files": lambda path: lie(path, files=OTHER),
    "no files": lambda path: lie(path, files={}),
    "two files and no directory": lambda path: lie(path, files=OTHER | {"b": OTHER["weights.pt"]}),
    "a file outside": lambda path: lie(path, files={"../x": {"sha256": sha256(b"second"), "size": 6}}),
    "files a list": lambda path: lie(path, files=[]),
    "a file with a URL and a token": lambda path: lie(
        path, files={"w": {**OWN, "urls": ["http://h/"], "auth": "SECRET"}}
    ),
    "a time that moves the cursor": lambda path: lie(path, published="\x1b[2J"),
    "a time without end": lambda path: lie(path, published="2" * 10_000),
    "a directory that is a file": lambda path: lie(path, directory=True),
    "keep nothing": lambda path: lie(path, keep=0),
    "keep true": lambda path: lie(path, keep=True),
    "no keep": lambda path: path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "keep"})
    ),
}


def test_a_time_may_have_forty_characters(two: Path, root: Path) -> None:
    lie(two, published="2" * 40)
    assert newest(Layout(root), TAG).published == "2" * 40
    lie(two, published="2" * 41)
    with pytest.raises(StorageError):
        newest(Layout(root), TAG)


def test_a_tag_that_cannot_be_written_says_where(two: Path, root: Path) -> None:
    publication = newest(Layout(root), TAG)
    shutil.rmtree(two.parent)
    two.parent.write_bytes(b"in the way")
    with announce_writing(str(root)), pytest.raises(StorageError, match="cannot write the publication") as caught:
        write_publication(Layout(root), publication)
    assert caught.value.path == str(two)


@pytest.mark.parametrize("tell", LIES.values(), ids=LIES)
def test_a_publication_that_is_torn_or_foreign_is_an_error(tell: Any, two: Path, root: Path) -> None:
    tell(two)
    for call in (
        lambda: ensure(TAG, root=root),
        lambda: status(TAG, root=root),
        lambda: tags(root=root),
        lambda: prune(TAG, root=root, older_than=0, dry_run=False),
    ):
        with pytest.raises(StorageError, match="is no publication of the tag newest of tagger") as caught:
            call()
        assert caught.value.path == str(two)
        assert "delete this file" in caught.value.hint
    assert len(list(root.glob("tagger/*/model.bin"))) == 2  # it is not known what to keep
    two.rmdir() if two.is_dir() and not two.is_symlink() else two.unlink()  # what the hint says
    assert ensure(TAG, root=root)["tagger"].read_bytes() == b"first"


def test_a_file_under_the_name_of_another_publication(two: Path, root: Path) -> None:
    late = two.with_name(two.name.replace(two.name[:14], "09999999999999"))
    late.write_bytes(two.read_bytes())
    with pytest.raises(StorageError, match="its name differs from its order and digest"):
        ensure(TAG, root=root)


def test_files_with_other_names_are_ignored(two: Path, root: Path) -> None:
    for name in ("zzz.json", ".DS_Store", "09999999999999.json", f"{two.name}~", f"99{two.name}"):
        (two.parent / name).write_bytes(b"foreign")
    (root / ".weightcache/tags/tagger/empty").mkdir()
    (root / ".weightcache/tags/.hidden/newest").mkdir(parents=True)
    assert ensure(TAG, root=root)["tagger"].read_bytes() == b"second"
    assert [each.tag for each in tags(root=root)] == [TAG, TAG]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_no_link_is_followed(depth: int, two: Path, root: Path) -> None:
    folder = two.parents[2 - depth]
    folder.rename(root / "elsewhere")
    folder.symlink_to(root / "elsewhere")
    for call in (lambda: ensure(TAG, root=root), lambda: set_tag(TAG, two.name[15:31], root=root)):
        with pytest.raises(StorageError, match="symbolic link"):
            call()


def test_the_order_is_never_below_what_is_seen(two: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(root)
    seen = newest(layout, TAG)
    assert seen is not None
    monkeypatch.setattr("weightcache._store.tags.time", SimpleNamespace(time_ns=lambda: 0))
    assert next_order(layout, TAG) == seen.order + 1
    assert next_order(layout, Tag("tagger", "other")) == 0
    monkeypatch.setattr("weightcache._store.tags.time", SimpleNamespace(time_ns=lambda: (seen.order + 9) * 1_000_000))
    assert next_order(layout, TAG) == seen.order + 9
    two.rename(two.with_name(two.name.replace(two.name[:14], "9" * 14)))
    with pytest.raises(StorageError, match="no publication can follow it"):
        next_order(layout, TAG)


def test_a_write_that_was_not_announced(two: Path, root: Path) -> None:
    [publication, _] = history(Layout(root), TAG)
    with pytest.raises(RuntimeError, match="could be lost in a reload"):
        write_publication(Layout(root), publication)


def test_the_documented_example_is_one(root: Path) -> None:
    [text] = re.findall(r"```json\n(.*?)```", (HERE / "docs/reference/manifest.md").read_text(), re.DOTALL)
    document = json.loads(text)
    folder = root / ".weightcache/tags/tagger/newest"
    folder.mkdir(parents=True)
    (folder / f"{document['order']:014d}-{document['digest']}.json").write_text(text)
    [publication] = tags(root=root)
    assert (publication.keep, publication.checkpoint.size, publication.published) == (3, 1000, "2026-11-28T22:19:52Z")


@pytest.mark.parametrize("bad", ["", "../x", "a/b", ".x", "x" * 101, "a\n"])
def test_names_of_tags(bad: str) -> None:
    for make in (lambda: Tag(bad), lambda: Tag("tagger", bad)):
        with pytest.raises(ValueError, match="a name is 1 to 100"):
            make()


def test_values_of_tags() -> None:
    assert Tag("a", poll=1) == Tag("a") != Tag("a", "stable")
    assert len({Tag("a", poll=1), Tag("a"), Tag("b")}) == 2
    for poll in (-1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match="poll must be a number of seconds"):
            Tag("a", poll=poll)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tag must be a string"):
        Tag("a", 3)  # type: ignore[arg-type]


def test_what_needs_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = tmp_path / "volumes"
    for name in ("vo-1/models", "vo-11"):
        (volumes / name).mkdir(parents=True)
    (tmp_path / "mount").symlink_to(volumes / "vo-1")
    root = str(tmp_path / "mount/models")
    beside = tmp_path / "mount/weights.toml"
    for has_volume in (True, False):
        assert needs_reload(root, f"{root}/weights.toml", has_volume=has_volume) is has_volume
        assert not needs_reload(root, beside, has_volume=has_volume)
    monkeypatch.setattr("weightcache._store.layout.MODAL_VOLUMES", f"{volumes}/")
    for has_volume in (True, False):
        for path in (beside, volumes / "vo-1/weights.toml", volumes / "vo-11/weights.toml"):
            assert needs_reload(root, path, has_volume=has_volume)
        for other in ({"checkpoints": {}}, "a\0b", tmp_path / "weights.toml"):
            assert not needs_reload(root, other, has_volume=has_volume)


def test_what_a_tag_keeps(two: Path, root: Path, tmp_path: Path) -> None:
    layout, digests = Layout(root), [sha256(b"first"), sha256(b"second"), sha256(b"third")]
    assert retention(layout, older_than=0) == ({("tagger", digest) for digest in digests[:2]}, [])
    (tmp_path / "model.bin").write_bytes(b"third")
    publish(tmp_path / "model.bin", name="tagger", root=root, tag="newest", keep=1)
    names = sorted(path.name for path in two.parent.iterdir())
    kept, expired = retention(layout, older_than=0)
    assert kept == {("tagger", digests[2])}
    assert sorted(expired) == [str(two.parent / name) for name in names[:2]]
    kept, expired = retention(layout, older_than=3600)  # both others lost the tag a moment ago
    assert (kept, expired) == ({("tagger", digest) for digest in digests}, [])
