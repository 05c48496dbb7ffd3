"""The disk: full, read-only, not a directory. Nothing is published, and the error says what it is."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import blob, child, finish, forbidden, one, quiet, visible
from weightcache import NotCachedError, StorageError, prune, publish, status, verify
from weightcache._store.layout import Layout
from weightcache.cli import bench, doctor
from weightcache.manifest import Manifest

BIG = blob(12_000_000)
DATA = blob(300_000)


@pytest.mark.usefixtures("one_connection")
def test_a_full_disk_is_reported_as_one(origin: Origin, small_disk: Path) -> None:
    origin.put("/a", BIG)
    root = small_disk / "root"
    with pytest.raises(StorageError) as caught:
        quiet(one(BIG, origin.url("/a")), root)
    assert caught.value.errno == errno.ENOSPC
    assert "the disk is full" in str(caught.value)
    assert str(root) in caught.value.path
    assert "ephemeral_disk" in caught.value.hint
    assert visible(root) == []
    assert origin.gets() == 1  # no mirror is blamed, and none is tried again


def test_a_disk_that_is_full_of_something_else(origin: Origin, small_disk: Path) -> None:
    root = small_disk / "root"
    origin.put("/a", DATA)
    quiet(one(DATA, origin.url("/a"), name="a"), root)
    filled = subprocess.run(
        ["dd", "if=/dev/zero", f"of={small_disk}/filler", "bs=64k"], capture_output=True, check=False
    )
    assert b"No space" in filled.stderr
    other = blob(300_000, 5)
    origin.put("/b", other)
    with pytest.raises(StorageError) as caught:
        quiet(one(other, origin.url("/b"), name="b"), root)
    assert caught.value.errno == errno.ENOSPC
    assert quiet(one(DATA, name="a"), root)["a"].read_bytes() == DATA  # a hit needs no room
    (small_disk / "filler").unlink()
    assert quiet(one(other, origin.url("/b"), name="b"), root)["b"].read_bytes() == other


def test_a_root_that_is_none(tmp_path: Path) -> None:
    """An unreadable root is an error: nothing in it is reported as missing."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "made").write_bytes(b"")
    manifest = one(DATA)
    calls = {
        "ensure": lambda root: quiet(manifest, root, offline=True),
        "status": lambda root: status(manifest, root=root),
        "verify": lambda root: verify(manifest, root=root),
        "prune": lambda root: prune(manifest, root=root),
        "publish": lambda root: publish(tmp_path / "made", name="made", root=root),
        "bench": lambda root: bench.bench(str(root), 1),
    }
    for name, why in (("file", "it is a file"), ("link", "it is a link to .*nowhere, which is not there")):
        for call in calls.values():
            with pytest.raises(StorageError, match=f"cannot use root {tmp_path / name}: {why}"):
                call(tmp_path / name)
        assert doctor._writable(Layout(tmp_path / name)).ok is False


def test_a_root_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid():
        forbidden("only root can become somebody else")
    root = tmp_path / "root"
    code = """
    import weightcache._engine.run_miss, weightcache._engine.prune, weightcache._engine.verify
    from weightcache._coordination import lock
    from weightcache import StorageError, ensure, prune, status, verify
    os.setuid(65534)  # nobody
    manifest, root = json.loads(sys.argv[1]), sys.argv[2]
    said = []
    for call in (status, verify, prune, ensure):
        try:
            call(manifest, root=root)
        except StorageError as error:
            said.append([error.errno, error.path])
    print(json.dumps(said))
    """
    root.mkdir(mode=0o700)
    reached = tmp_path
    while reached.stat().st_mode & 0o001 == 0:
        reached.chmod(reached.stat().st_mode | 0o011)  # on its way there; what pytest makes is for its user only
        reached = reached.parent
    assert json.loads(finish(child(code, json.dumps(one(DATA)), str(root)))) == [[errno.EACCES, str(root)]] * 4


@pytest.fixture
def read_only(origin: Origin, small_disk: Path) -> Iterator[Path]:
    """A read-only root that holds ``ready``, and ``bare`` and ``wrong`` without receipts."""
    root = small_disk / "root"
    origin.put("/a", DATA)
    quiet(one(DATA, origin.url("/a"), name="ready"), root)
    for name, data in (("bare", DATA), ("wrong", bytes(len(DATA)))):
        path = Path(Layout(root).published(Manifest.load(one(DATA, name=name))[name]))
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    origin.requests.clear()
    if subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True, check=False).returncode:
        forbidden("cannot remount a tmpfs read-only")
    yield root
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)


class Volume:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def commit(self) -> None:
        self.calls.append("commit")

    def reload(self) -> None:
        self.calls.append("reload")


def test_a_read_only_root(read_only: Path, origin: Origin, caplog: pytest.LogCaptureFixture) -> None:
    url, volume = origin.url("/a"), Volume()
    assert quiet(one(DATA, url, name="ready"), read_only, volume=volume).report["ready"].outcome == "hit"
    assert volume.calls == []
    with caplog.at_level(logging.WARNING, "weightcache"):
        weights = quiet(one(DATA, url, name="bare"), read_only, volume=volume)
    assert weights["bare"].read_bytes() == DATA
    assert weights.report["bare"].outcome == "adopted"
    assert "every start hashes it again" in weights.report.warnings[0]
    assert "weightcache ensure bare --root" in caplog.text
    for name in ("wrong", "missing"):
        volume.calls.clear()
        with pytest.raises(NotCachedError, match="the root is read-only here") as caught:
            quiet(one(DATA, url, name=name), read_only, volume=volume)
        assert f"weightcache ensure {name} --root {read_only}" in caught.value.hint
        assert volume.calls == ["reload"]
    assert origin.requests == []
    assert status(one(DATA, name="bare"), root=read_only)[0].state == "unverified"


def test_prune_of_a_read_only_root(read_only: Path) -> None:
    assert len(prune(one(DATA, name="x"), root=read_only, older_than=0)) == 1
    with pytest.raises(StorageError, match="read-only here"):
        prune(one(DATA, name="x"), root=read_only, older_than=0, dry_run=False)


def test_a_root_on_a_read_only_disk_that_is_not_there(read_only: Path, origin: Origin) -> None:
    with pytest.raises(StorageError, match="Read-only file system") as caught:
        quiet(one(DATA, origin.url("/a")), read_only.parent / "new")
    assert caught.value.errno == errno.EROFS
    assert "read-only" in caught.value.hint


@pytest.mark.parametrize("below", ["", "x", ".weightcache"])
def test_a_root_that_is_a_file(below: str, origin: Origin, tmp_path: Path) -> None:
    origin.put("/a", DATA)
    root = tmp_path / "file"
    if below == ".weightcache":
        root.mkdir()
        (root / below).write_bytes(b"mine")
        below = ""
    else:
        root.write_bytes(b"mine")
    with pytest.raises(StorageError, match="root must be a directory"):
        quiet(one(DATA, origin.url("/a")), root / below)
    assert origin.requests == []


def test_a_place_that_is_taken_by_a_file(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    root.mkdir()
    (root / "sam2").write_bytes(b"mine")
    with pytest.raises(StorageError, match="cannot publish"):
        quiet(one(DATA, origin.url("/a")), root)
    assert (root / "sam2").read_bytes() == b"mine"


def test_a_place_that_is_taken_by_a_directory(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    Path(Layout(root).published(Manifest.load(manifest)["sam2"])).mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot publish .*: Is a directory"):
        quiet(manifest, root)


FAILING = ["pwrite", "fsync", "replace", "ftruncate", "write"]


@pytest.mark.parametrize("call", FAILING)
def test_a_disk_that_fails(call: str, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO from one call: an error that says so, nothing published, and the next call is well."""

    def fail(*arguments: Any) -> Any:
        if call == "replace" and "local" in str(arguments[0]):  # a note on the container's own disk
            return real(*arguments)
        if call == "write" and b"opened" not in bytes(arguments[1]) and b" 0 " not in bytes(arguments[1]):
            return real(*arguments)
        raise OSError(errno.EIO, "Input/output error")

    origin.put("/a", blob(2_000_000))
    manifest, real = one(blob(2_000_000), origin.url("/a")), getattr(os, call)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match="Input/output error") as caught:
            quiet(manifest, root)
    assert caught.value.errno == errno.EIO
    assert visible(root) == []
    assert quiet(manifest, root)["sam2"].read_bytes() == blob(2_000_000)


def test_a_receipt_that_cannot_be_written(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    (root / ".weightcache/receipts").mkdir(parents=True)
    (root / ".weightcache/receipts/sam2").write_bytes(b"in the way")
    with pytest.raises(StorageError, match="cannot write the receipt"):
        quiet(one(DATA, origin.url("/a")), root)
    (root / ".weightcache/receipts/sam2").unlink()
    assert quiet(one(DATA, origin.url("/a")), root).report["sam2"].outcome == "adopted"


def test_a_copy_for_which_there_is_no_room_is_a_full_disk(
    origin: Origin, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two names for the same bytes, no hard links, and room for one: not a partial that vanished."""

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError("no hard links here")

    data = blob(5_000_000)
    origin.put("/a", data)
    manifest = one(data, origin.url("/a"), name="a")
    manifest["checkpoints"] |= one(data, origin.url("/a"), name="b")["checkpoints"]
    monkeypatch.setattr("weightcache._store.file_operations.os.link", no_links)
    with pytest.raises(StorageError, match="the disk is full"):
        quiet(manifest, small_disk / "root")


def test_more_files_than_a_process_may_open(origin: Origin, root: Path) -> None:
    import resource

    from support import directory

    files = {f"{number}": b"%d" % number for number in range(300)}
    for path, data in files.items():
        origin.put(f"/d/{path}", data)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    # Both ends of up to 24 connections are in this process.
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, hard))
    try:
        weights = quiet(directory(files, origin.url("/d")), root)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list(weights["bert"].iterdir())) == 300
