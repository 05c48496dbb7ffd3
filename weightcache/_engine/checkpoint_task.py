"""One checkpoint on its way through one call: what is there, what was done, and the report of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from weightcache._store.inspect import inspect
from weightcache.reports import CheckpointReport

from .plan import Contents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weightcache._store.inspect import Inspection
    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint, File
    from weightcache.reports import Outcome


class CheckpointTask:
    """One checkpoint that a call makes ready. Its methods alone change it.

    Attributes:
        checkpoint: What the manifest declares.
        seen: What the last inspection found.
        state: ``new``; ``examined`` (it is known which of its files are right); or ``installed`` (every file is in
            place, and this call verified those that no receipt speaks for).
        sizes: By path, the bytes of each file that is right, for the receipt.
        sources: The mirrors that delivered its files.
        outcome: As in `CheckpointReport`.
    """

    def __init__(self, checkpoint: Checkpoint, seen: Inspection) -> None:
        self.checkpoint = checkpoint
        self.seen = seen
        self.state: Literal["new", "examined", "installed"] = "new"
        self.sizes: dict[str, int] = {}
        self.sources: list[str] = []
        self.outcome: Outcome = "hit"
        self._resumed = False
        self._received = 0
        self._began = self._ended = time.monotonic()

    @property
    def missing(self) -> list[File]:
        """The files that are not known to be right, after `examined`."""
        return [file for file in self.checkpoint.files if file.path not in self.sizes]

    @property
    def contents(self) -> Contents:
        """What a plan needs to know of it."""
        return Contents(self.checkpoint, self.seen.receipt, self.sizes, verified=True)

    def inspect(self, layout: Layout) -> None:
        """Inspect the root again."""
        self.seen = inspect(layout, self.checkpoint)

    def is_ready(self, *, rehash: bool) -> bool:
        """Whether the last inspection and this call leave nothing to do; with ``rehash``, not before it is hashed."""
        # Without a commit there is no receipt. What this call installed is right all the same.
        ready = self.seen.state == "ready" or (self.state == "installed" and self.seen.state == "unverified")
        return ready and not (rehash and self.state == "new")

    def examined(self, sizes: Mapping[str, int]) -> None:
        """Note which files are right, by path, with their sizes. What an earlier attempt did is forgotten."""
        self.state, self.sizes, self._resumed = "examined", dict(sizes), False

    def placed(self, file: File, size: int, *, resumed: bool = False) -> None:
        """Note that a verified file was published; ``resumed``: with bytes of an earlier download."""
        self.sizes[file.path] = size
        self._resumed |= resumed

    def fetched(self, source: str) -> None:
        """Note the mirror that delivered a verified file."""
        self.sources.append(source)

    def received(self, count: int) -> None:
        """Note ``count`` bytes received from mirrors."""
        self._received += count

    def installed(self, how: Outcome) -> None:
        """Note that every file is in place. ``how`` the last ones came decides the outcome, but for a heal."""
        if self.outcome == "hit":  # the first outcome stays where the files were lost and installed again
            if how == "downloaded" and self._resumed:
                how = "resumed"
            replaced = self.seen.state not in ("missing", "partial")  # a published file, and not only added to them
            self.outcome = "healed" if replaced and how != "adopted" else how
        self.state, self._ended = "installed", time.monotonic()

    def lost(self) -> None:
        """Note that what is in place is no longer what was verified."""
        self.state = "examined"

    def report(self) -> CheckpointReport:
        return CheckpointReport(self.outcome, self._received, self._ended - self._began, tuple(self.sources))
