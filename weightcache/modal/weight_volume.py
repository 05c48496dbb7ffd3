"""`WeightVolume`: a manifest and the Modal Volume for its weights, declared once.

::

    cache = WeightVolume("weights.toml", name="fashion-models", path="/root/data/weights")

    @app.cls(image=cache.add_to(image), volumes=cache.mounts)
    class FashionCrop:
        @modal.enter()
        def load(self):
            weights = cache.ensure()

The module with this code is imported on the machine that deploys, where the mount path does not exist, and again in
every container, where the manifest file does not exist beside it. So nothing here uses the mount path before
`WeightVolume.ensure`, and a container reads the copy of the manifest that `WeightVolume.add_to` put into the image.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress

from weightcache._api import aensure, ensure
from weightcache._environment import in_modal_container as in_container
from weightcache._prefetch.api import prefetch, prefetch_files
from weightcache.errors import ManifestError
from weightcache.manifest import Manifest
from weightcache.manifest.validate import user_path

from .image import add_library, add_manifest, manifest_path

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, Literal, overload

    import modal
    from typing_extensions import Unpack

    from weightcache._coordination.kv import LeaseSource
    from weightcache._engine.ensure_options import CommonArguments
    from weightcache._prefetch.api import Prefetch
    from weightcache._transfer.progress import ProgressCallback
    from weightcache._views.weights import Weights
    from weightcache.manifest import ManifestSource
    from weightcache.reports import Plan

__all__ = ["WeightVolume"]

_RESERVED = ("/", "/root", "/tmp")  # noqa: S108 (modal/_utils/mount_utils.py, 1.6, refuses them)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # Modal's rule; the name becomes part of a path


class WeightVolume:
    """A manifest and the Modal Volume that holds its weights.

    Args:
        manifest: Path of a ``weights.toml``, a mapping of the same shape, or a `Manifest`. A relative path is
            resolved against the calling file first, then against the working directory.
        name: Name of the Volume. It is created at its first use.
        path: Absolute mount path in containers.

    Raises:
        ManifestError: The manifest is invalid. Only on the machine that deploys: a container reads it in `ensure`.
        ValueError: ``name`` or ``path`` is invalid.
        TypeError: An argument has the wrong type.
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
        # Containers of other functions of the app import this module too, and may not have the manifest.
        self._manifest: ManifestSource = manifest
        self._checked = None if in_container() else Manifest.load(manifest)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_volume": None}  # Modal cannot pickle a handle before its first use

    @property
    def manifest(self) -> Manifest:
        """The manifest; a container reads the copy in its image.

        Raises:
            ManifestError: The image was not prepared with `add_to`.
        """
        if self._checked is None:
            path = manifest_path(self.name)
            if os.path.exists(path):
                self._checked = Manifest.load(path)
            elif isinstance(self._manifest, (str, os.PathLike)):
                raise ManifestError(path, ["there is no such file: pass image=cache.add_to(image) to this function"])
            else:
                self._checked = Manifest.load(self._manifest)
        return self._checked

    @property
    def volume(self) -> modal.Volume:
        """The handle of the Volume. Creating it sends no request to Modal."""
        if self._volume is None:
            import modal

            self._volume = modal.Volume.from_name(self.name, create_if_missing=True)
        return self._volume

    @property
    def mounts(self) -> dict[str, modal.Volume]:
        """The value for ``volumes=``: mount path → Volume."""
        return {self.path: self.volume}

    def add_to(self, image: modal.Image) -> modal.Image:
        """Return ``image`` with this library and the manifest, but without weights.

        For an installed release, the image installs the same version. For a source checkout, it installs the
        requirements and adds the files at start. Call this after ``pip_install`` and other build steps: Modal requires
        ``add_local_…`` calls last.

        Raises:
            ModuleNotFoundError: This library is importable but not installed, so its requirements are unknown.
        """
        if in_container():  # the image exists, and a mounted source checkout has no metadata
            return image
        return add_manifest(add_library(image), self._manifest, manifest_path(self.name))

    if TYPE_CHECKING:  # ``dry_run`` decides what is returned

        @overload
        def ensure(self, *, dry_run: Literal[False] = False, **options: Unpack[CommonArguments]) -> Weights: ...

        @overload
        def ensure(self, *, dry_run: Literal[True], **options: Unpack[CommonArguments]) -> Plan: ...

        @overload
        def ensure(self, *, dry_run: bool, **options: Unpack[CommonArguments]) -> Weights | Plan: ...

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
        dry_run: bool = False,
    ) -> Weights | Plan:
        """Return the verified path of every checkpoint, downloading missing ones; see `weightcache.ensure`.

        In a container the Volume is committed and reloaded as needed. Elsewhere ``path`` is a plain directory.

        Raises:
            ManifestError: The image was not prepared with `add_to`.
            WeightCacheError: See `weightcache.ensure`.
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
            dry_run=dry_run,
        )

    if TYPE_CHECKING:  # ``dry_run`` decides what is returned

        @overload
        async def aensure(self, *, dry_run: Literal[False] = False, **options: Unpack[CommonArguments]) -> Weights: ...

        @overload
        async def aensure(self, *, dry_run: Literal[True], **options: Unpack[CommonArguments]) -> Plan: ...

        @overload
        async def aensure(self, *, dry_run: bool, **options: Unpack[CommonArguments]) -> Weights | Plan: ...

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
        dry_run: bool = False,
    ) -> Weights | Plan:
        """Run `ensure` in a thread, without blocking the event loop; see `weightcache.aensure`."""
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
            dry_run=dry_run,
        )

    def prefetch(self, *, only: Collection[str] | None = None, into: str = "cache", threads: int = 8) -> Prefetch:
        """Start to read the weights in the background; call it at the top of a module. See `weightcache.prefetch`.

        On the machine that deploys, this reads nothing.
        """
        if not in_container():
            return prefetch_files(into=into, threads=threads)
        source: ManifestSource = manifest_path(self.name)  # if it is missing, the handle reports it
        with suppress(ManifestError):
            source = self.manifest
        return prefetch(source, root=self.path, only=only, into=into, threads=threads)


def _find(path: str, caller: Any) -> str:
    """Return the absolute path of the manifest: beside the calling file, else in the working directory."""
    path = user_path(path)
    if isinstance(caller, str):
        beside = os.path.join(os.path.dirname(os.path.abspath(caller)), path)
        if os.path.exists(beside):
            return beside
    return os.path.abspath(path)
