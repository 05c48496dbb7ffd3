"""Which Volume a `WeightVolume` uses: what each argument becomes, and which cannot be combined."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import modal
import pytest

from support import one
from weightcache.modal import WeightVolume
from weightcache.modal.volume_source import VolumeSource

DEFAULTS: dict[str, Any] = {
    "version": None,
    "environment_name": None,
    "create_if_missing": True,
    "read_only": False,
    "sub_path": None,
}


def source(name: str | None = "v", volume: Any = None, **options: Any) -> VolumeSource:
    return VolumeSource(name, volume, **{**DEFAULTS, **options})


@pytest.mark.parametrize("given", ["models/sd", "/models/sd", "models/sd/", PurePosixPath("/models/sd")])
def test_a_directory_of_the_volume(given: Any) -> None:
    assert source(sub_path=given).sub_path == "models/sd"


@pytest.mark.parametrize("given", [None, "/", "//"])
def test_the_whole_volume(given: Any) -> None:
    assert source(sub_path=given).sub_path == ""


@pytest.mark.parametrize("given", ["", "..", "a/../../b", "a//b", "a\nb", "./a"])
def test_what_is_no_directory_of_the_volume(given: str) -> None:
    with pytest.raises(ValueError, match="sub_path must be a directory of the Volume") as caught:
        source(sub_path=given)
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize("version", [0, 3, "2"])
def test_versions(version: Any) -> None:
    with pytest.raises(ValueError, match="version must be 1 or 2"):
        source(version=version)


def test_names() -> None:
    with pytest.raises(ValueError, match="1 to 64 letters") as caught:
        source("a b")
    assert "version" not in str(caught.value)
    with pytest.raises(TypeError, match=r"pass a modal\.Volume as volume="):
        source(modal.Volume.from_name("v"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"pass name= .* or volume="):
        source(None)


@pytest.mark.parametrize(
    "more",
    [{"name": "v"}, {"version": 1}, {"environment_name": "dev"}, {"create_if_missing": False}],
)
def test_what_belongs_to_the_volume_that_is_given(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"leave out {next(iter(more))}"):
        source(**{"name": None, "volume": modal.Volume.from_name("v"), **more})


def test_what_is_no_volume() -> None:
    with pytest.raises(TypeError, match=r"volume must be a modal\.Volume, not str; pass the name of one as name="):
        source(None, "fashion-models")


def test_a_given_volume_keeps_its_own_options() -> None:
    given = modal.Volume.from_name("v")
    cache = WeightVolume(one(b"x"), volume=given, path="/w")
    assert (cache.name, cache.volume, cache.mounts) == ("v", given, {"/w": given})
    assert source(None, modal.Volume.from_id("vo-1")).name == ""
    reader = WeightVolume(one(b"x"), volume=given, path="/w", read_only=True)
    assert reader.volume is not given
    assert reader.volume is reader.mounts["/w"]


V = modal.Volume.from_name("v")


@pytest.mark.parametrize(
    ("one_source", "other", "conflict"),
    [
        (source("a"), source("a", read_only=True), False),
        (source("a"), source("b"), True),
        (source("a", environment_name="x"), source("a", environment_name="y"), True),
        (source("a", environment_name="x"), source("a"), False),  # it may be the environment of the app
        (source("a", sub_path="x"), source("a"), True),
        (source(None, V, sub_path="x"), source(None, V, sub_path="y"), True),
        (source(None, V), source("a"), True),
        (source(None, V), source("v", sub_path="x"), False),  # the handle may have an option that is not known
        (source(None, modal.Volume.from_id("vo-1")), source("v"), False),
    ],
)
def test_one_mount_path(one_source: VolumeSource, other: VolumeSource, conflict: bool) -> None:
    assert one_source.conflicts_with(other) == other.conflicts_with(one_source) == conflict


def test_add_all_refuses_two_volumes_at_one_path() -> None:
    first = WeightVolume(one(b"x"), name="a", path="/w")
    second = WeightVolume(one(b"y"), name="b", path="/w/")
    image = modal.Image.debian_slim()
    with pytest.raises(ValueError, match="cannot both be mounted at /w/: give them different mount paths"):
        WeightVolume.add_all(image, first, second)
    assert WeightVolume.add_all(image) is image
