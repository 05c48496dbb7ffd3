"""What is handed around in a download: files to fetch, blocks in memory, segments of a file, and who has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weightcache._store.partials import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from weightcache._store.partial_file import PartialFile
    from weightcache.manifest import Checkpoint, File

    from .file_transfer import FileTransfer
    from .mirrors import Mirror
    from .server import Server

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
class Segment:
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


@dataclass(eq=False)
class Task:
    """A segment in the hands of one connection.

    Times are in seconds, by the clock of the engine.
    """

    transfer: FileTransfer
    mirror: Mirror
    segment: Segment
    began: float
    failure_epoch: int  # of the mirror when it began
    crowd: int = 0  # requests to its server when it began, itself included
    received: int = 0
    moved: float = 0.0  # when bytes came last
    since: float = 0.0  # when the block in progress began, and what there was of it
    had: int = 0
    answered: bool = False
    reading: bool = False  # whether the connection waits for the mirror, and not for us
    writing: bool = False  # whether the block is on its way to the disk: it cannot be taken away any more
    inherited: bool = False  # whether it was taken from a stalled connection
    revoked: bool = False
    paused: bool = False  # whether its connection waits before it tries again
    holds: Mirror | Server | None = None  # what pauses with it
    rival: Task | None = None  # another one that fetches the same block: the first to have it whole wins
    copy: bool = False  # whether the block is the rival's, until it has won
    races: int = 0  # rivals that it had
    interrupt: Callable[[], object] = field(default=lambda: None)  # ends a read in progress
    foreign: Callable[[bytes, str], str] = field(default=lambda _head, _name: "")  # see `Body.foreign`

    def revoke(self) -> None:
        """Take the segment away; the connection finds out at its next step."""
        self.revoked = True
        self.interrupt()
