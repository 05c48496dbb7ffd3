"""The bytes of one file: which of them no connection has, and which wait in memory to be hashed."""

from __future__ import annotations

import hashlib
from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING

from .mirror_stream import ChangedError
from .transfer_types import Block, Segment, split_by_presence

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .transfer_types import Job

_START = attrgetter("start")
_DISK = "disk"  # the version of bytes that the partial had


class FileBytes:
    """The bytes of one file.

    Attributes:
        job: What to fetch.
        counts: Counts of its bytes.
        segments: What no connection has, by offset.
        buffered: Blocks in memory that wait to be hashed, by offset.
        digest: The digest of what was hashed.
        length: Length of the file, if it is known.
        generation: How many times it was started.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.counts = job, job.counts
        self.segments: list[Segment] = []
        self.buffered: dict[int, Block] = {}
        self.digest = hashlib.sha256()
        self.length = job.file.size
        self.generation = 0
        self._versions: set[object] = set()  # of the responses that the bytes come from

    @property
    def hashed(self) -> int:
        """The offset of the next byte to hash."""
        return self.counts.hashed

    @property
    def is_mixed(self) -> bool:
        """Whether the bytes come from more than one version, or from the partial."""
        return len(self._versions) > 1 or _DISK in self._versions

    def start(self, present: Mapping[int, int]) -> None:
        """Start at zero; ``present`` is the length of each block that may be read from the partial, by its number."""
        self.digest, self.length = hashlib.sha256(), self.job.file.size
        self.counts.restart()
        self.generation += 1
        self.buffered = {}
        self._versions = set()
        self.segments = self.split(Segment(0, self.length), present)

    def split(self, rest: Segment, present: Mapping[int, int]) -> list[Segment]:
        """Cut ``rest``, which no connection has, into what the partial has of it and what is missing there."""
        segments = split_by_presence(rest, present, self.length)
        if rest.block and not segments[0].on_disk:
            segments[0].hold(rest.block)
        elif rest.block:
            self.counts.on_present(-rest.block.filled)
        return segments

    def split_all(self, present: Mapping[int, int]) -> None:
        """Read from the partial what it has of the unassigned bytes, so that no mirror need send it.

        Each segment is cut alone: the bytes between two of them are buffered, or assigned to a connection.
        """
        segments, self.segments = self.segments, []
        for segment in segments:
            self.segments += [segment] if segment.on_disk else self.split(segment, present)

    def unassign(self, segment: Segment) -> None:
        """Note that no connection has ``segment`` any more."""
        insort(self.segments, segment, key=_START)

    def follower(self, end: int | None) -> Segment | None:
        """Remove and return the segment that starts at ``end``, if a mirror must send it from its start."""
        for index, segment in enumerate(self.segments):
            if segment.start == end and not segment.on_disk and not segment.block:
                return self.segments.pop(index)
        return None

    def learn_length(self, length: int, assigned: list[Segment]) -> None:
        """Note the length of the file.

        Args:
            length: The length, as a response says.
            assigned: What connections have.

        Raises:
            ChangedError: An earlier run had more of it.
        """
        known = [*self.segments, *assigned]
        if max((each.end for each in known if each.end is not None), default=0) > length:
            raise ChangedError("the file is shorter than what an earlier run has of it")
        self.length = length
        self.segments = [each for each in self.segments if each.start < length]

    def note_version(self, version: object) -> None:
        """Note which version of the file the next bytes are of."""
        self._versions.add(version)

    def buffer(self, block: Block, *, from_disk: bool) -> None:
        """Keep a block in memory until it is hashed."""
        self.buffered[block.start] = block
        if from_disk:
            self._versions.add(_DISK)

    def next_blocks(self, most: int) -> list[Block]:
        """Return up to ``most`` blocks that are hashed next. They stay in memory until `on_hashed`."""
        blocks, position = list[Block](), self.hashed
        while len(blocks) < most and (block := self.buffered.get(position)):
            blocks.append(block)
            position += block.filled
        return blocks

    def on_hashed(self, blocks: Iterable[Block]) -> None:
        """Note that the digest has taken in blocks, and drop them from memory."""
        for block in blocks:
            del self.buffered[block.start]
            self.counts.on_hashed(block.filled)

    def spill(self) -> None:
        """Drop the blocks that wait to be hashed from memory. They are read from the partial when their turn comes."""
        for block in self.buffered.values():
            self.unassign(Segment(block.start, block.start + block.filled, on_disk=True))
            self.counts.on_present(-block.filled)
        self.buffered.clear()

    def is_incomplete(self, *, busy: bool) -> bool:
        """Whether bytes are still to come. Without a known length only the digest can say that none are.

        Args:
            busy: Whether a connection has a task of the file.
        """
        if self.length is not None:
            return self.hashed < self.length
        first = self.segments[0] if self.segments else None
        return busy or bool(self.buffered) or first is None or first.block is not None or first.start > self.hashed
