"""What the public functions tell: `Report` and `Status`. A hit does not load this: dataclasses cost more than it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Literal, TypeAlias

    State: TypeAlias = Literal["ready", "missing", "partial", "unverified", "damaged"]
    Outcome: TypeAlias = Literal["hit", "downloaded", "resumed", "copied", "adopted", "healed", "waited"]

__all__ = ["CheckpointReport", "Report", "Status"]


@dataclass(frozen=True)
class Status:
    """What `status` and `verify` say of one checkpoint.

    Attributes:
        name: Name of the checkpoint.
        state: ``ready`` (published, with a receipt), ``missing``, ``partial`` (begun, or some of its files),
            ``unverified`` (all files, no receipt; `ensure` hashes and adopts it) or ``damaged`` (a file is
            missing or wrong although the place was complete, or has a wrong size).
        path: Where it is, or would be.
        detail: Why, in words.
        size: Declared bytes in all, or ``None`` where the manifest does not say.
        extra: Files in the place that the manifest does not name (`verify` only). They are left alone.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    name: str
    state: State
    path: Path
    detail: str = ""
    size: int | None = None
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointReport:
    """What `ensure` did for one checkpoint.

    Attributes:
        outcome: ``hit`` · ``downloaded`` · ``resumed`` (a download that used bytes of an earlier one) ·
            ``copied`` (from elsewhere in the root) · ``adopted`` (was there without a receipt) · ``healed``
            (a published file was missing or wrong) · ``waited`` (another process or container brought it meanwhile).
        bytes_fetched: Bytes received from mirrors, also those of failed attempts.
        seconds: Wall time spent on this checkpoint.
        sources: Mirrors that delivered verified files, without credentials and query.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    outcome: Outcome = "hit"
    bytes_fetched: int = 0
    seconds: float = 0.0
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report(Mapping[str, CheckpointReport]):
    """What one `ensure` did; a mapping from each name to its `CheckpointReport`.

    Attributes:
        checkpoints: One report a name, in manifest order.
        committed: Whether the last commit succeeded; ``None`` if there was nothing to commit or no volume.
        seconds: Wall time in all.
        waited: Seconds of it spent waiting for another process or thread of this container, or for another container.
        waited_for: Who that was, in words; empty if nobody.
        warnings: What went wrong without costing the result: a failed reload or commit, a root on no Volume.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    checkpoints: Mapping[str, CheckpointReport]
    committed: bool | None = None
    seconds: float = 0.0
    waited: float = 0.0
    waited_for: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def bytes_fetched(self) -> int:
        """Bytes received from mirrors for all checkpoints."""
        return sum(report.bytes_fetched for report in self.checkpoints.values())

    def __getitem__(self, name: str) -> CheckpointReport:
        return self.checkpoints[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)
