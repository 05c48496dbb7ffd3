"""A Volume that is not the one at the root, and a manifest that is not in the image: an error before any download."""

from __future__ import annotations

from pathlib import Path

from control_plane import ControlPlane
from modal_apps import held, modal_run
from origin import Origin
from support import blob, one, sha256, toml_of

DATA = blob(10_000)
PLACE = f"sam2/{sha256(DATA)[:16]}/weights.pt"


COMMON = """
import modal
from weightcache import WeightCacheError, ensure
from weightcache.modal import WeightVolume

app = modal.App("uses")
base = modal.Image.debian_slim()
cache = WeightVolume("weights.toml", name="one", path="/w")
image = cache.add_to(base)
other = modal.Volume.from_name("two", create_if_missing=True)

def reported(root=None, cache=cache):
    try:
        if root is None:
            weights = cache.ensure(progress=False)
        else:
            weights = ensure(cache.manifest, root=root, volume=cache.volume, progress=False)
    except WeightCacheError as error:
        return [type(error).__name__, str(error), error.hint]
    return [weights.report["sam2"].outcome, weights.report.committed, list(weights.report.warnings)]
"""

WRONG = """
@app.function(image=image)
def not_mounted():
    return reported()

@app.function(image=image, volumes={"/elsewhere": cache.volume})
def mounted_elsewhere():
    return reported()

@app.function(image=image, volumes={"/w": other})
def another_volume():
    return reported()

@app.function(image=image, volumes={**cache.mounts, "/v": other})
def root_on_another():
    return reported("/v/models")

@app.function(image=base, volumes=cache.mounts)
def without_add_to():
    return reported()

deleted = WeightVolume("weights.toml", name="gone", path="/w", create_if_missing=False)

@app.function(image=deleted.add_to(image), volumes=cache.mounts)
def does_not_exist():
    return reported(cache=deleted)
"""


def test_what_cannot_work_is_an_error_before_a_download(plane: ControlPlane, origin: Origin, tmp_path: Path) -> None:
    origin.put("/a", DATA)
    toml_of(one(DATA, origin.url("/a")), tmp_path / "weights.toml")
    calls = "not_mounted, mounted_elsewhere, another_volume, root_on_another, without_add_to, does_not_exist"
    reported = modal_run(plane, tmp_path, COMMON + WRONG, calls)
    ids = {volume.name: number for number, volume in plane.volumes.items()}
    assert [kind for kind, *_ in reported] == ["VolumeError"] * 4 + ["ManifestError", "VolumeError"]
    texts = [text for _, text, _ in reported]
    assert f"/w is on the container's own disk, and {ids['one']} is not mounted in this container" in texts[0]
    assert f"/w is not on a Volume, and {ids['one']} is mounted at another path" in texts[1]
    assert f"/w is on another Volume, {ids['two']}: volume= is one ({ids['one']})" in texts[2]
    assert f"/v/models is on another Volume, {ids['two']}" in texts[3]
    assert "there is no such file: pass image=cache.add_to(image) to this function" in texts[4]
    assert "volume= is gone, which does not exist" in texts[5]
    assert all("volumes={...} of the function" in hint for _, _, hint in reported[:4])
    assert origin.requests == []
    assert [held(plane, name) for name in ids] == [[]] * len(ids)
    assert "gone" not in ids


RIGHT = """
reader = WeightVolume("weights.toml", name="one", path="/w", read_only=True)

@app.function(image=image, volumes=reader.mounts)
def serve():
    return reported(cache=reader)

@app.function(image=image, volumes=cache.mounts)
def fill_a_subdirectory():
    return reported("/w/models/of/today")

@app.function(image=image, volumes=cache.mounts)
def fill():
    return reported()
"""


def test_a_read_only_mount_and_a_root_below_the_mount(plane: ControlPlane, origin: Origin, tmp_path: Path) -> None:
    origin.put("/a", DATA)
    toml_of(one(DATA, origin.url("/a")), tmp_path / "weights.toml")
    missed, inner, filled, hit = modal_run(plane, tmp_path, COMMON + RIGHT, "serve, fill_a_subdirectory, fill, serve")
    assert missed[0] == "NotCachedError"
    assert "not in /w, and the root is read-only here: sam2 is not there" in missed[1]
    assert inner == filled == ["downloaded", True, []]
    assert hit == ["hit", None, []]
    assert held(plane, "one") == sorted([f"models/of/today/{PLACE}", PLACE])
    assert origin.sent() == 2 * len(DATA)
    modes = {each.function.function_name: each.function.volume_mounts[0] for each in plane.requests("FunctionCreate")}
    assert {name: mount.read_only for name, mount in modes.items()} == {
        "serve": True,
        "fill": False,
        "fill_a_subdirectory": False,
    }
