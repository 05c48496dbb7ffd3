"""The paths below one root (on-disk format 1)."""

from __future__ import annotations

import os

from weightcache.manifest.validate import MODAL_VOLUMES, real_path, user_path

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from weightcache.manifest import Checkpoint, File, Tag


class Layout:
    """The paths below one root (on-disk format 1). Computes paths only; never touches the disk.

    Raises:
        TypeError: ``root`` is not a path.
        ValueError: ``root`` is empty or contains a NUL.
        StorageError: ``root`` begins with ``~``, and there is no home directory.
    """

    __slots__ = ("root",)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        path: object = os.fspath(root) if isinstance(root, (str, os.PathLike)) else None
        if not isinstance(path, str):
            raise TypeError(f"root must be a path, not {type(root).__name__}")
        if not path or "\0" in path:
            raise ValueError(f"root must be the path of a directory, got {path!r}")
        # abspath, not realpath: a Volume's mount path is a symlink whose target changes from container to container.
        self.root = os.path.abspath(user_path(path))

    @property
    def home(self) -> str:
        return f"{self.root}/.weightcache"

    @property
    def partials(self) -> str:
        return f"{self.root}/.weightcache/partial"

    @property
    def receipts(self) -> str:
        return f"{self.root}/.weightcache/receipts"

    @property
    def tags(self) -> str:
        return f"{self.root}/.weightcache/tags"

    def tag(self, tag: Tag) -> str:
        """The directory that holds one file for each publication of a tag."""
        return f"{self.root}/.weightcache/tags/{tag.name}/{tag.tag}"

    def version_dir(self, checkpoint: Checkpoint) -> str:
        """The directory of one version of a checkpoint."""
        return f"{self.root}/{version_path(checkpoint.name, checkpoint.digest)}"

    def file(self, checkpoint: Checkpoint, file: File) -> str:
        """The published file."""
        return f"{self.root}/{version_path(checkpoint.name, checkpoint.digest)}/{file.path}"

    def published(self, checkpoint: Checkpoint) -> str:
        """What `ensure` returns: the file, or the directory of a directory checkpoint."""
        return self.version_dir(checkpoint) if checkpoint.is_directory else self.file(checkpoint, checkpoint.files[0])

    def receipt(self, checkpoint: Checkpoint) -> str:
        """The receipt of one version of a checkpoint."""
        return f"{self.root}/{receipt_path(checkpoint.name, checkpoint.digest)}"


def version_path(name: str, digest: str) -> str:
    """Return the directory of a version, relative to the root, by the checkpoint's name and full digest."""
    return f"{name}/{digest[:16]}"


def receipt_path(name: str, digest: str, ending: str = "json") -> str:
    """Return the receipt of a version, relative to the root; `prune` gives it another ending before it deletes."""
    return f".weightcache/receipts/{name}/{digest}.{ending}"


def needs_reload(root: str, path: object, *, has_volume: bool) -> bool:
    """Whether ``path`` is a path on a Modal Volume, or below a root that has a Volume.

    Such a file changes when another container commits, and this container sees that only after a reload.
    """
    if not (has_volume or os.path.isdir(MODAL_VOLUMES)):  # one stat, where `real_path` makes several
        return False
    real = real_path(path)
    return real.startswith(MODAL_VOLUMES) or (has_volume and real.startswith(f"{os.path.realpath(root)}/"))
