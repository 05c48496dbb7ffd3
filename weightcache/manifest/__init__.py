"""The manifest: which checkpoints there are, where their bytes come from, and which bytes they are."""

from __future__ import annotations

import os
from collections.abc import Mapping

from weightcache._frozen import Frozen
from weightcache.errors import ManifestError, UnknownCheckpointError

from .model import Checkpoint, File, Tag
from .parse import parse, read_toml
from .validate import user_path

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from typing import Any, TypeAlias

    ManifestSource: TypeAlias = "Manifest | Mapping[str, Any] | str | os.PathLike[str]"
    WeightSource: TypeAlias = "ManifestSource | Tag"

__all__ = ["Checkpoint", "File", "Manifest", "Tag"]


class Manifest(Frozen):
    """The declared checkpoints, in order. Made by `Manifest.load`, which is what checks them.

    Attributes:
        checkpoints: All checkpoints, in the order of declaration.
        source: The file it was read from, or ``"manifest"``.

    Raises:
        ManifestError: Two checkpoints have one name.
    """

    __slots__ = ("checkpoints", "source")

    checkpoints: tuple[Checkpoint, ...]
    source: str

    def __init__(self, checkpoints: Iterable[Checkpoint], source: str = "manifest") -> None:
        declared = tuple(checkpoints)
        names = [checkpoint.name for checkpoint in declared]
        if len(set(names)) != len(names):  # a lookup by name would silently find one of them
            counts = dict.fromkeys(names, 0)
            for name in names:
                counts[name] += 1
            twice = {name: count for name, count in counts.items() if count > 1}
            raise ManifestError(
                source, [f"checkpoints.{name}: {count} have this name" for name, count in twice.items()]
            )
        self._set(checkpoints=declared, source=source)

    @classmethod
    def load(cls, source: ManifestSource) -> Manifest:
        """Read a manifest from a TOML file or a mapping of the same shape; a `Manifest` is returned as it is.

        Raises:
            ManifestError: The file is missing, not UTF-8 or not TOML, or anything in it is wrong. All problems
                are listed, each with its place.
            StorageError: The path begins with ``~``, and there is no home.
            TypeError: ``source`` is not of an accepted kind.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, Mapping):
            return cls(parse(source, "manifest", is_file=False))
        path: object = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        if not isinstance(path, str):
            usable = "; a Tag belongs to a root: give it to ensure" if isinstance(source, Tag) else ""
            raise TypeError(f"manifest must be a path, a mapping or a Manifest, not {type(source).__name__}{usable}")
        path = user_path(path)
        return cls(parse(read_toml(path), path, is_file=True), path)

    def select(self, only: Collection[str] | None) -> tuple[Checkpoint, ...]:
        """Return the checkpoints named in ``only`` in manifest order; all of them for ``None``.

        Raises:
            UnknownCheckpointError: A name is not declared.
            TypeError: ``only`` is a string; it would be read as its letters.
        """
        if only is None:
            return self.checkpoints
        if isinstance(only, (str, bytes)):
            raise TypeError(f"only must be a collection of names, as in only=[{only!r}], not a string")
        known = {checkpoint.name: checkpoint for checkpoint in self.checkpoints}
        wanted = set(only)
        for name in only:
            if name not in known:
                raise UnknownCheckpointError(name, known)
        return tuple(checkpoint for name, checkpoint in known.items() if name in wanted)

    def __getitem__(self, name: str) -> Checkpoint:
        return self.select([name])[0]

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)
