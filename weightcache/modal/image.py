"""Add this library and a manifest to a Modal image."""

from __future__ import annotations

import os
import re
import weakref

from weightcache.manifest import Manifest
from weightcache.manifest.validate import user_path

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from typing import Any

    import modal

    from weightcache.manifest import ManifestSource


LOCAL_FILES = "Image(local files)"  # repr of an image that ends in add_local_… (modal/_image.py, 1.5 and 1.6)

# What was added here to each image: "library", and the path of each manifest with its text.
_added: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()


def manifest_path(name: str) -> str:
    """Return the path in a container of the manifest with this name."""
    return f"/etc/weightcache/{name}.toml"


def add_library_once(image: modal.Image, *, copy: bool = False) -> modal.Image:
    """Return ``image`` with this library. An image that has it from here, also through `add_manifest`, is returned.

    Args:
        image: The image.
        copy: Build local files into the image, so that build steps can follow; otherwise they are added at start.

    Raises:
        ValueError: The image ends in local files, after which Modal refuses to install anything.
        ModuleNotFoundError: This library is importable but not installed, so its requirements are unknown.
    """
    has_library = "library" in _added.get(image, ())
    if has_library and not (copy and repr(image) == LOCAL_FILES):
        return image
    if has_library:
        raise ValueError(
            "the image ends in the files of add_to, and Modal allows no build step after them: call fill before add_to"
        )
    if repr(image) == LOCAL_FILES:
        raise ValueError(
            "the image ends in add_local_…, and Modal allows no pip_install after it: call add_to before add_local_…, "
            "or give that copy=True; if the image has weightcache already, call add_to(image, library=False)"
        )
    return _note(add_library(image, copy=copy), image, "library", "")


def add_library(image: modal.Image, *, copy: bool = False) -> modal.Image:
    """Return ``image`` with the version of this library that runs here; ``copy`` as in `add_library_once`."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution("weightcache")
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            "weightcache is importable but not installed, so its requirements are unknown: "
            "run `pip install -e` on its checkout",
            name="weightcache",
        ) from None
    if installed.read_text("direct_url.json") is None:
        return image.pip_install(f"weightcache=={installed.version}")
    # Installed from a directory or a repository: the package index does not have this version.
    required = [each for each in installed.requires or () if not re.search(r"\bextra\s*==", each)]
    return image.pip_install(*required).add_local_python_source("weightcache", copy=copy)


def add_manifest(image: modal.Image, manifest: ManifestSource, path: str, *, copy: bool = False) -> modal.Image:
    """Return ``image`` with ``manifest`` at ``path``, unless it is there already; ``copy`` as in `add_library_once`.

    Raises:
        ValueError: This function put another manifest there.
    """
    text = to_toml(Manifest.load(manifest))
    held = _added.get(image, {}).get(path, "")
    if held and held != text:
        source = f"manifest {manifest}" if isinstance(manifest, (str, os.PathLike)) else "manifest"
        raise ValueError(
            f"the image has another manifest at {path} already, where {source} would be: give one of the files another "
            "name, or give its path relative to the file that makes the WeightVolume"
        )
    return image if held else _note(image.add_local_file(_file_of(manifest, text), path, copy=copy), image, path, text)


def has_manifest(image: modal.Image, path: str) -> bool:
    """Whether `add_manifest` put one at ``path``."""
    return path in _added.get(image, ())


def with_build_step(made: modal.Image, before: modal.Image) -> modal.Image:
    """Return ``made``, an image of ``before`` and one more build step, and note that it has what ``before`` has."""
    _added[made] = dict(_added.get(before, {}))
    return made


def _note(made: modal.Image, before: modal.Image, what: str, text: str) -> modal.Image:
    """Note what ``made`` holds more than ``before``, and return it."""
    _added[made] = {**_added.get(before, {}), what: text}
    return made


def _file_of(manifest: ManifestSource, text: str) -> str:
    if isinstance(manifest, (str, os.PathLike)):  # the file itself, so that `modal serve` notices changes
        return os.path.abspath(user_path(os.fspath(manifest)))
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="weightcache-")  # Modal reads it at deployment, after this call
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with open(f"{folder}/weights.toml", "w", encoding="utf-8") as stream:
        stream.write(text)
    return f"{folder}/weights.toml"


def to_toml(manifest: Manifest) -> str:
    """Return ``manifest`` as TOML for `Manifest.load`."""
    return "\n\n".join(["version = 1", *map(str, manifest)]) + "\n"
