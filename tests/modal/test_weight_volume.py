"""`weightcache.modal.WeightVolume`: its manifest, the image that it adds to, what a deployment asks for."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import weightcache.modal.deployed_manifest
import weightcache.modal.weight_volume as subject
from control_plane import ControlPlane, needs_namespaces
from origin import Origin
from support import blob, directory, one, sha256, toml_of
from weightcache import Manifest, ManifestError, NotCachedError, Tag, ensure, publish
from weightcache.modal import WeightVolume
from weightcache.modal.image import to_toml

DATA = blob(10_000)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a Modal container; the fixed path of its manifest is this one."""
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    path = tmp_path / "etc" / "weights.toml"
    path.parent.mkdir()
    monkeypatch.setattr(weightcache.modal.deployed_manifest, "manifest_path", lambda name: str(path))
    return path


class Image:
    """Records what is done to it."""

    def __init__(self, *done: tuple[Any, ...]) -> None:
        self.done = done

    def __getattr__(self, name: str) -> Any:
        return lambda *words, copy=False: Image(*self.done, (name, *words, *(["copied"] if copy else [])))


# the manifest --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manifest",
    [
        one(DATA, "https://example.org/a", "file:///a%20b", name="sam2.1", auth="HF_TOKEN"),
        one(DATA, size=False),
        directory({"a b/ü'\"#.json": b"x", "[c].bin": b"", "d=e": b"yy"}, "hf://org/name@" + "0" * 40),
    ],
)
def test_a_manifest_written_as_toml_is_the_same(manifest: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "weights.toml").write_text(to_toml(Manifest.load(manifest)), encoding="utf-8")
    assert Manifest.load(tmp_path / "weights.toml").checkpoints == Manifest.load(manifest).checkpoints


APP = """
from weightcache.modal import WeightVolume
cache = WeightVolume("weights.toml", name="fashion-models", path="/root/data/weights")
"""


def test_a_relative_path_is_found_beside_the_caller_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, app = tmp_path / "here", tmp_path / "app"
    here.mkdir()
    app.mkdir()
    (app / "app.py").write_text(APP)
    monkeypatch.chdir(here)
    with pytest.raises(ManifestError, match="there is no such file"):
        runpy.run_path(str(app / "app.py"))
    toml_of(one(b"here"), here / "weights.toml")
    image = runpy.run_path(str(app / "app.py"))["cache"].add_to(Image())
    assert image.done[-1][:2] == ("add_local_file", str(here / "weights.toml"))
    assert image.done[-1][2].startswith("/etc/weightcache/fashion-models-")
    toml_of(one(b"beside"), app / "weights.toml")
    image = runpy.run_path(str(app / "app.py"))["cache"].add_to(Image())
    assert image.done[-1][1] == str(app / "weights.toml")
    (app / "weights.toml").write_text("version = 2")
    with pytest.raises(ManifestError, match="version"):
        runpy.run_path(str(app / "app.py"))


def test_a_tag_needs_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.bin").write_bytes(DATA)
    root, tag = tmp_path / "root", Tag("tagger", poll=0)
    cache: WeightVolume = pickle.loads(pickle.dumps(WeightVolume(tag, name="v", path=str(root))))
    assert cache.add_to(Image(), library=False).done == ()
    with pytest.raises(TypeError, match="tag newest of tagger and no manifest, so fill has nothing to download"):
        cache.manifest  # noqa: B018 (it reads the file)
    with pytest.raises(NotCachedError, match="has no publication"):
        cache.ensure()
    version = publish(tmp_path / "model.bin", name="tagger", root=root, tag="newest").version
    for weights in (cache.ensure(), asyncio.run(cache.aensure())):
        assert weights["tagger"] == root / "tagger" / version / "model.bin"
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    with cache.prefetch() as begun:
        assert begun.wait(60)
        assert (begun.stats.bytes, begun.stats.skipped) == (len(DATA), ())


def test_a_container_reads_what_was_deployed(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toml_of(one(b"not this one"), tmp_path / "weights.toml")
    cache = WeightVolume("weights.toml", name="v", path=str(tmp_path / "root"))  # nothing is read yet
    given: list[Any] = []
    monkeypatch.setattr(subject, "ensure", lambda manifest, **options: given.append((manifest, options)))
    with pytest.raises(ManifestError, match=r"no such file: pass image=cache\.add_to"):
        cache.ensure()
    with pytest.raises(ManifestError, match="no such file"):
        cache.manifest  # noqa: B018 (it reads the file)
    toml_of(one(DATA), place)
    cache.ensure(only=["sam2"], wait=1)
    [(manifest, options)] = given
    assert manifest["sam2"].digest == sha256(DATA)
    assert cache.manifest is manifest
    assert (options["root"], options["only"], options["wait"]) == (str(tmp_path / "root"), ["sam2"], 1)
    assert options["volume"] is cache.volume
    assert cache.mounts == {str(tmp_path / "root"): cache.volume}
    image = Image()
    assert cache.add_to(image) is image  # type: ignore[arg-type, comparison-overlap]


def test_prefetch_reads_in_a_container_and_nowhere_else(
    place: Path, origin: Origin, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", b"weights")
    manifest = one(b"weights", origin.url("/a"))
    ensure(manifest, root=root, progress=False)
    monkeypatch.chdir(tmp_path)
    cache = WeightVolume("weights.toml", name="v", path=str(root))
    handle = cache.prefetch()
    assert handle.stats.skipped == (f"{place}: 1 problem\n  there is no such file",)
    monkeypatch.delenv("MODAL_IS_REMOTE")
    toml_of(manifest, place)
    assert cache.prefetch().stats[:3] == (0, 0, 0)  # on the machine that deploys it
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    with cache.prefetch(into="memory", threads=1) as handle:
        assert handle.wait()
        assert handle.stats[:3] == (1, 7, 7)


def test_an_inline_manifest_needs_no_file_in_a_container(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(subject, "ensure", lambda manifest, **_: given.append(manifest))
    WeightVolume(one(DATA), name="v", path="/w").ensure()
    assert given[0]["sam2"].digest == sha256(DATA)
    toml_of(one(b"deployed"), place)
    WeightVolume(one(DATA), name="v", path="/w").ensure()
    assert given[1]["sam2"].digest == sha256(b"deployed")


def test_elsewhere_the_path_is_a_plain_directory(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    cache = WeightVolume(one(DATA, origin.url("/a")), name="v", path=str(root))
    assert cache.ensure(progress=False)["sam2"].read_bytes() == DATA
    assert asyncio.run(cache.aensure(offline=True)).report["sam2"].outcome == "hit"


@pytest.mark.parametrize(
    ("name", "path"), [("a/b", "/w"), ("", "/w"), ("a" * 65, "/w"), ("a", "weights"), ("a", ""), ("a", "/root/")]
)
def test_mistakes_are_found_at_once(name: str, path: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        WeightVolume(one(DATA), name=name, path=path)
    with pytest.raises(TypeError):
        WeightVolume(7, name="a", path="/w")  # type: ignore[arg-type]


def test_the_documented_signature() -> None:
    api = (Path(__file__).parents[2] / "docs/reference/api.md").read_text()
    [shown] = re.findall(r"^WeightVolume\(\n(.*?)\n\)", api, re.DOTALL | re.MULTILINE)
    parameters = [each.replace(annotation=each.empty) for each in inspect.signature(WeightVolume).parameters.values()]
    assert [line.strip(" ,") for line in shown.splitlines()] == [str(parameters[0]), "*", *map(str, parameters[1:])]
    assert [each.name for each in parameters if f"| `{each.name}` | " not in api] == []


def test_it_survives_pickling() -> None:
    cache = WeightVolume(one(DATA), name="v", path="/w")
    assert cache.volume is cache.volume
    again = pickle.loads(pickle.dumps(cache))
    assert (again.name, again.path, list(again.mounts)) == ("v", "/w", ["/w"])


def test_the_library_does_not_import_it() -> None:
    code = (
        "import sys, weightcache; print('weightcache.modal' in sys.modules); import weightcache.modal as m; "
        "m.WeightVolume({'checkpoints': {'a': {'urls': [], 'sha256': '0' * 64}}}, name='v', path='/w'); "
        "print('modal' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nFalse\n"


# the image -----------------------------------------------------------------------------------------------------


class Installed:
    version = "1.2.3"
    requires = ("requests>=2", "tomli>=2; python_version < '3.11'", "modal>=1; extra == 'modal'", "x; extra=='y'")

    def __init__(self, origin: str | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.origin


def added(monkeypatch: pytest.MonkeyPatch, installed: Installed) -> tuple[tuple[Any, ...], ...]:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: installed)
    *library, own, shared = WeightVolume(one(DATA), name="v", path="/w").add_to(Image()).done  # type: ignore
    for method, source, place in (own, shared):
        assert (method, place.rpartition("-")[0]) == ("add_local_file", "/etc/weightcache/v")
        assert Manifest.load(source)["sam2"].digest == sha256(DATA)
    return tuple(library)


def test_a_release_is_installed_in_the_same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert added(monkeypatch, Installed(None)) == (("pip_install", "weightcache==1.2.3"),)


def test_a_checkout_brings_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    assert added(monkeypatch, Installed('{"url": "file:///checkout"}')) == (
        ("pip_install", "requests>=2", "tomli>=2; python_version < '3.11'"),
        ("add_local_python_source", "weightcache"),
    )


def test_a_library_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError("weightcache")

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match="run `pip install -e`"):
        WeightVolume(one(DATA), name="v", path="/w").add_to(Image())  # type: ignore[arg-type]


# a deployment --------------------------------------------------------------------------------------------------


DEPLOYED = """
import modal
from weightcache.modal import WeightVolume

app = modal.App("fashion-crop")
cache = WeightVolume("weights.toml", name="fashion-models", path="/root/data/weights")
image = cache.add_to(modal.Image.debian_slim().pip_install("torch"))


@app.cls(image=image, volumes=cache.mounts, cpu=2.0, memory=16384, timeout=600, min_containers=1,
         secrets=[modal.Secret.from_dict({"HF_TOKEN": "x"})])
class FashionCrop:
    @modal.enter()
    def load(self):
        self.weights = cache.ensure(progress=False)

    @modal.method()
    def paths(self):
        return {name: str(path) for name, path in self.weights.items()}
"""


@pytest.fixture
def app(origin: Origin, tmp_path: Path) -> Path:
    """An app beside its manifest, and beside weights that must not be uploaded."""
    origin.put("/a", DATA)
    folder = tmp_path / "app"
    folder.mkdir()
    toml_of(one(DATA, origin.url("/a")), folder / "weights.toml")
    (folder / "weights.pt").write_bytes(DATA)
    (folder / "fashion_app.py").write_text(DEPLOYED)
    return folder / "fashion_app.py"


def deploy(plane: ControlPlane, app: Path) -> None:
    done = plane.client("-m", "modal", "deploy", str(app))
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_deployment_asks_for(app: Path, tmp_path: Path) -> None:
    with ControlPlane(tmp_path / "plane") as plane:
        deploy(plane, app)
        [create] = plane.requests("FunctionCreate")
        [volume] = plane.requests("VolumeGetOrCreate")
        mounted = {file.filename: file for each in plane.requests("MountGetOrCreate") for file in each.files}
        built = [line for each in plane.requests("ImageGetOrCreate") for line in each.image.dockerfile_commands]
        context = [file for each in plane.requests("ImageGetOrCreate") for file in each.image.context_files]
    function = create.function
    [mount] = function.volume_mounts
    assert (mount.mount_path, mount.read_only, volume.deployment_name) == (
        "/root/data/weights",
        False,
        "fashion-models",
    )
    assert mount.volume_id
    assert (function.resources.milli_cpu, function.resources.memory_mb) == (2000, 16384)
    assert (function.timeout_secs, function.autoscaler_settings.min_containers, len(function.secret_ids)) == (600, 1, 1)
    assert any("requests" in line and "filelock" in line for line in built)
    assert context == []
    [manifest] = [file for name, file in mounted.items() if name.startswith("/etc/weightcache/fashion-models-")]
    assert manifest.sha256_hex == sha256((app.parent / "weights.toml").read_bytes())
    assert "/root/weightcache/_api.py" in mounted
    assert sha256(DATA) not in {file.sha256_hex for file in mounted.values()}
    assert [name for name in mounted if not name.endswith((".py", ".toml"))] == []


RUN = """

@app.local_entrypoint()
def main():
    print(FashionCrop().paths.remote())
"""


def test_in_a_container(app: Path, tmp_path: Path) -> None:
    needs_namespaces()
    app.write_text(DEPLOYED + RUN)
    with ControlPlane(tmp_path / "plane") as plane:
        done = plane.client("-m", "modal", "run", str(app))
    assert done.returncode == 0, done.stdout + done.stderr
    assert str({"sam2": f"/root/data/weights/sam2/{sha256(DATA)[:16]}/weights.pt"}) in done.stdout
