"""The parts of a download: files to fetch, counts of their bytes, segments of a file, and blocks in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weightcache._store.partial_directory import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from weightcache._store.partial_file import PartialFile
    from weightcache.manifest import Checkpoint, File

PART = 8 * BLOCK  # bytes of one request where several connections share a file


@dataclass(eq=False)
class ByteCounts:
    """Bytes of one file. Progress, the heartbeat of the lock and the report all read this one object.

    Attributes:
        received: Bytes received from mirrors, also those received in vain: for the report.
        present: Bytes on the disk or in memory, those of the partial included: for the progress and the heartbeat.
        hashed: Bytes that went into the digest. The next block of the hash starts there.
        hedged: Bytes that hedged requests fetched twice, or may fetch twice.
    """

    received: int = 0
    present: int = 0
    hashed: int = 0
    hedged: int = 0

    def on_received(self, count: int) -> None:
        self.received += count

    def on_present(self, count: int) -> None:
        """Count ``count`` more bytes as present; a negative count takes back bytes that must be fetched again."""
        self.present += count

    def on_hashed(self, count: int) -> None:
        self.hashed += count

    def on_hedged(self, count: int) -> None:
        self.hedged += count

    def restart(self) -> None:
        """Start again at zero, but for what the report and the limit of hedged requests count."""
        self.present = self.hashed = 0


@dataclass(eq=False)
class Job:
    """One file to fetch.

    Attributes:
        checkpoint: The checkpoint that declares it.
        file: Its declared digest and size.
        partial: Where its bytes are written.
        counts: Its bytes.
        source: The mirror that delivered it, without credentials and query; empty until it is verified.
    """

    checkpoint: Checkpoint
    file: File
    partial: PartialFile
    counts: ByteCounts = field(default_factory=ByteCounts)
    source: str = ""

    def delivered_by(self, source: str) -> None:
        self.source = source


@dataclass(eq=False)
class Block:
    """At most 1 MiB of a file in memory."""

    start: int
    buffer: bytearray | bytes
    filled: int = 0

    @property
    def data(self) -> memoryview:
        return memoryview(self.buffer)[: self.filled]

    def on_read(self, count: int) -> None:
        """Note that a read put ``count`` more bytes into the buffer."""
        self.filled += count

    def copy(self) -> Block:
        return Block(self.start, bytearray(self.buffer), self.filled)


class BufferPool:
    """Buffers of one block that are used again: fresh pages of memory cost as much time as the copy into them."""

    def __init__(self) -> None:
        self.free: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Return a buffer of ``size`` bytes, at most a block. A smaller one takes the place of a free buffer."""
        if size < BLOCK:
            del self.free[-1:]
            return bytearray(size)
        return self.free.pop() if self.free else bytearray(BLOCK)

    def give_back(self, blocks: Iterable[Block]) -> None:
        """Keep the buffers of blocks that are not needed any more."""
        buffers = (block.buffer for block in blocks)
        self.free += [each for each in buffers if isinstance(each, bytearray) and len(each) == BLOCK]

    def clear(self) -> None:
        self.free.clear()


@dataclass(eq=False)
class Segment:
    """Bytes of a file that are still to be read: from a mirror, or from the partial if they are ``on_disk``.

    It starts at a block boundary. ``start`` moves on with every block that is written.

    Attributes:
        start: Offset of its first byte.
        end: Offset after its last byte; ``None`` is the end of a file whose length is not known yet.
        on_disk: Whether the partial has its bytes.
        block: Its first block, if a part of it is in memory.
    """

    start: int
    end: int | None
    on_disk: bool = False
    block: Block | None = None

    @property
    def position(self) -> int:
        """The offset of the next byte to read."""
        return self.start + (self.block.filled if self.block else 0)

    def cut(self, end: int) -> Segment:
        """Let it end sooner, at ``end``, and return the rest."""
        rest = Segment(end, self.end, self.on_disk)
        self.end = end
        return rest

    def end_at(self, end: int) -> None:
        """Set the end of a segment that had none."""
        if self.end is None:
            self.end = end

    def advance(self, start: int) -> None:
        """Move its start on, beyond its first block."""
        self.start, self.block = start, None

    def hold(self, block: Block | None) -> None:
        """Keep a part of the first block in memory."""
        self.block = block

    def drop_block(self) -> Block | None:
        """Return the first block, and keep it no longer."""
        block, self.block = self.block, None
        return block


def split_by_presence(rest: Segment, present: Mapping[int, int], length: int | None) -> list[Segment]:
    """Cut a segment that no connection has into what the partial has and what is missing there.

    Args:
        rest: The segment. Its first block in memory, if any, is not passed on.
        present: Length of each block in the partial, by its number.
        length: Length of the file, if it is known.
    """
    segments, position = list[Segment](), rest.start
    for number, size in sorted(present.items()):
        start = number * BLOCK
        if start < position or size != (BLOCK if length is None else min(BLOCK, length - start)):
            continue
        if rest.end is not None and start + size > rest.end:
            break  # another connection may have what is beyond
        if start > position:
            segments.append(Segment(position, start))
        if segments and segments[-1].on_disk and segments[-1].end == start:
            segments[-1].end = start + size
        else:
            segments.append(Segment(start, start + size, on_disk=True))
        position = start + size
    if rest.end is None or position < rest.end:
        segments.append(Segment(position, rest.end))
    return segments
