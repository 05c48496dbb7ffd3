"""What the public functions report: `Report`, `Status` and `Plan`. A hit does not load this: dataclasses cost more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightcache._size_text import size_text

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import Literal, TypeAlias

    State: TypeAlias = Literal["ready", "missing", "partial", "unverified", "damaged"]
    Action: TypeAlias = Literal["keep", "adopt", "copy", "fetch"]
    Outcome: TypeAlias = Literal["hit", "downloaded", "resumed", "copied", "adopted", "healed", "waited"]

__all__ = ["CheckpointPlan", "CheckpointReport", "FilePlan", "Plan", "Report", "Status"]


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
            (a published file was missing or wrong) · ``waited`` (another process or container installed it meanwhile).
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
        committed: Whether the last commit succeeded, so that the bytes are durable, also where the reload after it
            failed; ``None`` if there was nothing to commit or no volume.
        seconds: Wall time in all.
        waited: Seconds of it spent waiting for another process or thread of this container, or for another container.
        waited_for: That process or container, in words; empty if there was none.
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


@dataclass(frozen=True)
class FilePlan:
    """What one file needs.

    Attributes:
        path: Its path in the checkpoint.
        action: ``keep`` (a receipt speaks for it) · ``adopt`` (it is there without a receipt) · ``copy`` (from another
            file) · ``fetch`` (from a mirror).
        size: Its bytes; ``None`` if the manifest does not declare them and it is not there.
        bytes_to_fetch: Bytes to receive from a mirror, without those that an interrupted download left; ``None`` if the
            size is not declared.
        sources: For ``copy``: the files that should have these bytes. The first that proves right is copied, and the
            file is fetched if none does.
        verified: Whether the bytes that are there are known to be right, by a receipt or a hash. ``False`` in a dry run
            for ``adopt``, and for all with ``rehash=True``: they are hashed first, and fetched if they are wrong.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    path: str
    action: Action
    size: int | None = None
    bytes_to_fetch: int | None = 0
    sources: tuple[str, ...] = ()
    verified: bool = False


@dataclass(frozen=True)
class CheckpointPlan:
    """What one checkpoint needs.

    Attributes:
        name: Name of the checkpoint.
        path: Where it is, or will be.
        files: What each file needs, in the order of the manifest's files.
        blocked: Why `ensure` would raise `NotCachedError` for it; empty if it would not.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    name: str
    path: Path
    files: tuple[FilePlan, ...]
    blocked: str = ""

    @property
    def action(self) -> Action:
        """The action of its files that costs most: ``fetch``, else ``copy``, else ``adopt``, else ``keep``."""
        actions = [file.action for file in self.files]
        return max(actions, key=("keep", "adopt", "copy", "fetch").index)

    @property
    def bytes_to_fetch(self) -> int | None:
        """Bytes to receive from mirrors; ``None`` if a file to fetch declares no size."""
        return _total(file.bytes_to_fetch for file in self.files)

    def __str__(self) -> str:
        counts = []
        for action in ("fetch", "copy", "adopt", "keep"):
            files = [file for file in self.files if file.action == action]
            if files:
                size = _total(file.bytes_to_fetch if action == "fetch" else file.size for file in files)
                plural = "" if len(files) == 1 else "s"
                counts.append(f"{action} {len(files)} file{plural} ({_megabytes(size)})")
        return f"{self.name}: {', '.join(counts)}{f'; blocked: {self.blocked}' if self.blocked else ''}"


@dataclass(frozen=True)
class Plan(Mapping[str, CheckpointPlan]):
    """What `ensure` would do now; a mapping from each name to its `CheckpointPlan`. ``str()`` of it is a line for each.

    Attributes:
        checkpoints: One plan a name, in manifest order.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    checkpoints: Mapping[str, CheckpointPlan]

    @property
    def bytes_to_fetch(self) -> int | None:
        """Bytes to receive from mirrors for all checkpoints; ``None`` if a file to fetch declares no size."""
        return _total(plan.bytes_to_fetch for plan in self.checkpoints.values())

    def __getitem__(self, name: str) -> CheckpointPlan:
        return self.checkpoints[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checkpoints.values()), f"to fetch: {_megabytes(self.bytes_to_fetch)}"])


def _total(sizes: Iterable[int | None]) -> int | None:
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


def _megabytes(size: int | None) -> str:
    return "unknown size" if size is None else size_text(size)
