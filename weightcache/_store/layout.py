"""Where everything lies under one root (on-disk format 1)."""

from __future__ import annotations

import os

from weightcache.manifest.validate import user_path

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from weightcache.manifest import Checkpoint, File


class Layout:
    """Where everything lies under one root (on-disk format 1). Knows names only; touches no disk."""

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

    def version_dir(self, checkpoint: Checkpoint) -> str:
        """The directory of one version of a checkpoint."""
        return f"{self.root}/{checkpoint.name}/{checkpoint.digest[:16]}"

    def file(self, checkpoint: Checkpoint, file: File) -> str:
        return f"{self.root}/{checkpoint.name}/{checkpoint.digest[:16]}/{file.path}"

    def published(self, checkpoint: Checkpoint) -> str:
        """What `ensure` returns: the file, or the directory of a directory checkpoint."""
        return self.version_dir(checkpoint) if checkpoint.is_directory else self.file(checkpoint, checkpoint.files[0])

    def receipt(self, checkpoint: Checkpoint) -> str:
        return f"{self.root}/.weightcache/receipts/{checkpoint.name}/{checkpoint.digest}.json"
