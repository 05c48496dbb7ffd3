"""The Volume at the root against the one that was passed: what is refused, what is not known, and when it is asked."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weightcache._coordination.mount_check as subject
from noting_volume import Volume
from origin import Origin
from support import blob, one, toml_of, visible
from weightcache import Manifest, VolumeError, aensure, ensure, prune, publish
from weightcache._store import layout

DATA = blob(1000)


class NotFoundError(Exception):
    """As Modal's client names it."""


class Handle(Volume):
    """A handle that has an id, at once or after `hydrate`."""

    def __init__(self, root: Path, object_id: str = "vo-1", *, lazily: bool = False, fault: Exception | None = None):
        super().__init__(root)
        self.name, self.hydrated = "fashion-models", 0
        self._id, self._fault = object_id, fault
        if not lazily:
            self.object_id = object_id

    def hydrate(self) -> None:
        self.hydrated += 1
        if self._fault:
            raise self._fault
        self.object_id = self._id


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mount path of the Volume ``vo-1`` in a Modal container: a link to where Modal keeps it."""
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    for module in (subject, layout):
        monkeypatch.setattr(module, "MODAL_VOLUMES", f"{os.path.realpath(tmp_path)}/volumes/")
    (tmp_path / "volumes" / "vo-1").mkdir(parents=True)
    path = tmp_path / "mount"
    path.symlink_to(tmp_path / "volumes" / "vo-1")
    return path


def fill(origin: Origin, root: Path, volume: Any, **options: Any) -> Any:
    origin.put("/a", DATA)
    return ensure(one(DATA, origin.url("/a")), root=root, volume=volume, progress=False, **options).report


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("inner", ["", "models", "models/of/today"])
def test_the_right_volume(inner: str, lazily: bool, mount: Path, origin: Origin) -> None:
    volume = Handle(mount, lazily=lazily)
    report = fill(origin, mount / inner, volume)
    assert (report["sam2"].outcome, report.committed, report.warnings) == ("downloaded", True, ())
    assert volume.hydrated == lazily


def refused(origin: Origin, root: Path, volume: Handle) -> VolumeError:
    for call in (
        lambda: fill(origin, root, volume),
        lambda: prune(one(DATA), root=root, volume=volume, dry_run=False),
        lambda: publish(__file__, name="made", root=root, volume=volume),
    ):
        with pytest.raises(VolumeError) as caught:
            call()
    assert (origin.requests, volume.calls, visible(root)) == ([], [], [])
    assert caught.value.operation == "mount"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return caught.value


def test_another_volume(mount: Path, origin: Origin) -> None:
    error = refused(origin, mount / "models", Handle(mount, "vo-2"))
    assert f"root {mount}/models is on another Volume, vo-1: volume= is fashion-models (vo-2)" in str(error)
    assert "mount path of this Volume as root" in error.hint


def test_a_volume_that_is_mounted_elsewhere(mount: Path, origin: Origin, tmp_path: Path) -> None:
    for root in (tmp_path / "beside", tmp_path, tmp_path / "volumes"):
        text = str(refused(origin, root, Handle(mount)))
        assert f"root {root} is not on a Volume, and vo-1 is mounted at another path" in text


def test_no_volume_at_all(mount: Path, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_is_own_disk", lambda root: True)
    text = str(refused(origin, tmp_path / "beside", Handle(mount, "vo-2")))
    assert "is on the container's own disk, and vo-2 is not mounted in this container" in text


def test_a_volume_that_does_not_exist(mount: Path, origin: Origin) -> None:
    error = refused(origin, mount, Handle(mount, lazily=True, fault=NotFoundError("no such Volume")))
    assert "fashion-models, which does not exist: no such Volume" in str(error)
    assert "create_if_missing=True" in error.hint


def test_the_disk_of_the_container() -> None:
    assert subject._is_own_disk("/no/such/directory")
    assert not subject._is_own_disk("/proc/self")


def test_a_disk_that_cannot_be_looked_at_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: True)  # and then it is gone, or the file system fails
    assert not subject._is_own_disk("/no/such/directory")


def test_what_is_not_known_is_not_refused(
    mount: Path, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volumes" / "a-mount-of-tomorrow").mkdir()
    monkeypatch.setattr(subject, "_is_own_disk", lambda root: False)
    unknown = [
        (mount, Volume(mount)),
        (mount, Handle(mount, lazily=True, fault=ConnectionError("no route"))),
        (tmp_path / "volumes" / "a-mount-of-tomorrow", Handle(mount)),
        (tmp_path / "a file system of tomorrow", Handle(mount, "vo-2")),
    ]
    for root, volume in unknown:
        assert fill(origin, root, volume, rehash=True).committed is not False


def test_outside_modal_nothing_is_asked(mount: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODAL_IS_REMOTE")
    volume = Handle(mount, "vo-2", lazily=True)
    assert fill(origin, mount, volume).committed is True
    assert volume.hydrated == 0


def test_a_hit_asks_nothing(mount: Path, origin: Origin) -> None:
    fill(origin, mount, Handle(mount))
    volume = Handle(mount, "vo-2", lazily=True)
    assert fill(origin, mount, volume)["sam2"].outcome == "hit"
    assert (volume.hydrated, volume.calls) == (0, [])


# a manifest that is kept on a Volume ------------------------------------------------------------------------------

CALLS: list[Callable[..., Any]] = [
    ensure,
    lambda *a, **o: asyncio.run(aensure(*a, **o)),
    lambda *a, **o: ensure(*a, **o, dry_run=True),
    prune,
]


@pytest.mark.parametrize("call", CALLS, ids=["ensure", "aensure", "dry run", "prune"])
def test_a_manifest_on_the_volume_without_the_volume(call: Callable[..., Any], mount: Path, origin: Origin) -> None:
    fill(origin, mount, Handle(mount))
    path = toml_of(one(DATA), mount / "weights.toml")
    with pytest.raises(VolumeError, match=r"weights.toml is on the Modal Volume vo-1, and no volume= was") as caught:
        call(path, root=mount)
    assert "pass volume=" in caught.value.hint
    assert "ensure(Tag(NAME), ...)" in caught.value.hint
    assert caught.value.operation == "reload"
    if call is not prune:
        assert call(Manifest.load(path), root=mount)["sam2"]  # read by the caller, at a time of its choice
        assert call(path, root=mount, volume=Handle(mount))["sam2"]


def test_a_manifest_on_another_volume(mount: Path, origin: Origin, tmp_path: Path) -> None:
    fill(origin, mount, Handle(mount))
    (tmp_path / "volumes/vo-2").mkdir()
    path = toml_of(one(DATA), tmp_path / "volumes/vo-2/weights.toml")
    for volume in (None, Handle(mount)):
        with pytest.raises(
            VolumeError, match=r"on the Modal Volume vo-2, and that is not the Volume of the root"
        ) as caught:
            ensure(path, root=mount, volume=volume)
    assert "keep it on the Volume of the root" in caught.value.hint


def test_a_manifest_elsewhere_is_a_hit_without_the_engine(
    root: Path, tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the root, where that is not on a Modal Volume; and in a container, of the image."""
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    fill(origin, root, None)
    monkeypatch.setitem(sys.modules, "weightcache._engine.ensure", None)  # an import of it fails
    for folder in (root, tmp_path):
        assert ensure(toml_of(one(DATA), folder / "weights.toml"), root=root).report["sam2"].outcome == "hit"
