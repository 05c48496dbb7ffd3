"""Where a manifest is in an image: the same path on both machines, and no path for two manifests."""

from __future__ import annotations

import os
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest

from support import one, toml_of
from weightcache import Manifest, ManifestError
from weightcache.modal import WeightVolume
from weightcache.modal.deployed_manifest import DeployedManifest


class Image:
    """Keeps which file goes where."""

    def __init__(self, files: dict[str, str] | None = None) -> None:
        self.files = files or {}

    def add_local_file(self, source: str, path: str, *, copy: bool) -> Image:
        return Image({**self.files, path: source})

    def pip_install(self, *_: str) -> Image:
        return Image(self.files)

    def add_local_python_source(self, *_: str, copy: bool) -> Image:
        return Image(self.files)


def declared(given: Any, caller: Path | None) -> DeployedManifest:
    return DeployedManifest(given, str(caller) if caller else None, "v")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The app on the machine that deploys, with a manifest of its own in several directories."""
    for inner in ("", "a", "b", "pkg/x", "pkg/y"):
        (tmp_path / "home" / inner).mkdir(parents=True, exist_ok=True)
        toml_of(one(inner.encode(), name=f"in-{inner[-1:]}"), tmp_path / "home" / inner / "weights.toml")
    return tmp_path / "home"


def in_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ("weights.toml", False),
        ("a/weights.toml", False),
        ("./a/../b/weights.toml", False),
        ("HERE/weights.toml", True),
        ("HERE/a/weights.toml", True),
        (one(b"x"), True),
    ],
)
def test_both_machines_know_the_path(
    given: Any, shares: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def at(where: Path) -> Any:
        return given.replace("HERE", str(where)) if isinstance(given, str) else given

    deployed = declared(at(folder), folder / "app.py").paths
    assert bool(deployed[1]) == shares
    in_container(monkeypatch)
    assert declared(at(Path("/root")), Path("/root/app.py")).paths == deployed
    monkeypatch.delenv("MODAL_IS_REMOTE")
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert declared(at(folder), link / "app.py").paths == deployed


def test_each_manifest_has_a_path_of_its_own(folder: Path) -> None:
    sources: list[tuple[Any, Path]] = [
        ("weights.toml", folder / "app.py"),
        ("weights.toml", folder / "other.py"),
        ("a/weights.toml", folder / "app.py"),
        (folder / "b" / "weights.toml", folder / "app.py"),
        ("weights.toml", folder / "pkg" / "x" / "__init__.py"),
        ("weights.toml", folder / "pkg" / "y" / "__init__.py"),
        (one(b"x"), folder / "app.py"),
        (one(b"y"), folder / "app.py"),
    ]
    paths = [declared(given, caller).paths[0] for given, caller in sources]
    assert len(set(paths)) == len(paths)
    assert all(path.startswith("/etc/weightcache/v-") and path.endswith(".toml") for path in paths)
    assert declared(folder / "weights.toml", folder / "app.py").paths[0] == paths[0]  # the same file


def test_two_manifests_at_one_path_are_refused(folder: Path) -> None:
    first, second = (declared("weights.toml", folder / inner / "models.py") for inner in ("a", "b"))
    image: Any = first.add_to(Image())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has another manifest at /etc/weightcache/v-") as caught:
        second.add_to(image)
    assert f"where manifest {folder}/b/weights.toml would be" in str(caught.value)
    second.add_to(Image())  # type: ignore[arg-type] # of another function
    again = declared("weights.toml", folder / "a" / "models.py")
    assert again.add_to(image) is image  # the same manifest, as of a second WeightVolume, is there already


def test_a_path_that_others_share_is_read_only_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc = folder / "etc"
    etc.mkdir()
    monkeypatch.setattr("weightcache.modal.deployed_manifest.manifest_path", lambda name: f"{etc}/{name}.toml")
    elsewhere = folder / "elsewhere" / "app.py"
    image: Any = declared(folder / "a" / "weights.toml", elsewhere).add_to(Image())  # type: ignore[arg-type]
    for path, source in image.files.items():
        os.link(source, path)
    in_container(monkeypatch)
    mine = declared("/somewhere/a/weights.toml", Path("/root/app.py"))
    assert list(mine.load()) == list(Manifest.load(folder / "a" / "weights.toml"))
    theirs = declared("/somewhere/b/weights.toml", Path("/root/app.py"))
    with pytest.raises(ManifestError, match=r"no such file: pass image=cache\.add_to") as caught:
        theirs.load()  # the file may be that of the other one
    assert str(etc) in str(caught.value)
    assert "give the manifest's path relative to the file" in str(caught.value)


def test_a_mapping_is_what_was_deployed_or_what_is_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc = folder / "etc"
    etc.mkdir()
    monkeypatch.setattr("weightcache.modal.deployed_manifest.manifest_path", lambda name: f"{etc}/{name}.toml")
    image: Any = declared(one(b"of the machine", name="deployed"), folder / "app.py").add_to(Image())  # type: ignore
    for path, source in image.files.items():
        os.link(source, path)
    in_container(monkeypatch)
    alone = declared(one(b"of the container", name="here"), Path("/root/app.py"))
    assert [each.name for each in alone.load()] == ["deployed"]
    second = declared(one(b"another", name="another"), Path("/root/app.py"))
    assert [each.name for each in second.load()] == ["another"]


def test_a_pickle_has_the_paths_of_the_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "app.py").write_text(
        "from pathlib import Path\nfrom weightcache.modal import WeightVolume\n"
        "cache = WeightVolume(Path(__file__).parent / 'a' / 'weights.toml', name='v', path='/w')"
    )
    cache: WeightVolume = runpy.run_path(str(folder / "app.py"))["cache"]
    image: Any = cache.add_to(Image())  # type: ignore[arg-type]
    text = pickle.dumps(cache)
    in_container(monkeypatch)
    again: WeightVolume = pickle.loads(text)
    assert [each.name for each in again.manifest] == ["in-a"]
    assert declared("/root/a/weights.toml", Path("/root/app.py")).path in image.files
