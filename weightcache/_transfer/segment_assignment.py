"""What one connection works on: a segment of a file, and its state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from .mirror_state import Mirror
    from .mirror_stream import Body
    from .server_state import Server
    from .transfer_types import Block, ByteCounts, Segment

FileT = TypeVar("FileT")


class TaskState(Enum):
    """What the connection of a task does. Exactly one of these holds."""

    ASSIGNED = auto()  # it has not started yet
    REQUESTED = auto()  # it waits for the response
    READING = auto()  # it waits for the bytes of a block
    WAITING = auto()  # it waits for room in the window, not for the mirror
    WRITING = auto()  # it writes a complete block to the disk, so that the block cannot be reassigned any more
    PAUSED = auto()  # its request failed, and it waits before it takes another task
    ENDED = auto()


@dataclass(eq=False)
class Task(Generic[FileT]):
    """A segment that is assigned to one connection.

    Times are in seconds, by the clock of the caller. The type of the file is a parameter, since the module of
    `FileTransfer` imports this one.

    Attributes:
        transfer: The file.
        counts: Counts of the file's bytes.
        mirror: The mirror that it is fetched from.
        segment: What is assigned.
        started: When.
        failure_epoch: The mirror's at that time.
        concurrency: Requests to the mirror's server at that time, this one included.
        inherited: Whether it was taken over from a stalled connection.
        is_hedge: Whether it fetches the block of another task, its rival, and has not won yet.
        rival: The other task that fetches the same block. The first one that has it whole wins.
        hedges: Rivals that it had.
        received: Bytes read.
        last_byte: When bytes were read last.
        block_started: When the block in progress was begun.
        block_prefix: How many bytes of it there were then.
        state: See `TaskState`.
        revoked: Whether the segment was taken away. The connection finds out at its next step.
        paused_with: The mirror or server that gets no request while the task pauses, if any.
    """

    transfer: FileT
    counts: ByteCounts
    mirror: Mirror
    segment: Segment
    started: float
    failure_epoch: int
    inherited: bool = False
    is_hedge: bool = False
    block_prefix: int = 0
    concurrency: int = 0
    received: int = 0
    block_started: float = 0.0
    hedges: int = 0
    rival: Task[FileT] | None = None
    state: TaskState = TaskState.ASSIGNED
    revoked: bool = False
    paused_with: Mirror | Server | None = None

    def __post_init__(self) -> None:
        self.last_byte = self.started
        self._body: Body | None = None

    @property
    def is_answered(self) -> bool:
        """Whether a mirror has begun to send what was requested."""
        return self.state in _ANSWERED and not self.segment.on_disk

    @property
    def is_reading(self) -> bool:
        """Whether the connection waits for the mirror."""
        return self.state in _READING

    @property
    def is_writing(self) -> bool:
        return self.state is TaskState.WRITING

    def on_queued(self, concurrency: int) -> None:
        """Note how many requests its server has to serve now."""
        self.concurrency = concurrency

    def on_requested(self) -> None:
        self.state = TaskState.REQUESTED

    def on_head(self, now: float) -> None:
        """Note that the head of a response arrived, whatever it says."""
        self.last_byte = now

    def on_response(self) -> None:
        """Note that the response gives the bytes of the segment."""
        self.state = TaskState.READING

    def attach(self, body: Body) -> None:
        """Let `revoke` and `describe` reach the response."""
        self._body = body

    def describe(self, head: bytes, name: str) -> str:
        """Return what a file that starts with ``head`` is instead of weights; empty if it may be weights."""
        return self._body.unexpected_content(head, name) if self._body is not None else ""

    def on_wait(self) -> None:
        """Note that the connection does not wait for the mirror."""
        self.state = TaskState.WAITING

    def on_room(self, now: float) -> None:
        """Note that the window has room for the next block, and the connection reads it."""
        self.state, self.last_byte = TaskState.READING, now

    def begin_block(self, block: Block) -> None:
        self.segment.hold(block)
        self.block_started, self.block_prefix = self.last_byte, block.filled

    def on_bytes(self, count: int, now: float) -> None:
        self.received += count
        self.last_byte = now

    def on_block_complete(self) -> None:
        """Note that the block is complete and is written."""
        self.state = TaskState.WRITING

    def extend(self, segment: Segment) -> None:
        """Go on with another segment."""
        self.segment = segment

    def pause(self, paused_with: Mirror | Server | None) -> None:
        """Pause, and send no request to ``paused_with`` until `resume`."""
        self.state, self.paused_with = TaskState.PAUSED, paused_with
        if paused_with is not None:
            paused_with.pause()

    def resume(self) -> bool:
        """End the pause; whether there was one."""
        if self.state is not TaskState.PAUSED:
            return False
        self.state = TaskState.ENDED
        if self.paused_with is not None:
            self.paused_with.resume()
        return True

    def end(self) -> None:
        """Note that its connection has stopped working on it."""
        if self.state is not TaskState.PAUSED:
            self.state = TaskState.ENDED

    def revoke(self) -> None:
        """Take the segment away, and end a read in progress."""
        self.revoked = True
        if self._body is not None:
            self._body.interrupt()

    def pair(self, hedge: Task[FileT]) -> None:
        """Let another task fetch the same block."""
        self.hedges += 1
        self.rival, hedge.rival = hedge, self

    def unpair(self) -> None:
        if self.rival is not None:
            self.rival.rival = None
            self.rival = None

    def promote(self) -> None:
        """Let a hedge own the block."""
        self.is_hedge = False


_READING = frozenset({TaskState.REQUESTED, TaskState.READING})
_ANSWERED = frozenset({TaskState.READING, TaskState.WAITING, TaskState.WRITING})
