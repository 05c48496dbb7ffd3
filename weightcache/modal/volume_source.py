"""Which Modal Volume a `WeightVolume` uses, and how containers mount it."""

from __future__ import annotations

import os
import re

from weightcache.manifest.validate import path_problem

from .client_version import check_client_version

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Iterable

    import modal

_RESERVED = ("/", "/root", "/tmp")  # noqa: S108 (modal/_utils/mount_utils.py, 1.6, refuses them)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # Modal's rule; the name becomes part of a path


class VolumeSource:
    """A Volume by name, or a handle of one, with its mount options.

    Raises:
        ValueError: A value is invalid, or does not fit the others.
        TypeError: A value has the wrong type.

    Attributes:
        name: Name of the Volume; empty for a handle without one.
        sub_path: The mounted directory of the Volume, without a slash at its ends; empty for the whole Volume.
    """

    def __init__(
        self,
        name: str | None,
        volume: modal.Volume | None,
        *,
        version: int | None,
        environment_name: str | None,
        create_if_missing: bool,
        read_only: bool,
        sub_path: str | os.PathLike[str] | None,
    ) -> None:
        if volume is None:
            _check_name(name)
        else:
            named = {"name": name, "version": version, "environment_name": environment_name}
            named["create_if_missing"] = None if create_if_missing else create_if_missing
            _check_handle(volume, [each for each, value in named.items() if value is not None])
        if version not in (None, 1, 2):
            raise ValueError(f"version must be 1 or 2, the versions of Modal's Volumes, got {version!r}")
        self.name = name or getattr(volume, "name", None) or ""
        self.sub_path = _checked_sub_path(sub_path)
        self._given, self._read_only = volume, read_only
        self._version, self._environment, self._create = version, environment_name or "", create_if_missing

    def handle(self, *, writable: bool = False) -> modal.Volume:
        """Return the handle with its mount options, or ``writable`` in place of read-only. No request is sent.

        Raises:
            VolumeError: The installed client of Modal is too old.
        """
        volume = self._given
        if volume is None:
            import modal

            check_client_version(modal.__version__)
            volume = modal.Volume.from_name(
                self.name,
                version=self._version,
                environment_name=self._environment or None,
                create_if_missing=self._create,
            )
        if self._read_only or self.sub_path or writable:  # an option that is not given here stays as the handle has it
            read_only = False if writable else self._read_only or None
            volume = volume.with_mount_options(read_only=read_only, sub_path=self.sub_path or None)
        return volume

    def settings(self) -> dict[str, object]:
        """Return the arguments that name the Volume, as JSON can hold them, for a `WeightVolume` in another process.

        Raises:
            ValueError: The Volume has no name.
        """
        if not self.name:
            raise ValueError("the Volume has no name, by which another container could open it: pass name=")
        return {
            "name": self.name,
            "version": self._version,
            "environment_name": self._environment or None,
            "sub_path": self.sub_path or None,
        }

    def conflicts_with(self, other: VolumeSource) -> bool:
        """Whether both are known to be other Volumes, or other directories of one, so that no path can show both."""
        return (
            _differ(self.name, other.name)
            or _differ(self._environment, other._environment)
            or (self.sub_path != other.sub_path and self._given is other._given)
        )


def _differ(one: str, other: str) -> bool:
    return bool(one and other and one != other)


def _check_name(name: object) -> None:
    if name is None:
        raise TypeError("pass name= (the name of a Volume) or volume= (a modal.Volume)")
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {type(name).__name__}; pass a modal.Volume as volume=")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be 1 to 64 letters, digits, dots, dashes and underscores, got {name!r}")


def _check_handle(volume: object, others: list[str]) -> None:
    if not all(callable(getattr(volume, each, None)) for each in ("commit", "reload", "with_mount_options")):
        raise TypeError(f"volume must be a modal.Volume, not {type(volume).__name__}; pass the name of one as name=")
    if others:
        raise ValueError(f"volume= is a Volume already: leave out {', '.join(others)}")


def _checked_sub_path(given: str | os.PathLike[str] | None) -> str:
    if given is None:
        return ""
    text = os.fspath(given)
    inner = text.strip("/")
    problem = path_problem(inner) if inner or not text else None
    if problem:
        raise ValueError(
            f"sub_path must be a directory of the Volume, as in 'models/sd', got {text!r}, which {problem}"
        )
    return inner


def check_paths(mounted: Iterable[tuple[str, VolumeSource]]) -> None:
    """Check that one function can mount all of these at their paths.

    Raises:
        ValueError: Two have one path, and not the same directory of the same Volume.
    """
    sources: dict[str, VolumeSource] = {}
    for path, source in mounted:
        if source.conflicts_with(sources.setdefault(os.path.normpath(path), source)):
            raise ValueError(
                f"two Volumes, or two directories of one, cannot both be mounted at {path}: "
                "give them different mount paths"
            )


def checked_mount_path(path: str) -> str:
    """Return ``path`` if Modal can mount a Volume there.

    Raises:
        ValueError: It is relative, or one of the paths that Modal refuses.
    """
    if not path.startswith("/"):
        raise ValueError(f"path must be absolute, as in '/root/data/weights', got {path!r}")
    if os.path.normpath(path) in _RESERVED:
        raise ValueError(f"path must be none of {', '.join(_RESERVED)}, which Modal refuses; try '/root/data/weights'")
    return path
