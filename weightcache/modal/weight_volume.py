"""A Modal Volume for weights, in one line: no path, no name and no manifest twice.

::

    cache = WeightVolume("weights.toml", name="fashion-models", path="/root/data/weights")

    @app.cls(image=cache.add_to(image), volumes=cache.mounts)
    class FashionCrop:
        @modal.enter()
        def load(self):
            weights = cache.ensure()

The module that says so is imported on the machine that deploys, where neither the Volume nor its mount path exists,
and again in every container, where the manifest's file does not lie beside it. So nothing here touches the mount path
before `WeightVolume.ensure`, and a container reads the manifest from where `WeightVolume.add_to` put it.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress

from weightcache._api import aensure, ensure
from weightcache._prefetch.api import prefetch, prefetch_files
from weightcache._runtime.identity import in_modal_container as in_container
from weightcache.errors import ManifestError
from weightcache.manifest import Manifest
from weightcache.manifest.validate import user_path

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    import modal

    from weightcache._coordination.kv import LeaseSource
    from weightcache._prefetch.api import Prefetch
    from weightcache._transfer.progress import ProgressCallback
    from weightcache._views.weights import Weights
    from weightcache.manifest import ManifestSource

__all__ = ["WeightVolume"]

_RESERVED = ("/", "/root", "/tmp")  # noqa: S108 (modal/_utils/mount_utils.py, 1.6, refuses them)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # as Modal has it; it becomes part of a path


class WeightVolume:
    """A manifest, and the Modal Volume that holds its weights.

    Args:
        manifest: Path of a ``weights.toml``, a mapping of the same shape, or a `Manifest`. A relative path is looked
            for beside the file that makes this call, then in the working directory.
        name: Name of the Volume; it is made when it is first used.
        path: Where containers mount it, an absolute path.

    Raises:
        ManifestError: The manifest has problems. Only on the machine that deploys: a container reads it in `ensure`.
        ValueError: ``name`` or ``path`` is none.
        TypeError: An argument is of the wrong kind.
    """

    __module__ = "weightcache.modal"  # pickles name it: it must not change with the file

    def __init__(self, manifest: ManifestSource, *, name: str, path: str | os.PathLike[str]) -> None:
        path = os.fspath(path)
        if not _NAME.fullmatch(name):
            raise ValueError(f"name must be 1 to 64 letters, digits, dots, dashes and underscores, got {name!r}")
        if not path.startswith("/"):
            raise ValueError(f"path must be absolute, as in '/root/data/weights', got {path!r}")
        if os.path.normpath(path) in _RESERVED:
            raise ValueError(
                f"path must be none of {', '.join(_RESERVED)}, which Modal refuses; try '/root/data/weights'"
            )
        self.name = name
        self.path = path
        self._volume: modal.Volume | None = None
        if not in_container() and isinstance(manifest, (str, os.PathLike)):
            here = sys._getframe(1).f_globals.get("__file__")  # noqa: SLF001 (inspect would return the same)
            manifest = _find(os.fspath(manifest), here)
        # A container that runs another part of the app imports this too, and need not have the manifest.
        self._manifest: ManifestSource = manifest
        self._checked = None if in_container() else Manifest.load(manifest)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_volume": None}  # Modal refuses to pickle a handle that was never used

    @property
    def manifest(self) -> Manifest:
        """The manifest, as this container's image or the machine that deploys has it.

        Raises:
            ManifestError: The container's image was not made by `add_to`.
        """
        if self._checked is None:
            place = manifest_place(self.name)
            if os.path.exists(place):
                self._checked = Manifest.load(place)
            elif isinstance(self._manifest, (str, os.PathLike)):
                raise ManifestError(place, ["there is no such file: let this function have image=cache.add_to(image)"])
            else:
                self._checked = Manifest.load(self._manifest)
        return self._checked

    @property
    def volume(self) -> modal.Volume:
        """The Volume. Making this handle asks nothing of Modal yet."""
        if self._volume is None:
            import modal

            self._volume = modal.Volume.from_name(self.name, create_if_missing=True)
        return self._volume

    @property
    def mounts(self) -> dict[str, modal.Volume]:
        """What ``volumes=`` takes: the mount path and the Volume."""
        return {self.path: self.volume}

    def add_to(self, image: modal.Image) -> modal.Image:
        """Return ``image`` with this library and the manifest; never with weights.

        An installed release is installed there in the same version. From a source checkout, what it requires is
        installed and its files are added at start. Modal wants every ``add_local_…`` after the steps that build, so
        call this after the image's own ``pip_install`` and the like.

        Raises:
            ModuleNotFoundError: This library is on the path without being installed, so what it requires is not known.
        """
        if in_container():  # the image is built, and a source checkout mounted there has no metadata
            return image
        return add_manifest(add_library(image), self._manifest, manifest_place(self.name))

    def ensure(
        self,
        *,
        lease: LeaseSource = "auto",
        only: Collection[str] | None = None,
        offline: bool = False,
        rehash: bool = False,
        wait: float = 300.0,
        patience: float = 180.0,
        progress: bool | ProgressCallback | None = None,
    ) -> Weights:
        """Return the verified path of every checkpoint, fetching what is missing, as `weightcache.ensure`.

        In a container the Volume is committed and reloaded as needed. Elsewhere ``path`` is a plain directory.

        Raises:
            ManifestError: The container's image was not made by `add_to`.
            WeightCacheError: As `weightcache.ensure` has it.
        """
        return ensure(
            self.manifest,
            root=self.path,
            volume=self.volume if in_container() else None,
            lease=lease,
            only=only,
            offline=offline,
            rehash=rehash,
            wait=wait,
            patience=patience,
            progress=progress,
        )

    async def aensure(
        self,
        *,
        lease: LeaseSource = "auto",
        only: Collection[str] | None = None,
        offline: bool = False,
        rehash: bool = False,
        wait: float = 300.0,
        patience: float = 180.0,
        progress: bool | ProgressCallback | None = None,
    ) -> Weights:
        """Do what `ensure` does in a thread, so that the event loop goes on: `weightcache.aensure`."""
        return await aensure(
            self.manifest,
            root=self.path,
            volume=self.volume if in_container() else None,
            lease=lease,
            only=only,
            offline=offline,
            rehash=rehash,
            wait=wait,
            patience=patience,
            progress=progress,
        )

    def prefetch(self, *, only: Collection[str] | None = None, into: str = "cache", threads: int = 8) -> Prefetch:
        """Begin to read what the Volume holds, in the background: `weightcache.prefetch`, for the top of a module.

        On the machine that deploys the module this reads nothing.
        """
        if not in_container():
            return prefetch_files(into=into, threads=threads)
        source: ManifestSource = manifest_place(self.name)  # if it is not there, the handle says so
        with suppress(ManifestError):
            source = self.manifest
        return prefetch(source, root=self.path, only=only, into=into, threads=threads)


def manifest_place(name: str) -> str:
    """Where the manifest of the Volume ``name`` lies in a container."""
    return f"/etc/weightcache/{name}.toml"


def add_library(image: modal.Image) -> modal.Image:
    """Return ``image`` with this library in the version that runs here."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution("weightcache")
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            "weightcache is not installed here, so what it requires is not known; run `pip install -e` on its checkout",
            name="weightcache",
        ) from None
    if installed.read_text("direct_url.json") is None:
        return image.pip_install(f"weightcache=={installed.version}")
    # From a directory or a repository: no index has this version.
    required = [each for each in installed.requires or () if not re.search(r"\bextra\s*==", each)]
    return image.pip_install(*required).add_local_python_source("weightcache")


def add_manifest(image: modal.Image, manifest: ManifestSource, place: str) -> modal.Image:
    """Return ``image`` with ``manifest`` at ``place``."""
    if isinstance(manifest, (str, os.PathLike)):  # the file itself, so that `modal serve` sees when it changes
        return image.add_local_file(os.path.abspath(user_path(os.fspath(manifest))), place)
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="weightcache-")  # Modal reads it when the app is deployed, long after this call
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with open(f"{folder}/weights.toml", "w", encoding="utf-8") as stream:
        stream.write(to_toml(Manifest.load(manifest)))
    return image.add_local_file(f"{folder}/weights.toml", place)


def to_toml(manifest: Manifest) -> str:
    """Write ``manifest`` as `Manifest.load` reads it."""
    return "\n\n".join(["version = 1", *map(str, manifest)]) + "\n"


def _find(path: str, caller: Any) -> str:
    """Return where the manifest is: beside the file that asks for it, else as the working directory has it."""
    path = user_path(path)
    if isinstance(caller, str):
        beside = os.path.join(os.path.dirname(os.path.abspath(caller)), path)
        if os.path.exists(beside):
            return beside
    return os.path.abspath(path)
