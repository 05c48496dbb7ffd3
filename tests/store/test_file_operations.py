"""Version directories and receipts: adoption (G8), healing, reuse, rehash, partials and their sweep, and verify."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import weightcache
from origin import Exchange, Origin, broken
from origin import status as answer
from support import blob, directory, one, partials, quiet, sha256, until, visible
from weightcache import DownloadError, Manifest, NotCachedError, StorageError, prune, status, verify
from weightcache._runtime.writer_identity import Writer
from weightcache._store.file_operations import copy_file, hash_file, link_or_copy, remove_file
from weightcache._store.layout import Layout
from weightcache._store.partial_directory import BLOCK, block_checksum

DATA = blob(3 * BLOCK + 12_345)


def place(manifest: Any, root: Path, name: str = "sam2") -> Path:
    return Path(Layout(root).published(Manifest.load(manifest)[name]))


@pytest.mark.usefixtures("one_connection")
def test_cold_then_hit(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a?sig=secret"))
    weights = quiet(manifest, root)
    assert weights["sam2"] == root / "sam2" / sha256(DATA)[:16] / "weights.pt"
    assert weights["sam2"].read_bytes() == DATA
    report = weights.report["sam2"]
    assert (report.outcome, report.bytes_fetched, report.sources) == ("downloaded", len(DATA), (origin.url("/a"),))
    assert visible(root) == [f"sam2/{sha256(DATA)[:16]}/weights.pt"]
    assert partials(root) == []
    receipt = json.loads((root / f".weightcache/receipts/sam2/{sha256(DATA)}.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", receipt.pop("verified"))
    assert receipt == {
        "format": 1,
        "name": "sam2",
        "digest": sha256(DATA),
        "sources": [origin.url("/a")],
        "files": {"weights.pt": {"sha256": sha256(DATA), "size": len(DATA)}},
    }
    assert quiet(manifest, root).report["sam2"].outcome == "hit"
    assert origin.gets() == 1


def test_a_directory_with_the_same_bytes_twice(origin: Origin, root: Path) -> None:
    files = {"a/x": b"same", "b/y": b"same", "c": b"", "d/empty": b"", "e": b"other"}
    for path, data in files.items():
        origin.put(f"/base/{path}", data)
    weights = quiet(directory(files, origin.url("/base?token=1")), root)
    assert {path: (weights["bert"] / path).read_bytes() for path in files} == files
    assert sum(each.path.startswith("/base/") and each.path.endswith("?token=1") for each in origin.requests) == 2
    assert verify(directory(files), root=root)[0].state == "ready"


def test_sizes_need_not_be_declared(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    assert quiet(one(DATA, origin.url("/a"), size=False), root)["sam2"].read_bytes() == DATA


def test_only(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    manifest["checkpoints"]["broken"] = {"urls": [origin.url("/404")], "sha256": "0" * 64}
    assert list(quiet(manifest, root, only=["sam2"])) == ["sam2"]
    assert list(quiet(manifest, root, only=[])) == []


def test_adoption(origin: Origin, root: Path) -> None:
    manifest = one(DATA, origin.url("/a"))
    path = place(manifest, root)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert status(manifest, root=root)[0].state == "unverified"
    [seen] = verify(manifest, root=root)
    assert (seen.state, seen.detail) == ("unverified", "the bytes are right, without a receipt")
    weights = quiet(manifest, root, offline=True)
    assert weights.report["sam2"].outcome == "adopted"
    assert status(manifest, root=root)[0].state == "ready"
    [seen] = verify(manifest, root=root)
    assert (seen.state, seen.detail) == ("ready", "")
    assert origin.requests == []


def test_a_wrong_file_is_not_adopted(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    path = place(manifest, root)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[:-1] + b"!")
    with open(path, "rb") as reader:
        assert quiet(manifest, root)["sam2"].read_bytes() == DATA
        assert reader.read() == DATA[:-1] + b"!"  # an open file keeps its old content


@pytest.mark.parametrize("harm", [lambda path: os.truncate(path, 5), os.unlink, lambda path: os.truncate(path, 9**7)])
def test_a_damaged_file_is_healed_alone(harm: Any, origin: Origin, root: Path) -> None:
    files = {"a": blob(5000, 1), "b": blob(6000, 2)}
    for path, data in files.items():
        origin.put(f"/d/{path}", data)
    manifest = directory(files, origin.url("/d"))
    weights = quiet(manifest, root)
    (weights["bert"] / "extra").write_bytes(b"mine")
    origin.requests.clear()
    harm(weights["bert"] / "b")
    assert status(manifest, root=root)[0].state == "damaged"
    again = quiet(manifest, root)
    assert again.report["bert"].outcome == "healed"
    assert [each.path for each in origin.requests] == ["/d/b"]
    assert (weights["bert"] / "b").read_bytes() == files["b"]
    assert (weights["bert"] / "extra").read_bytes() == b"mine"
    [seen] = verify(manifest, root=root)
    assert (seen.state, seen.extra) == ("ready", ("extra",))


def test_rehash_finds_what_a_hit_does_not(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    path = quiet(manifest, root)["sam2"]
    with open(path, "r+b") as stream:
        stream.seek(BLOCK)
        stream.write(b"flip")
    assert quiet(manifest, root).report["sam2"].outcome == "hit"
    [seen] = verify(manifest, root=root)
    assert (seen.state, seen.detail) == ("damaged", "wrong bytes in weights.pt")
    with pytest.raises(NotCachedError):
        quiet(manifest, root, rehash=True, offline=True)
    assert quiet(manifest, root, rehash=True).report["sam2"].outcome == "healed"
    assert path.read_bytes() == DATA
    assert quiet(manifest, root, rehash=True).report["sam2"].outcome == "hit"


@pytest.mark.parametrize("links", [True, False])
def test_bytes_that_are_in_the_root_are_not_downloaded(
    links: bool, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("no hard links on a Volume of version 1")

    origin.put("/a", DATA)
    quiet(one(DATA, origin.url("/a"), name="old"), root)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    weights = quiet(one(DATA, origin.url("/404"), name="new"), root, offline=True)
    assert weights.report["new"].outcome == "copied"
    assert weights["new"].read_bytes() == DATA
    assert (weights["new"].stat().st_nlink > 1) is links
    assert verify(one(DATA, name="new"), root=root)[0].state == "ready"


def test_what_the_root_holds_is_hashed_before_it_is_used_again(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    old = quiet(one(DATA, origin.url("/a"), name="old"), root)["old"]
    old.write_bytes(bytes(len(DATA)))
    weights = quiet(one(DATA, origin.url("/a"), name="new"), root)
    assert weights.report["new"].outcome == "downloaded"
    assert weights["new"].read_bytes() == DATA


def test_a_new_version_takes_what_is_unchanged_from_the_old_one(origin: Origin, root: Path) -> None:
    for name, data in {"v1/a": b"a" * 999, "v1/b": b"b" * 999, "v2/a": b"a" * 999, "v2/b": b"B" * 999}.items():
        origin.put(f"/{name}", data)
    old = directory({"a": b"a" * 999, "b": b"b" * 999}, origin.url("/v1"))
    new = directory({"a": b"a" * 999, "b": b"B" * 999}, origin.url("/v2"))
    first = quiet(old, root)["bert"]
    origin.requests.clear()
    second = quiet(new, root)["bert"]
    assert [each.path for each in origin.requests] == ["/v2/b"]
    assert first != second
    assert quiet(old, root).report["bert"].outcome == "hit"  # a rollback


def test_what_is_complete_is_kept_when_another_one_fails(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    complete = place(manifest, root)

    def fail_after_the_other_one(exchange: Exchange) -> None:
        until(complete.exists)
        answer(404)(exchange)

    origin.put("/404", b"", always=fail_after_the_other_one)
    manifest["checkpoints"]["broken"] = {"urls": [origin.url("/404")], "sha256": "0" * 64}
    with pytest.raises(DownloadError) as caught:
        quiet(manifest, root)
    assert caught.value.checkpoint == "broken"
    assert [each.state for each in status(manifest, root=root)] == ["ready", "missing"]


def test_offline(origin: Origin, root: Path, tmp_path: Path) -> None:
    (tmp_path / "local.pt").write_bytes(DATA)
    manifest = one(DATA, origin.url("/a"), (tmp_path / "local.pt").as_uri())
    with pytest.raises(NotCachedError, match="offline=True: sam2 is not there") as caught:
        quiet(manifest, root, offline=True)
    assert caught.value.checkpoints == ("sam2",)
    assert "weightcache ensure sam2" in caught.value.hint
    assert origin.requests == []


def test_weights_of_ones_own_that_are_not_there(root: Path) -> None:
    with pytest.raises(NotCachedError, match="it declares no URL") as caught:
        quiet(one(DATA), root)
    assert str(place(one(DATA), root)) in caught.value.hint


def test_file_urls_are_copied(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "a b.pt"
    source.write_bytes(DATA)
    path = quiet(one(DATA, source.as_uri()), root)["sam2"]
    assert path.read_bytes() == DATA
    assert source.stat().st_nlink == 1
    assert not path.is_symlink()


# Partials -----------------------------------------------------------------------------------------------------


def interrupted(origin: Origin, root: Path, at: int = 2 * BLOCK + 500) -> dict[str, Any]:
    """Leave a partial with ``at`` bytes; return the manifest."""
    origin.put("/a", DATA, faults=[broken(at)], always=answer(404))
    manifest = one(DATA, origin.url("/a"))
    with pytest.raises(DownloadError):
        quiet(manifest, root)
    origin.files["/a"].always = None
    origin.requests.clear()
    assert visible(root) == []
    return manifest


@pytest.mark.usefixtures("one_connection")
def test_a_failed_download_goes_on_where_it_stopped(origin: Origin, root: Path) -> None:
    manifest = interrupted(origin, root)
    assert status(manifest, root=root)[0].state == "partial"
    report = quiet(manifest, root).report["sam2"]
    assert (report.outcome, report.bytes_fetched) == ("resumed", len(DATA) - 2 * BLOCK)
    assert origin.sent() == len(DATA) - 2 * BLOCK
    assert partials(root) == []


def rename_partial(root: Path, writer: str) -> Path:
    [path] = partials(root)
    return path.rename(path.with_name(f"{path.name.partition('.')[0]}.{writer}"))


def test_another_containers_partial_is_copied_and_not_touched(origin: Origin, root: Path) -> None:
    manifest = interrupted(origin, root)
    foreign = rename_partial(root, "0123456789ab-1-1-00000000")
    before = sorted((path.name, path.read_bytes()) for path in foreign.iterdir())
    report = quiet(manifest, root).report["sam2"]
    assert (report.outcome, report.bytes_fetched) == ("resumed", len(DATA) - 2 * BLOCK)
    assert partials(root) == [foreign]
    assert sorted((path.name, path.read_bytes()) for path in foreign.iterdir()) == before


@pytest.mark.usefixtures("one_connection")
def test_a_living_writers_partial_is_not_touched(origin: Origin, root: Path) -> None:
    manifest = interrupted(origin, root)
    with Writer.new(str(root)) as writer:
        living = rename_partial(root, str(writer))
        quiet(manifest, root)
        assert partials(root) == [living]
    assert origin.sent() == len(DATA) - 2 * BLOCK


@pytest.mark.parametrize(
    "harm",
    {
        "a block of zeros": lambda path: zero(path, 0),
        "cut data": lambda path: os.truncate(path / sha256(DATA), BLOCK + 5),
        "no data": lambda path: (path / sha256(DATA)).unlink(),
        "no journal": lambda path: (path / "journal").unlink(),
        "an empty journal": lambda path: (path / "journal").write_bytes(b""),
        "noise in the journal": lambda path: (path / "journal").write_bytes(os.urandom(3000)),
        "a journal that lies": lambda path: (path / "journal").write_text(
            "".join(f"{sha256(DATA)} {block} {BLOCK} 00000000\n" for block in range(9))
        ),
        "lengths that lie": lambda path: (path / "journal").write_text(
            f"{sha256(DATA)} 0 999999999999 00000000\n{sha256(DATA)} -1 5 00\n{sha256(DATA)} 0 0 00000000\n"
        ),
        "data that is a link": lambda path: replace_by_link(path / sha256(DATA)),
    }.values(),
    ids=lambda harm: None,
)
@pytest.mark.parametrize("writer", ["0123456789ab-1-1-00000000", None])
def test_a_partial_that_is_not_what_it_says(harm: Any, writer: str | None, origin: Origin, root: Path) -> None:
    manifest = interrupted(origin, root)
    [path] = partials(root)
    harm(path)
    if writer:
        rename_partial(root, writer)
    try:
        weights = quiet(manifest, root)
    except weightcache.StorageError:  # the link, in our own partial: refused, and not followed
        assert writer is None
        assert (root.parent / "elsewhere").read_bytes() == b"precious"
        return
    assert weights["sam2"].read_bytes() == DATA


def zero(path: Path, block: int) -> None:
    with open(path / sha256(DATA), "r+b") as stream:
        stream.seek(block * BLOCK)
        stream.write(bytes(BLOCK))


def replace_by_link(path: Path) -> None:
    elsewhere = path.parents[4] / "elsewhere"
    elsewhere.write_bytes(b"precious")
    path.unlink()
    path.symlink_to(elsewhere)


def test_bytes_that_pass_their_checksum_and_are_wrong_are_wiped_once(origin: Origin, root: Path) -> None:
    """A partial of another file under this digest: the mirror is not blamed for it."""
    manifest = interrupted(origin, root)
    [path] = partials(root)
    wrong = bytes(BLOCK)
    with open(path / sha256(DATA), "r+b") as stream:
        stream.write(wrong)

    with open(path / "journal", "a") as journal:
        journal.write(f"{sha256(DATA)} 0 {BLOCK} {block_checksum(wrong):08x}\n")
    assert quiet(manifest, root)["sam2"].read_bytes() == DATA


@pytest.mark.usefixtures("one_connection")
def test_a_partial_that_vanishes_is_begun_again(origin: Origin, root: Path) -> None:
    import shutil

    origin.put("/a", DATA)
    swept: list[int] = []

    def sweep_once(sent: int) -> None:
        if sent > BLOCK and not swept:
            swept.append(sent)
            for path in partials(root):
                shutil.rmtree(path)

    origin.files["/a"].on_sent = sweep_once
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert swept
    assert origin.gets() == 2


def test_a_root_that_somebody_keeps_emptying_is_an_error(origin: Origin, root: Path) -> None:
    import shutil

    origin.put("/a", DATA, on_sent=lambda sent: [shutil.rmtree(path, ignore_errors=True) for path in partials(root)])
    with pytest.raises(weightcache.StorageError, match="was lost while it was written, 3 times"):
        quiet(one(DATA, origin.url("/a")), root)


def age_partial(path: Path, seconds: float) -> None:
    journal = path / "journal"
    old = re.sub(r"opened \d+", f"opened {time.time() - seconds:.0f}", journal.read_text())
    journal.write_text(old)


@pytest.mark.parametrize(("age", "left"), [(3600, 1), (90_000, 0)])
def test_old_partials_are_swept(age: float, left: int, origin: Origin, root: Path) -> None:
    interrupted(origin, root)
    age_partial(rename_partial(root, "0123456789ab-1-1-00000000"), age)
    origin.put("/b", b"other")
    quiet(one(b"other", origin.url("/b"), name="other"), root)
    assert len(partials(root)) == left


def test_a_partial_without_a_readable_journal_has_the_age_of_its_directory(origin: Origin, root: Path) -> None:
    stray = root / f".weightcache/partial/{sha256(b'other')}.0123456789ab-1-1-00000000"
    stray.mkdir(parents=True)
    origin.put("/b", b"other")
    quiet(one(b"other", origin.url("/b")), root)
    assert stray.exists()
    os.utime(stray, (time.time() - 90_000,) * 2)
    assert prune(one(b"other"), root=root) == [stray]
    assert prune(one(b"other"), root=root, dry_run=False) == [stray]
    assert not stray.exists()


@pytest.mark.timeout(30)
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="pipe: it is not a regular file"):
        copy_file(str(tmp_path / "pipe"), str(tmp_path / "copy"), lambda: None)


def test_a_link_that_takes_the_place_of_a_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, outside, stat = tmp_path / "file", tmp_path / "outside", os.stat
    path.write_bytes(b"ours")
    outside.write_bytes(b"theirs")

    def replaced(each: Any, **options: Any) -> os.stat_result:
        found = stat(each, **options)
        if each == str(path):
            path.unlink()
            path.symlink_to(outside)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", replaced)
        with pytest.raises(StorageError, match="cannot read"):
            hash_file(str(path), lambda: None)


def test_a_device_that_takes_the_place_of_a_file_is_not_read(tmp_path: Path) -> None:
    """Between the look at the file and its opening: such a device has no end."""
    with pytest.raises(StorageError, match="cannot read /dev/zero: it is not a regular file"):
        copy_file("/dev/zero", str(tmp_path / "copy"), Mock(side_effect=[None, AssertionError]))


@pytest.mark.parametrize(("code", "raises"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_a_copy_of_published_bytes_on_a_full_disk(
    code: int, raises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else goes wrong with a copy is no error: the bytes are fetched instead, and that needs the same space."""

    def failing(code: int) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        return fail

    (tmp_path / "a").write_bytes(DATA)
    monkeypatch.setattr(os, "link", failing(errno.EXDEV))
    monkeypatch.setattr(os, "fsync", failing(code))
    with pytest.raises(StorageError) if raises else nullcontext():
        assert link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"), sha256(DATA), lambda: None) is None
    assert not (tmp_path / "b").exists()


def test_a_place_that_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "b/c").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot replace"):
        link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"), sha256(DATA), lambda: None)


def test_a_link_is_hashed_only_where_it_may_be_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "link").symlink_to("a")
    assert hash_file(str(tmp_path / "link"), lambda: None) is None
    assert hash_file(str(tmp_path / "link"), lambda: None, follow=True) == (sha256(DATA), len(DATA))


def test_what_cannot_be_deleted_is_an_error(tmp_path: Path) -> None:
    """Else a `prune` would count as deleted what is still there."""
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="delete") as caught:
        remove_file(str(tmp_path / "file"))
    assert caught.value.path == str(tmp_path / "file")
    remove_file(str(tmp_path / "gone"))
