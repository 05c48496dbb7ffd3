"""What `ensure` returns."""

from __future__ import annotations

from collections.abc import Mapping

from weightcache._store.inspect import inspect

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint
    from weightcache.reports import Report

__all__ = ["Weights"]


class Weights(Mapping[str, "Path"]):
    """What `ensure` returns: each name's verified path, in manifest order, and a `Report`.

    A checkpoint of one file maps to that file, a directory checkpoint to its directory.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    __slots__ = ("_checkpoints", "_paths", "_report", "_root")

    def __init__(
        self,
        paths: Mapping[str, str],
        report: Report | None = None,
        checkpoints: Sequence[Checkpoint] = (),
        root: str = "",
    ) -> None:
        self._paths = paths
        self._report = report
        self._checkpoints = checkpoints
        self._root = root

    @property
    def report(self) -> Report:
        """What was done, checkpoint by checkpoint."""
        if self._report is None:
            from weightcache.reports import CheckpointReport, Report

            self._report = Report({name: CheckpointReport() for name in self._paths})
        return self._report

    def with_warnings(self, warnings: Sequence[str]) -> Weights:
        """Return these weights with more warnings in the report, before those that it has."""
        if not warnings:
            return self
        from dataclasses import replace

        report = replace(self.report, warnings=(*warnings, *self.report.warnings))
        return Weights(self._paths, report, self._checkpoints, self._root)

    def link(self, paths: Mapping[str, str | os.PathLike[str]]) -> dict[str, Path]:
        """Make symlinks to checkpoints, for a program that looks in folders of its own.

        Each link is made at once: a reader, and another process that does the same, sees the old one or the new one.
        One that is right is left as it is, and one of ours to another version is replaced. Folders are made.

        Args:
            paths: Name → where the link is to be, on the container's own disk; ``~`` expands, and a relative path is
                of the working directory. A directory checkpoint becomes a link to its directory.

        Returns:
            Name → the absolute path of its link.

        Raises:
            UnknownCheckpointError: A name is not among these weights.
            StorageError: Something that is no link of ours is there, the path lies in the root or on a Modal Volume
                (nothing was linked then), or the disk is full or cannot be written.
            TypeError, ValueError: An argument is of the wrong kind, or two names have one path.
        """
        from .symlinks import link

        return link(paths, self._paths, self._root)

    def hf_cache(self, directory: str | os.PathLike[str], *, only: Collection[str] | None = None) -> Path:
        """Make a cache of symlinks as huggingface_hub reads it, so that ``from_pretrained("org/name")`` works offline.

        The program must find ``HF_HUB_CACHE`` set to what this returns and ``HF_HUB_OFFLINE`` to ``1`` when it imports
        huggingface_hub or transformers; both read them once. A checkpoint is known by each ``hf://REPO@COMMIT`` among
        its URLs, with the files that the manifest declares; one without any is left out. Several checkpoints of one
        repository are one there. What huggingface_hub itself put into ``directory`` is left as it is.

        Args:
            directory: Where the cache is to be, on the container's own disk; made if it does not exist.
            only: Names of the checkpoints wanted in it; ``None`` for all.

        Returns:
            ``directory``, as an absolute path.

        Raises:
            ManifestError: No checkpoint has an ``hf://`` URL, or two name different commits of one repository.
            UnknownCheckpointError: ``only`` names a checkpoint that is not among these weights.
            StorageError: ``directory`` lies in the root or on a Modal Volume, holds another commit that was downloaded
                there, or cannot be written.
            TypeError, ValueError: An argument is of the wrong kind.
        """
        from .hf_cache import hub_cache

        return hub_cache(directory, self._checkpoints, self._paths, self._root, only)

    def __getitem__(self, name: str) -> Path:
        from pathlib import Path  # not at the top: a hit that passes strings on need not load it

        return Path(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"Weights({dict(self._paths)!r})"


def weights_if_ready(layout: Layout, checkpoints: Sequence[Checkpoint]) -> Weights | None:
    """Return the `Weights` if every checkpoint is a hit, else ``None``."""
    for checkpoint in checkpoints:
        if inspect(layout, checkpoint).state != "ready":
            return None
    paths = {checkpoint.name: layout.published(checkpoint) for checkpoint in checkpoints}
    return Weights(paths, None, checkpoints, layout.root)
