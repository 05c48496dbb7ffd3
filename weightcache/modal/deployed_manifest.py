"""The manifest of a `WeightVolume`: a file or a mapping where it is deployed, and a copy of it in the image.

Several manifests can be in one image, also for one Volume, and each container must find its own. It knows the arguments
of its `WeightVolume`, but neither what the file held nor where it was: an absolute path differs between both machines.
So the path in the image comes from what both know: the file that makes the `WeightVolume`, and the manifest's path as
that file has it.
"""

from __future__ import annotations

import hashlib
import os
import weakref

from weightcache._environment import in_modal_container as in_container
from weightcache.errors import ManifestError
from weightcache.manifest import Manifest
from weightcache.manifest.validate import user_path

from .image import add_manifest, has_manifest, manifest_path, to_toml

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    import modal

    from weightcache.manifest import ManifestSource

_instances: weakref.WeakSet[DeployedManifest] = weakref.WeakSet()  # of this process


class DeployedManifest:
    """One manifest, and where it is in an image.

    Args:
        given: What the caller of `WeightVolume` passed.
        caller: The file with that call, or ``None``.
        volume: Name of the Volume, for a reader of the paths.

    Raises:
        ManifestError: The manifest is invalid. In a container, `load` raises it.

    Attributes:
        source: The manifest on the machine that deploys; of a file its absolute path.
    """

    def __init__(self, given: ManifestSource, caller: str | None, volume: str) -> None:
        self._given, self._caller, self._volume = given, caller, volume
        self._is_file = isinstance(given, (str, os.PathLike))
        self._paths: tuple[str, str] | None = None
        self.source: ManifestSource = given
        # Containers of other functions of the app import the module too, and may not have the manifest.
        self._checked: Manifest | None = None
        if not in_container():
            if isinstance(given, (str, os.PathLike)):
                self.source = _find(os.fspath(given), caller)
            self._checked = Manifest.load(self.source)
        _instances.add(self)

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        _instances.add(self)

    @property
    def paths(self) -> tuple[str, str]:
        """Two paths in an image, either of which may be empty.

        The first belongs to this manifest alone. The second is for a source that may differ in a container: an absolute
        path, or a mapping that depends on the machine. Another manifest may have it too.
        """
        if self._paths is None:
            folder, module = os.path.split(os.path.abspath(self._caller)) if self._caller else ("", "")
            if module == "__init__.py":  # of a package, whose directory has the same name in a container
                module = f"{os.path.basename(folder)}/{module}"
            if isinstance(self._given, (str, os.PathLike)):
                own, shared = _path_labels(os.fspath(self._given), folder)
            else:
                own, shared = f"inline {to_toml(Manifest.load(self._given))}", "inline"
            self._paths = self._path_of(module, own), self._path_of(module, shared)
        return self._paths

    def _path_of(self, module: str, label: str) -> str:
        short = hashlib.sha256(f"{module} {label}".encode()).hexdigest()[:16]
        return manifest_path(f"{self._volume or 'volume'}-{short}") if label else ""

    @property
    def path(self) -> str:
        """The path in an image that a message names."""
        return self.paths[0] or self.paths[1]

    @property
    def identity(self) -> str:
        """What differs between two manifests of one module."""
        return os.fspath(self._given) if isinstance(self._given, (str, os.PathLike)) else self.paths[0]

    def could_be_at(self, path: str, identity: str) -> bool:
        """Whether ``path`` may hold this manifest, and this is not the manifest with ``identity``."""
        return self.paths[1] == path and self.identity != identity

    def load(self) -> Manifest:
        """Return the manifest; in a container, that of the image.

        Raises:
            ManifestError: It is invalid, or the image has no copy of the file.
        """
        if self._checked is None:
            own, shared = self.paths
            is_known = not (shared and any(each.could_be_at(shared, self.identity) for each in list(_instances)))
            if found := [each for each in (own, shared if is_known else "") if each and os.path.exists(each)]:
                self._checked = Manifest.load(found[0])
            elif not self._is_file:
                self._checked = Manifest.load(self._given)
            else:
                problem = "there is no such file: pass image=cache.add_to(image) to this function"
                if not is_known and os.path.exists(shared):
                    problem += ", and give the manifest's path relative to the file that makes the WeightVolume"
                raise ManifestError(self.path, [problem])
        return self._checked

    def declared(self) -> Manifest:
        """Return what `weightcache.ensure` takes: what `load` returns."""
        return self.load()

    def add_to(self, image: modal.Image, *, copy: bool = False) -> modal.Image:
        """Return ``image`` with a copy of the manifest, built into it with ``copy``, else added at start.

        Raises:
            ValueError: Another manifest is at its path in ``image``.
        """
        own, shared = self.paths
        for path in filter(None, (own, "" if own and has_manifest(image, shared) else shared)):
            image = add_manifest(image, self.source, path, copy=copy)
        return image


def _path_labels(path: str, folder: str) -> tuple[str, str]:
    """Return what both machines know of ``path``, given in a module in ``folder``; see `DeployedManifest.paths`."""
    if not os.path.isabs(path):
        return f"file {os.path.normpath(path)}", ""
    shared = f"any {os.path.basename(path)}"
    real, top = os.path.realpath(path), os.path.realpath(folder)
    if not folder or os.path.commonpath([real, top]) != top:
        return "", shared
    return f"file {os.path.relpath(real, top)}", shared


def _find(path: str, caller: str | None) -> str:
    """Return the absolute path of the manifest: beside the calling file, else in the working directory."""
    path = user_path(path)
    if isinstance(caller, str):
        beside = os.path.join(os.path.dirname(os.path.abspath(caller)), path)
        if os.path.exists(beside):
            return beside
    return os.path.abspath(path)
