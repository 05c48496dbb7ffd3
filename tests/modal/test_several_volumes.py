"""Several WeightVolumes in one app, and the options of a Volume: the page about them, and what it does not show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from control_plane import ControlPlane
from modal_apps import held, modal_client, modal_run
from origin import Origin
from support import blob, one, sha256, toml_of

PAGE = Path(__file__).parents[2] / "docs/how-to/several-volumes-adapters-parameters.md"


def declare(path: Path, origin: Origin, *names: str) -> None:
    """Write a manifest of checkpoints that each hold their own name."""
    checkpoints: dict[str, Any] = {}
    for name in names:
        data = blob(1000) + name.encode()
        origin.put(f"/{name}", data)
        checkpoints |= one(data, origin.url(f"/{name}"), name=name, file=f"{name}.pt")["checkpoints"]
    path.parent.mkdir(exist_ok=True)
    toml_of({"checkpoints": checkpoints}, path)


def place(name: str) -> str:
    return f"{name}/{sha256(blob(1000) + name.encode())[:16]}/{name}.pt"


def test_the_page_about_several_volumes(plane: ControlPlane, origin: Origin, tmp_path: Path) -> None:
    declare(tmp_path / "models.toml", origin, "model")
    declare(tmp_path / "adapters.toml", origin, "watercolour", "ink", "never")
    declare(tmp_path / "voices.toml", origin, "voice")
    declare(tmp_path / "company.toml", origin, "logo")
    (tmp_path / "helpers.py").write_text("")
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    code += "\n\n@app.function(image=whole, volumes=models.mounts)\ndef helped():\n    import helpers\n    return 1\n"
    calls = "serve.local, Painter().paint, Painter(style='ink').paint, speak, serve, helped"
    calls = calls.replace("serve.local, ", "")
    first, second, both, read, helped = modal_run(plane, tmp_path, code, calls)
    assert first == ["model.pt", "watercolour.pt"]
    assert second == ["model.pt", "ink.pt"]
    assert (both, read, helped) == (["logo", "voice"], "model.pt", 1)
    assert held(plane, "painter-models") == sorted(map(place, ("model", "watercolour", "ink")))
    assert (held(plane, "painter-voices"), held(plane, "company-models")) == (
        [place("voice")],
        [f"painter/{place('logo')}"],
    )
    assert {volume.name: volume.version for volume in plane.volumes.values()}["painter-voices"] == 2
    mounts = {each.function.function_name: each.function.volume_mounts for each in plane.requests("FunctionCreate")}
    assert {name: [mount.mount_path for mount in each] for name, each in mounts.items()} == {
        "Painter.*": ["/vol/models", "/root/.cache/torch"],
        "speak": ["/vol/voices", "/vol/company"],
        "serve": ["/vol/models"],
        "helped": ["/vol/models"],
    }
    assert [mount.sub_path for mount in mounts["speak"]] == ["", "painter"]
    assert [mount.read_only for mount in mounts["serve"]] == [True]


MANY = """
import modal
from pathlib import Path
from weightcache.modal import WeightVolume

HERE = Path(__file__).parent
VOLUME = dict(name="shared", path="/w")
app = modal.App("many")
caches = [
    WeightVolume("weights.toml", **VOLUME),
    WeightVolume("a/weights.toml", **VOLUME),
    WeightVolume(HERE / "b" / "weights.toml", **VOLUME),
    WeightVolume(HERE.resolve() / "c" / "weights.toml", **VOLUME),
    WeightVolume({first}, **VOLUME),
    WeightVolume({second}, **VOLUME),
]
image = modal.Image.debian_slim()
for cache in caches:
    image = cache.add_to(image)
not_added = WeightVolume(HERE / "d" / "weights.toml", **VOLUME)

@app.function(image=image, volumes=not_added.mounts)
def each_finds_its_own():
    found = [list(cache.ensure(progress=False)) for cache in caches]
    try:
        not_added.ensure()
    except Exception as error:
        return [*found, type(error).__name__]

lonely = WeightVolume(ELSEWHERE, name="lonely", path="/l")

@app.function(image=lonely.add_to(modal.Image.debian_slim()), volumes=lonely.mounts)
def an_absolute_path_outside_the_app():
    return list(lonely.ensure(progress=False))
"""


def test_six_manifests_on_one_volume(plane: ControlPlane, origin: Origin, tmp_path: Path) -> None:
    app, outside = tmp_path / "app", tmp_path / "outside"
    for folder, name in (
        (app, "beside"),
        (app / "a", "in-a"),
        (app / "b", "in-b"),
        (app / "c", "in-c"),
        (outside, "x"),
    ):
        declare(folder / "weights.toml", origin, name)
    declare(app / "d" / "weights.toml", origin, "in-d")
    data = blob(10)
    origin.put("/inline", data)
    first, second = (one(data, origin.url("/inline"), name=name) for name in ("first", "second"))
    code = MANY.replace("{first}", repr(first)).replace("{second}", repr(second))
    code = code.replace("ELSEWHERE", repr(str(outside / "weights.toml")))
    reported = modal_run(plane, app, code, "each_finds_its_own, an_absolute_path_outside_the_app")
    names = ["beside", "in-a", "in-b", "in-c", "first", "second"]
    assert reported == [[*([name] for name in names), "ManifestError"], ["x"]]
    built = [line for each in plane.requests("ImageGetOrCreate") for line in each.image.dockerfile_commands]
    assert (
        len([line for line in built if "filelock" in line]) == 2
    )  # once for each image, however many manifests it has


REFUSED = {
    "one Volume at two paths": (
        """
left, right = (WeightVolume(MANIFEST, name="v", path=path) for path in ("/left", "/right"))
image = WeightVolume.add_all(modal.Image.debian_slim(), left, right)

@app.function(image=image, volumes={**left.mounts, **right.mounts})
def serve(): ...
""",
        "The same Volume cannot be mounted in multiple locations",
    ),
    "another version": (
        """
cache = WeightVolume(MANIFEST, name="of-version-1", path="/w", version=2)

@app.function(image=cache.add_to(modal.Image.debian_slim()), volumes=cache.mounts)
def serve(): ...
""",
        "exists but has version v1, not v2",
    ),
    "it does not exist": (
        """
cache = WeightVolume(MANIFEST, name="gone", path="/w", create_if_missing=False)

@app.function(image=cache.add_to(modal.Image.debian_slim()), volumes=cache.mounts)
def serve(): ...
""",
        "'gone' not found",
    ),
    "it exists in another environment": (
        """
cache = WeightVolume(MANIFEST, name="of-version-1", path="/w", create_if_missing=False, environment_name="dev")

@app.function(image=cache.add_to(modal.Image.debian_slim()), volumes=cache.mounts)
def serve(): ...
""",
        "'of-version-1' not found",
    ),
    "the image ends in local files": (
        """
cache = WeightVolume(MANIFEST, name="v", path="/w")

@app.function(image=cache.add_to(modal.Image.debian_slim().add_local_python_source("helpers")), volumes=cache.mounts)
def serve(): ...
""",
        "call add_to before add_local_",
    ),
    "a step of Modal after it": (
        """
cache = WeightVolume(MANIFEST, name="v", path="/w")

@app.function(image=cache.add_to(modal.Image.debian_slim()).pip_install("packaging"), volumes=cache.mounts)
def serve(): ...
""",
        "An image tried to run a build step after",
    ),
}


@pytest.mark.parametrize(("code", "text"), REFUSED.values(), ids=REFUSED)
def test_what_a_deployment_refuses(code: str, text: str, plane: ControlPlane, tmp_path: Path) -> None:
    plane.volume("of-version-1")
    (tmp_path / "helpers.py").write_text("")
    start = "import modal\nfrom weightcache.modal import WeightVolume\napp = modal.App('refused')\n"
    done = modal_client(plane, tmp_path, f"{start}MANIFEST = {one(b'x')}\n{code}", "deploy")
    assert done.returncode != 0
    assert text in " ".join((done.stdout + done.stderr).replace("│", "").split())
    assert plane.requests("AppPublish") == []


def test_an_image_that_has_the_library(plane: ControlPlane, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("")
    code = """
import modal
from weightcache.modal import WeightVolume

app = modal.App("own-image")
handle = modal.Volume.from_name("v", create_if_missing=True, environment_name="dev")
cache = WeightVolume(MANIFEST, volume=handle, path="/w")
image = modal.Image.debian_slim().pip_install("weightcache").add_local_python_source("helpers")

@app.function(image=cache.add_to(image, library=False), volumes=cache.mounts)
def serve(): ...
"""
    done = modal_client(plane, tmp_path, code.replace("MANIFEST", repr(one(b"x"))), "deploy")
    assert done.returncode == 0, done.stdout + done.stderr
    mounted = [file.filename for each in plane.requests("MountGetOrCreate") for file in each.files]
    assert "/root/helpers.py" in mounted
    assert [name for name in mounted if name.startswith("/etc/weightcache/v-")]
    assert not [name for name in mounted if name.startswith("/root/weightcache/")]
    [volume] = plane.requests("VolumeGetOrCreate")
    assert (volume.deployment_name, volume.environment_name) == ("v", "dev")
