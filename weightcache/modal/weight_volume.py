"""`WeightVolume`: a manifest and the Modal Volume for its weights, declared once.

::

    cache = WeightVolume("weights.toml", name="fashion-models", path="/root/data/weights")

    @app.cls(image=cache.add_to(image), volumes=cache.mounts, startup_timeout=900)
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
import sys
from contextlib import suppress

from weightcache._api import aensure, ensure
from weightcache._environment import in_modal_container as in_container
from weightcache._prefetch.api import prefetch, prefetch_files
from weightcache.errors import ManifestError

from .deployed_tag import deployed
from .fill import CPU, MEMORY, TIMEOUT, add_fill_step
from .image import add_library_once, with_build_step
from .volume_source import VolumeSource, check_paths, checked_mount_path

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Literal, overload

    import modal
    from typing_extensions import Unpack

    from weightcache._coordination.kv import LeaseSource
    from weightcache._engine.ensure_options import CommonArguments
    from weightcache._prefetch.api import Prefetch
    from weightcache._transfer.progress import ProgressCallback
    from weightcache._views.weights import Weights
    from weightcache.manifest import Manifest, WeightSource
    from weightcache.reports import Plan

__all__ = ["WeightVolume"]


class WeightVolume:
    """A manifest and the Modal Volume that holds its weights.

    Args:
        manifest: Path of a ``weights.toml``, a mapping of the same shape, a `Manifest`, or a `Tag`. A relative path is
            resolved against the calling file first, then against the working directory.
        name: Name of the Volume.
        path: Absolute mount path in containers.
        volume: A `modal.Volume` in place of ``name`` and of the three arguments after this one.
        version: 1 or 2, Modal's version of a Volume; ``None`` for what exists, or Modal's default.
        environment_name: Modal environment of the Volume; ``None`` for that of the app.
        create_if_missing: Whether the Volume is created at its first use.
        read_only: Mount it read-only: a miss is an error, after a container that fills the Volume has finished.
        sub_path: Mount only this directory of the Volume; it is created if it does not exist. ``None`` for all.

    Raises:
        ManifestError: The manifest is invalid. Only on the machine that deploys: a container reads it in `ensure`.
        ValueError: An argument is invalid, or does not fit another one.
        TypeError: An argument has the wrong type, or neither ``name`` nor ``volume`` is given.
    """

    __module__ = "weightcache.modal"  # pickles name it: it must not change with the file

    def __init__(
        self,
        manifest: WeightSource,
        *,
        name: str | None = None,
        path: str | os.PathLike[str],
        volume: modal.Volume | None = None,
        version: int | None = None,
        environment_name: str | None = None,
        create_if_missing: bool = True,
        read_only: bool = False,
        sub_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._source = VolumeSource(
            name,
            volume,
            version=version,
            environment_name=environment_name,
            create_if_missing=create_if_missing,
            read_only=read_only,
            sub_path=sub_path,
        )
        self.name = self._source.name
        self.path = checked_mount_path(os.fspath(path))
        self._volume: modal.Volume | None = None
        caller = sys._getframe(1).f_globals.get("__file__")  # noqa: SLF001 (inspect would return the same)
        self._manifest = deployed(manifest, caller, self.name)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_volume": None}  # Modal cannot pickle a handle before its first use

    @property
    def manifest(self) -> Manifest:
        """The manifest; a container reads the copy in its image, else `ManifestError`. A `Tag`: `TypeError`."""
        return self._manifest.load()

    @property
    def volume(self) -> modal.Volume:
        """The handle of the Volume, with its mount options. A `VolumeError` says if the package modal is too old."""
        if self._volume is None:
            self._volume = self._source.handle()
        return self._volume

    @property
    def mounts(self) -> dict[str, modal.Volume]:
        """The value for ``volumes=``: mount path → Volume. Join several with ``{**a.mounts, **b.mounts}``."""
        return {self.path: self.volume}

    def add_to(self, image: modal.Image, *, library: bool = True) -> modal.Image:
        """Return ``image`` with this library and the manifest, but without weights.

        For an installed release, the image installs the same version. For a source checkout, it installs the
        requirements and adds the files at start. Call this after ``pip_install`` and other build steps, and before
        ``add_local_…`` of your own: Modal requires those last. The result may go to `add_to` of another `WeightVolume`.

        Args:
            image: The image. It must not end in local files, unless `add_to` added them.
            library: ``False`` if the image has this library. Then ``image`` may end in local files.

        Raises:
            ModuleNotFoundError: This library is importable but not installed, so its requirements are unknown.
            ValueError: The image ends in local files; or another manifest would be at the same path in the image.
        """
        if in_container():  # the image exists, and a mounted source checkout has no metadata
            return image
        return self._manifest.add_to(add_library_once(image) if library else image)

    @staticmethod
    def add_all(image: modal.Image, *caches: WeightVolume) -> modal.Image:
        """Return ``image`` with this library and the manifest of each of ``caches``; see `add_to`.

        Raises:
            ValueError: Two of them have one mount path, and not the same directory of the same Volume, so that no
                function can mount both; or see `add_to`.
        """
        check_paths({cache: (cache.path, cache._source) for cache in caches}.values())  # noqa: SLF001 (of this class)
        for cache in caches:
            image = cache.add_to(image)
        return image

    def fill(
        self,
        image: modal.Image,
        *,
        only: Collection[str] | None = None,
        secrets: Sequence[modal.Secret] = (),
        timeout: int = TIMEOUT,
        cpu: float = CPU,
        memory: int = MEMORY,
        force_build: bool = False,
    ) -> modal.Image:
        """Return ``image`` with this library and the manifest, as `add_to`, and download the weights when it is built.

        It runs again when the manifest, the Volume or an earlier build step changes. Build steps can follow;
        ``add_local_…`` without ``copy=True`` must come after this call.

        Args:
            image: An image for which every ``add_local_…`` so far had ``copy=True``.
            only: Names of the checkpoints to download; ``None`` for all.
            secrets: Modal Secrets with the tokens that the manifest names.
            timeout: Seconds after which Modal stops the download; the deployment then fails.
            cpu: Cores for the download.
            memory: MiB for the download.
            force_build: Run the download although nothing changed, for example after the Volume was emptied.

        Raises:
            ModuleNotFoundError, ValueError: See `add_to`; or the Volume has no name.
            UnknownCheckpointError: ``only`` names a checkpoint that is not declared.
        """
        if in_container():
            return image
        base = add_library_once(image, copy=True)
        filled = add_fill_step(
            base,
            self.manifest,
            {self.path: self._source.handle(writable=True)},
            {"path": self.path, **self._source.settings()},
            only=only,
            secrets=secrets,
            timeout=timeout,
            cpu=cpu,
            memory=memory,
            force_build=force_build,
        )
        return self._manifest.add_to(with_build_step(filled, base), copy=True)

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
        time_limit: float | None = None,
    ) -> Weights | Plan:
        """Return the verified path of every checkpoint, downloading missing ones; see `weightcache.ensure`.

        In a container the Volume is committed and reloaded as needed. Elsewhere ``path`` is a plain directory.

        Raises:
            ManifestError: The image was not prepared with `add_to`.
            WeightCacheError: See `weightcache.ensure`.
        """
        return ensure(
            self._manifest.declared(),
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
            time_limit=time_limit,
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
        time_limit: float | None = None,
    ) -> Weights | Plan:
        """Run `ensure` in a thread; see `weightcache.aensure`."""
        return await aensure(
            self._manifest.declared(),
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
            time_limit=time_limit,
        )

    def prefetch(
        self, *, only: Collection[str] | None = None, into: str = "cache", threads: int | None = None
    ) -> Prefetch:
        """Read the weights in the background, as `weightcache.prefetch` does; nothing on the machine that deploys."""
        if not in_container():
            return prefetch_files(into=into, threads=threads)
        source: WeightSource = self._manifest.path  # if it is missing, the handle reports it
        with suppress(ManifestError):
            source = self._manifest.declared()
        return prefetch(source, root=self.path, only=only, into=into, threads=threads)
