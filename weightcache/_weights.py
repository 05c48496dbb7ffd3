"""What `ensure` returns."""

from __future__ import annotations

from collections.abc import Mapping

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._results import Report

__all__ = ["Weights"]


class Weights(Mapping[str, "Path"]):
    """What `ensure` returns: each name's verified path, in manifest order, and a `Report`.

    A checkpoint of one file maps to that file, a directory checkpoint to its directory.
    """

    __slots__ = ("_paths", "_report")

    def __init__(self, paths: Mapping[str, str], report: Report | None = None) -> None:
        self._paths = paths
        self._report = report

    @property
    def report(self) -> Report:
        """What was done, checkpoint by checkpoint."""
        if self._report is None:
            from ._results import CheckpointReport, Report

            self._report = Report({name: CheckpointReport() for name in self._paths})
        return self._report

    def __getitem__(self, name: str) -> Path:
        from pathlib import Path  # not at the top: a hit that passes strings on need not load it

        return Path(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"Weights({dict(self._paths)!r})"
