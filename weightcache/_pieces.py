"""What is handed around in a download: files to fetch, blocks in memory, and pieces of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._partial import BLOCK

if TYPE_CHECKING:
    from ._partial import PartialFile
    from .manifest import Checkpoint, File

PART = 8 * BLOCK  # bytes that one request asks for where several connections share a file


@dataclass(eq=False)
class Job:
    """One file to fetch.

    Attributes:
        checkpoint: What it belongs to.
        file: What it must be.
        partial: Where its bytes go.
        received: Bytes received from mirrors, also in vain.
        source: The mirror that delivered it, without credentials and query.
    """

    checkpoint: Checkpoint
    file: File
    partial: PartialFile
    received: int = 0
    source: str = ""


@dataclass(eq=False)
class Block:
    """At most 1 MiB of a file in memory."""

    start: int
    buffer: bytearray | bytes
    filled: int = 0

    @property
    def data(self) -> memoryview:
        return memoryview(self.buffer)[: self.filled]

    def copy(self) -> Block:
        return Block(self.start, bytearray(self.buffer), self.filled)


@dataclass(eq=False)
class Piece:
    """Bytes of a file that are to be brought: from a mirror, or from the partial if they are ``kept`` there.

    It begins at a block. With every block that lands, ``start`` moves on.
    """

    start: int
    end: int | None  # None: to the end of a file whose length nobody knows yet
    kept: bool = False
    block: Block | None = None  # the first block, if a part of it is in memory

    @property
    def position(self) -> int:
        return self.start + (self.block.filled if self.block else 0)
