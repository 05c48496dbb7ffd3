"""A commit that raises an error may have worked: what proves it, and what does not."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support import sha256
from volume_model import View, Volume
from weightcache import VolumeError, ensure, publish
from weightcache._coordination import committed_state, open_files
from weightcache._coordination.committed_state import MARKER, Wanted, is_committed
from weightcache._coordination.volume import VolumeSession
from weightcache._engine.commit_evidence import CommitEvidence
from weightcache._store.layout import Layout
from weightcache.manifest import Manifest

FILES = {"a/1/x.pt": Wanted(3)}


class Handle:
    """A `modal.Volume` on the model: its commit pushes and reloads, and its listing shows what is committed."""

    def __init__(self, view: Any) -> None:
        self.view, self.commits = view, 0
        self.above = ""  # the part of the Volume that is mounted, if not all of it
        self.push: Callable[[], None] = view.push

    def commit(self) -> None:
        self.commits += 1
        self.push()
        self.reload()

    def reload(self) -> None:
        try:
            self.view.reload()
        except Exception as error:
            raise RuntimeError(str(error)) from None

    def read_file(self, path: str) -> Iterator[bytes]:
        yield self.view.volume.read(path.removeprefix(self.above))

    def iterdir(self, path: str, *, recursive: bool = True) -> Iterator[Any]:
        inner = path.strip("/")
        for mounted, content in self.view.volume.files.items():
            name = self.above + mounted
            folder = name.rpartition("/")[0]
            if folder == inner or (recursive and (not inner or folder.startswith(f"{inner}/"))):
                size = content.stat().st_size
                yield SimpleNamespace(path=name, type=SimpleNamespace(name="FILE"), size=size)


@pytest.fixture
def handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Handle:
    for module in (committed_state, open_files):
        monkeypatch.setattr(module, "MODAL_VOLUMES", f"{tmp_path}/")
    return Handle(View(Volume(tmp_path / "server"), tmp_path / "vo-1"))


def write(root: Path, files: Mapping[str, Wanted]) -> None:
    for path, wanted in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bytes(wanted.size))
    (root / ".weightcache").mkdir(exist_ok=True)


def test_what_is_committed_is_proven(handle: Handle) -> None:
    root = handle.view.root
    write(root, {**FILES, "log": Wanted(1)})
    with open(root / "log", "a"):
        with pytest.raises(RuntimeError, match="open files"):
            handle.commit()
        assert is_committed(handle, str(root), FILES)
    assert list((root / ".weightcache").iterdir()) == []


def test_a_part_of_the_volume_that_is_mounted_alone(handle: Handle) -> None:
    handle.above = "models/new/"
    wanted = {**FILES, "a/1/y.pt": Wanted(4, sha256(bytes(4)))}
    write(handle.view.root, wanted)
    assert is_committed(handle, str(handle.view.root), wanted)
    assert not is_committed(handle, str(handle.view.root), {**wanted, "a/1/y.pt": Wanted(4, sha256(b"else"))})


def nothing(handle: Handle) -> None:
    handle.push = lambda: None


def without_the_file(handle: Handle) -> None:
    def push() -> None:
        handle.view.push()
        del handle.view.volume.files["a/1/x.pt"]

    handle.push = push


def an_old_state(handle: Handle) -> None:
    """The files are there from an earlier commit, and no commit works now: only the marker shows it."""
    handle.view.push()
    handle.push = lambda: None


def no_listing(handle: Handle) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("not allowed")

    handle.iterdir = refused  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("fault", [nothing, without_the_file, an_old_state, no_listing])
def test_what_is_not_proven(fault: Callable[[Handle], None], handle: Handle) -> None:
    root = handle.view.root
    write(root, {**FILES, "log": Wanted(1)})
    fault(handle)
    with open(root / "log", "a"):
        assert not is_committed(handle, str(root), FILES)


def test_another_size_and_another_kind_of_volume_prove_nothing(handle: Handle, tmp_path: Path) -> None:
    root = handle.view.root
    write(root, FILES)
    assert not is_committed(handle, str(root), {"a/1/x.pt": Wanted(4)})
    assert not is_committed(handle, str(root), {})
    assert not is_committed(SimpleNamespace(commit=handle.commit), str(root), FILES)
    write(tmp_path.parent / "plain", FILES)
    assert not is_committed(handle, str(tmp_path.parent / "plain"), FILES)


def test_a_file_that_keeps_its_size_is_proven_by_its_bytes(handle: Handle) -> None:
    root, layout = handle.view.root, Layout(handle.view.root)
    entry = {"urls": [], "sha256": sha256(b"new"), "file": "x", "size": 3}
    [checkpoint] = Manifest.load({"checkpoints": {"a": entry}})
    name = f"a/{checkpoint.version}/x"
    before = CommitEvidence(layout, [checkpoint])
    write(root, {name: Wanted(3)})
    assert before.files([checkpoint]) == {name: Wanted(3)}
    assert before.files([]) == {}
    handle.view.push()
    healed = CommitEvidence(layout, [checkpoint])
    (root / name).write_bytes(b"new")
    evidence = healed.files([checkpoint])
    assert evidence == {name: Wanted(3, sha256(b"new"))}
    with open(root / "log", "w"):
        real = handle.push
        marker = root.glob(".weightcache/commit-*")
        handle.push = lambda: handle.view.volume.put(str(next(marker).relative_to(root)), MARKER)
        assert not is_committed(handle, str(root), evidence)  # the marker, and the old bytes
        handle.push = real
        assert is_committed(handle, str(root), evidence)
    (root / name).unlink()
    assert before.files([checkpoint]) == {}


def test_publish_beside_an_open_file_and_without(handle: Handle, tmp_path: Path) -> None:
    root = handle.view.root
    (tmp_path / "x.pt").write_bytes(b"one")
    with open(root / "log", "w"):
        first = publish(tmp_path / "x.pt", name="x", root=root, volume=handle)
        assert f"x/{first.version}/x.pt" in handle.view.volume.files
        assert publish(tmp_path / "x.pt", name="x", root=root, volume=handle) == first  # what is marked is proven again
        (tmp_path / "x.pt").write_bytes(b"two")
        handle.push = lambda: None
        with pytest.raises(VolumeError, match=r"log is open in process \d+ \("):
            publish(tmp_path / "x.pt", name="x", root=root, volume=handle)
        handle.push = handle.view.push
        publish(tmp_path / "x.pt", name="x", root=root, volume=handle)  # nothing is lost by the failure
    report = ensure(Manifest([first]), root=root, volume=handle).report
    assert report["x"].outcome == "hit"


def test_who_has_a_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "MODAL_VOLUMES", f"{tmp_path}/volumes/")
    volume = tmp_path / "volumes" / "vo-1"
    (volume / "sub").mkdir(parents=True)
    (tmp_path / "mount").symlink_to(volume)
    assert open_files.open_files(f"{tmp_path}/mount/sub") == ""
    with open(volume / "log", "w"):
        assert open_files.open_files(f"{tmp_path}/mount/sub").startswith(f"{tmp_path}/mount/log is open in process ")
        assert open_files.open_files(f"{tmp_path}/elsewhere") == ""
    monkeypatch.chdir(volume / "sub")
    assert f"{tmp_path}/mount/sub is the working directory of process " in open_files.open_files(f"{tmp_path}/mount")


def test_how_many_more_are_open(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number in range(open_files.SHOWN):
            stack.enter_context(open(tmp_path / str(number), "w"))
        found = open_files.open_files(str(tmp_path))
        assert (found.count(" is open in process "), ", and " in found) == (open_files.SHOWN, False)
        stack.enter_context(open(tmp_path / "last", "w"))
        assert open_files.open_files(str(tmp_path)).endswith(", and 1 more")


def test_a_mapped_file_counts_as_open(tmp_path: Path) -> None:
    (tmp_path / "two words").write_bytes(b"x")
    with open(tmp_path / "two words", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with mapped:
        assert f"{tmp_path}/two words is mapped in process {os.getpid()} (" in open_files.open_files(str(tmp_path))
    assert open_files.open_files(str(tmp_path)) == ""


def test_a_process_that_ended_meanwhile_has_no_name() -> None:
    assert open_files._name("0") == "?"  # no process has this number


def test_what_keeps_a_reload_away_is_logged_once(handle: Handle, caplog: pytest.LogCaptureFixture) -> None:
    root = handle.view.root
    write(root, {**FILES, "log": Wanted(1)})
    with open(root / "log", "a"):
        for _ in range(2):
            session = VolumeSession(str(root), handle)
            assert session.commit_and_reload(FILES)
            assert session.commit(FILES)
            [warning] = session.warnings
            assert f"cannot be reloaded: {root}/log is open in process {os.getpid()} (" in warning
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [warning]
