"""Partials: unverified downloads, each of one writer, with a journal that says which blocks are there.

::

    <root>/.weightcache/partial/<full digest>.<writer>/journal
                                                      /<sha256 of a file>

Completeness is never inferred from a length: the journal says which blocks count.

A dead writer's partial is taken over by rename. Any other one is never touched: its blocks are copied.
`partial_file` holds the data.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from weightcache._runtime.owned_descriptors import Descriptor
from weightcache._runtime.writer_identity import Writer
from weightcache.errors import StorageError

from .best_effort_removal import remove_tree
from .inspect import list_directories, list_names
from .journal import BLOCK, Blocks, Journal, block_checksum, opened_line, partial_age
from .partial_file import PartialFile, VanishedError, _has_single_link

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from types import TracebackType

    from weightcache.manifest import Checkpoint, File

    from .layout import Layout

__all__ = [
    "BLOCK",
    "STAGED",
    "STALE",
    "UNFINISHED_RECEIPT",
    "Partial",
    "PartialFile",
    "VanishedError",
    "block_checksum",
]

UNFINISHED_RECEIPT = "receipt"  # stands in a name where a partial's digest stands
STAGED = "pin"  # the same, for what `weightcache pin` and `add` download to learn its digest
STALE = 86400.0  # seconds after which a partial of nobody here is swept
_DIGEST = re.compile("[0-9a-f]{64}")


def _writers(layout: Layout) -> Iterator[tuple[str, str, Writer]]:
    """Yield (path, full digest, writer) of every partial in the root.

    Anything else there is not ours: a stranger's directory, or a link that leads out of the root.

    Raises:
        StorageError: Their directory cannot be listed.
    """
    for name in list_names(layout.partials):
        digest, _, text = name.partition(".")
        writer = Writer.parse(text)
        if writer is None or not (digest in (UNFINISHED_RECEIPT, STAGED) or _DIGEST.fullmatch(digest)):
            continue
        path = f"{layout.partials}/{name}"
        with suppress(OSError):
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) if digest == UNFINISHED_RECEIPT else stat.S_ISDIR(mode):
                yield path, digest, writer


class Partial:
    """This writer's partial of one full digest. Use as a context manager: leaving it closes every file."""

    def __init__(self, layout: Layout, checkpoint: Checkpoint, writer: Writer) -> None:
        self.path = f"{layout.partials}/{checkpoint.digest}.{writer}"
        dead = list[Journal]()
        self.reusable = list[Journal]()
        with suppress(StorageError):  # what an earlier download left is then fetched again
            for path, digest, other in _writers(layout):
                if digest == checkpoint.digest and path != self.path:
                    (dead if other.is_dead_here(layout.root) else self.reusable).append(Journal(path))
        self.adopted = dict[str, Blocks]()
        self._files = dict[str, PartialFile]()
        self._journal = Descriptor()
        # The richest dead one becomes ours; the others give what it lacks and are swept when all is done.
        for journal in sorted(dead, key=lambda each: each.bytes, reverse=True):
            if self.adopted or not journal.bytes or not self._take_over(journal):
                self.reusable.append(journal)
        try:
            os.makedirs(self.path, exist_ok=True)
            self._journal.open(f"{self.path}/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
            self.append(opened_line())
        except OSError as error:
            if self.adopted:
                self.close()
            else:
                self.discard()  # a full disk has no room for a journal, but for an empty one
            raise StorageError.of(error, "write to", self.path) from None

    def _take_over(self, journal: Journal) -> bool:
        try:
            names = list_names(journal.path)  # before the rename: without them, what must go would stay
            os.rename(journal.path, self.path)
        except OSError:
            return False  # somebody else was first, or it cannot be read
        self.adopted = journal.blocks
        for name in names:
            # Copies that were not published share their bytes with a published file: they are never written to.
            # So does a journal with another name elsewhere, which somebody planted.
            if not _DIGEST.fullmatch(name) and not (name == "journal" and _has_single_link(f"{self.path}/{name}")):
                remove_tree(f"{self.path}/{name}")
        return True

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if not self.adopted and not any(file.recorded for file in self._files.values()):
            self.discard()  # nothing that a later run could use

    def close(self) -> None:
        """Close every file of it."""
        for file in self._files.values():
            file.close()
        self._journal.close_quietly()  # a line that is lost costs a block

    def file(self, file: File) -> PartialFile:
        """Return the partial of one file."""
        if file.sha256 not in self._files:
            reusable = [
                (f"{journal.path}/{file.sha256}", dict(journal.blocks[file.sha256]))
                for journal in self.reusable
                if file.sha256 in journal.blocks
            ]
            self._files[file.sha256] = PartialFile(
                f"{self.path}/{file.sha256}",
                file.sha256,
                own=dict(self.adopted.get(file.sha256, {})),
                reusable=reusable,
                append=self.append,
            )
        return self._files[file.sha256]

    def discard(self) -> None:
        """Remove it with everything in it: its checkpoint is published."""
        self.close()
        remove_tree(self.path)

    def append(self, line: str) -> None:
        """Add a line to the journal, whole.

        Raises:
            OSError: The disk is full or failed. After a short write the rest is tried, so that the cause is raised.
        """
        self._journal.write(line.encode("ascii"))


def stale_partials(layout: Layout) -> list[str]:
    """Return the partials that were opened more than a day ago and are not being written here."""
    stale = []
    for path, _, writer in _writers(layout):
        writing_here = writer.is_here(layout.root) and not writer.is_dead_here(layout.root)
        if not writing_here and partial_age(path) > STALE:
            stale.append(path)
    return stale


def _receipted(layout: Layout) -> set[str]:
    """Return the full digests that have a receipt, by its name alone."""
    names = (f"{layout.receipts}/{name}" for name in list_directories(layout.receipts))
    return {entry.removesuffix(".json") for path in names for entry in list_names(path) if entry.endswith(".json")}


def sweep(layout: Layout, published: set[str]) -> list[str]:
    """Remove partials that no writer continues, and return their paths.

    Those are the stale ones, and a dead writer's of this container whose checkpoint is there: its full digest is in
    ``published``, or has a receipt, as where a process was killed before its own sweep.
    """
    over_digests = {UNFINISHED_RECEIPT, STAGED, *published, *_receipted(layout)}
    over = [
        path for path, digest, writer in _writers(layout) if digest in over_digests and writer.is_dead_here(layout.root)
    ]
    removed = sorted({*over, *stale_partials(layout)})
    for path in removed:
        remove_tree(path)
    return removed


def journaled_bytes(layout: Layout, digests: Collection[str]) -> dict[tuple[str, str], int]:
    """Return by full digest and sha256 how many bytes the next download need not fetch, by the word of the journals.

    Each block counts once, if its file reaches that far. Whether it has the journaled checksum is not read.
    """
    blocks: dict[tuple[str, str], dict[int, int]] = {}
    for path, digest, _ in _writers(layout):
        if digest in digests:
            for sha256, journaled in Journal(path).blocks.items():
                with suppress(OSError):
                    size = os.lstat(f"{path}/{sha256}").st_size
                    there = {
                        block: length for block, (length, _) in journaled.items() if block * BLOCK + length <= size
                    }
                    blocks.setdefault((digest, sha256), {}).update(there)
    return {key: sum(each.values()) for key, each in blocks.items()}
