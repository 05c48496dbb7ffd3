"""Add this library and a manifest to a Modal image."""

from __future__ import annotations

import os
import re

from weightcache.manifest import Manifest
from weightcache.manifest.validate import user_path

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    import modal

    from weightcache.manifest import ManifestSource


def manifest_path(name: str) -> str:
    """Return the path in a container of the manifest for the Volume ``name``."""
    return f"/etc/weightcache/{name}.toml"


def add_library(image: modal.Image, *, copy: bool = False) -> modal.Image:
    """Return ``image`` with the version of this library that runs here.

    Args:
        image: The image.
        copy: Build local files into the image, so that build steps can follow; otherwise they are added at start.
    """
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
    """Return ``image`` with ``manifest`` at ``path``; ``copy`` as in `add_library`."""
    if isinstance(manifest, (str, os.PathLike)):  # the file itself, so that `modal serve` notices changes
        return image.add_local_file(os.path.abspath(user_path(os.fspath(manifest))), path, copy=copy)
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="weightcache-")  # Modal reads it at deployment, after this call
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with open(f"{folder}/weights.toml", "w", encoding="utf-8") as stream:
        stream.write(to_toml(Manifest.load(manifest)))
    return image.add_local_file(f"{folder}/weights.toml", path, copy=copy)


def to_toml(manifest: Manifest) -> str:
    """Return ``manifest`` as TOML for `Manifest.load`."""
    return "\n\n".join(["version = 1", *map(str, manifest)]) + "\n"
