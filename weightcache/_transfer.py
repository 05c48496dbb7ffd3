"""One file on its way: which bytes are nobody's yet, which are on a connection, and which wait for the hash.

Bookkeeping alone: no thread, no clock, no request. A file is cut into blocks of 1 MiB: every write, line of the
journal and step of the hash is one block, and a connection has claimed a block before it writes it.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._content import HEAD
from ._partial import BLOCK
from ._pieces import PART, Block, Piece
from ._source import ChangedError, SourceError, TransientError, WrongBytesError
from .errors import redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._mirrors import Consequence, Mirror, Mirrors
    from ._pieces import Job
    from ._source import Body


@dataclass(eq=False)
class Task:
    """A piece in the hands of one connection."""

    transfer: Transfer
    mirror: Mirror
    piece: Piece
    began: float  # seconds, by the clock of the engine
    setbacks: int  # of the mirror when it began
    received: int = 0
    moved: float = 0.0  # when bytes came last
    answered: bool = False
    reading: bool = False  # whether the connection waits for the mirror, and not for us
    writing: bool = False  # whether the block is on its way to the disk: it cannot be taken away any more
    inherited: bool = False  # whether it was taken from a stalled connection
    revoked: bool = False
    holds: bool = False  # whether the mirror pauses with this connection
    interrupt: Callable[[], object] = field(default=lambda: None)  # ends a read in progress
    foreign: Callable[[bytes, str], str] = field(default=lambda _head, _name: "")  # see `Body.foreign`

    def revoke(self) -> None:
        """Take the piece away; the connection finds out at its next step."""
        self.revoked = True
        self.interrupt()


class Transfer:
    """One file of the download."""

    def __init__(self, job: Job, mirrors: Mirrors) -> None:
        self.job, self.mirrors = job, mirrors
        self.tasks: set[Task] = set()
        self.opened = self.verified = False
        self.length = job.file.size
        self.hashed = self.arrived = 0  # bytes that went into the hash; bytes that are here, the kept ones included
        self._reset: Consequence = ""
        self.begun = 0  # how many times

    def open(self) -> None:
        """Open the partial and see what it has.

        Raises:
            StorageError: It cannot be opened.
            VanishedError: The partial was swept or taken.
        """
        self.job.partial.open()
        self.opened = True
        self._begin()

    def _begin(self) -> None:
        self.sha256, self.hashed, self.arrived = hashlib.sha256(), 0, 0
        self.length = self.job.file.size
        self.begun += 1
        self.landed: dict[int, Block] = {}
        self._versions: set[object] = set()  # of what the bytes here are
        self._reset = ""
        self.pieces = self._kept_and_lacking(Piece(0, self.length))

    def _kept_and_lacking(self, rest: Piece) -> list[Piece]:
        """Cut ``rest``, which reaches to the end of the file, into what the partial holds and what it lacks."""
        mirror, pieces, position = self.mirrors.current, list[Piece](), rest.start
        takes = mirror is not None and mirror.ranges and not mirror.alone
        for number, length in sorted(self.job.partial.present().items() if takes else ()):
            start = number * BLOCK
            if start < position or length != (BLOCK if self.length is None else min(BLOCK, self.length - start)):
                continue
            if start > position:
                pieces.append(Piece(position, start))
            if pieces and pieces[-1].kept and pieces[-1].end == start:
                pieces[-1].end = start + length
            else:
                pieces.append(Piece(start, start + length, kept=True))
            position = start + length
        if self.length is None or position < self.length:
            pieces.append(Piece(position, self.length))
        if rest.block and not pieces[0].kept:
            pieces[0].block = rest.block
        elif rest.block:
            self.arrived -= rest.block.filled
        return pieces

    @property
    def _mixed(self) -> bool:
        return len(self._versions) > 1 or "kept" in self._versions

    @property
    def parallel(self) -> bool:
        """Whether several connections may be on it."""
        mirror = self.mirrors.current
        return mirror is not None and mirror.parallel and not mirror.pausing and not self._reset

    def can_take(self, below: int, *, without: Task | None = None) -> bool:
        """Whether the first piece may be handed out.

        Args:
            below: The position in the file below which it must begin.
            without: A task that would be given back first.
        """
        mirror, tasks = self.mirrors.current, self.tasks - {without}
        if mirror is None or self._reset or not self.pieces or self.pieces[0].start >= below:
            return False
        piece = self.pieces[0]
        if not piece.kept and (mirror.pausing or (tasks and not mirror.parallel)):
            return False
        if piece.end is None and piece.start:  # only the digest can say whether the file ends here
            return not tasks and self.hashed >= piece.start
        return True

    def take(self, below: int, *, whole: bool, now: float) -> Task | None:
        """Hand out the first piece that begins below ``below``: as it is if ``whole``, else at most a part of it."""
        mirror = self.mirrors.current
        if mirror is None or not self.can_take(below):
            return None
        return self.hand_out(self.pieces.pop(0), mirror, whole=whole, now=now)

    def hand_out(self, piece: Piece, mirror: Mirror, *, whole: bool, now: float) -> Task:
        task = Task(self, mirror, piece, now, mirror.setbacks, moved=now)
        self.tasks.add(task)
        mirror.requests += not piece.kept
        # The first request is for a part in any case: it shows whether the link is slow, and the mirror gives parts.
        if not whole or not mirror.delivered:
            self.shorten(task)
        return task

    def shorten(self, task: Task) -> None:
        """Cut a task at the end of the part it is in; the rest is nobody's."""
        end = (task.piece.start // PART + 1) * PART
        if task.piece.end is not None and end < task.piece.end and (task.piece.kept or task.mirror.parallel):
            insort(self.pieces, self.cut(task, end), key=_start)

    def cut(self, task: Task, end: int) -> Piece:
        """Let a task end sooner, at ``end``, and return the rest."""
        rest = Piece(end, task.piece.end, task.piece.kept)
        task.piece.end = end
        return rest

    def read_on(self, task: Task) -> bool:
        """Give a finished task what follows, so that its response goes on, unless that is in other hands."""
        for index, piece in enumerate(self.pieces):
            follows = piece.start == task.piece.end and not piece.kept and not piece.block
            if follows and task.mirror is self.mirrors.current and not task.revoked:
                task.piece = self.pieces.pop(index)
                return True
        return False

    def answered(self, task: Task, body: Body) -> bool:
        """Note what a response says of itself. ``False``: it is of no use to this task.

        Raises:
            ChangedError: The file is not the one that it was.
        """
        mirror = task.mirror
        if task.revoked:
            return False
        if body.offset != task.piece.position:  # it sends the whole file
            if len(self.tasks) > 1:
                mirror.shared = False  # who has a response reads on in it, and nobody else asks
                return False
            self._begin()
            self.pieces, task.piece = [], Piece(0, self.length)
        if self.length is None and body.total is not None:
            held = (piece.end for piece in [*self.pieces, *(each.piece for each in self.tasks)])
            if max((end for end in held if end is not None), default=0) > body.total:
                raise ChangedError("the file is shorter than what an earlier run has of it")
            self.length = body.total
            self.pieces = [piece for piece in self.pieces if piece.start < body.total]
            for piece in (task.piece, *self.pieces):
                piece.end = body.total if piece.end is None else piece.end
        elif body.total not in (None, self.length):
            raise ChangedError("the file changed between two requests (length)")
        mirror.delivered = task.answered = True
        mirror.ranges = mirror.ranges and body.resumable
        # Another ETag is no other file: nodes of one host often have each its own. The digest says whether it is, and
        # if it is, the mirror may send the file once more, in one answer.
        self._versions.add((mirror.url, body.validator or task))
        return True

    def arrive(self, task: Task, count: int) -> None:
        """Note ``count`` more bytes."""
        self.arrived += count
        task.received += count
        if not task.piece.kept:
            self.job.received += count

    def end(self, task: Task) -> None:
        """Note that a stream ended whose length nobody knew."""
        self.length = task.piece.end = task.piece.position

    def ended(self, task: Task) -> SourceError:
        """Return the error of a stream that ended too soon: it broke off, or it was something else."""
        position = task.piece.position
        if came := self.foreign(task):
            return WrongBytesError(f"{self.length} bytes", f"{position} bytes", came, landed=False)
        return TransientError(f"the connection ended at byte {position} of {self.length}")

    def foreign(self, task: Task) -> str:
        """Say what the block of a task is instead of the beginning of weights, if it is that; else empty."""
        block = task.piece.block
        if block is None or block.start or not block.filled:
            return ""
        return task.foreign(bytes(block.data[:HEAD]), self.job.file.path)

    def land(self, task: Task) -> bool:
        """Note that a task's block is on the disk and waits for the hash. ``False``: the task goes no further."""
        task.writing = False
        piece, block = task.piece, task.piece.block
        if self._reset or block is None:
            return False
        self.landed[block.start] = block
        if not block.start and not piece.kept:
            task.mirror.came = self.foreign(task)
        piece.start, piece.block = block.start + block.filled, None
        if piece.kept:
            self._versions.add("kept")
        return not task.revoked

    def set_aside(self) -> None:
        """Drop what waits for the hash from memory: it lies in the partial, and is read again when its turn comes."""
        for block in self.landed.values():
            insort(self.pieces, Piece(block.start, block.start + block.filled, kept=True), key=_start)
            self.arrived -= block.filled
        self.landed.clear()

    def release(self, task: Task) -> None:
        """Take a task from its connection; what is left of it is nobody's."""
        self.tasks.discard(task)
        piece = task.piece
        if piece.block is not None and (task.revoked or not piece.block.filled or piece.kept):
            self.arrived -= piece.block.filled
            piece.block = None
        if piece.end is None or piece.start < piece.end:
            insort(self.pieces, piece, key=_start)
        self._settle()

    def lack(self, task: Task) -> None:
        """Note that the next block of a kept piece is not there after all: a mirror must bring it."""
        piece = task.piece
        lacking = Piece(piece.start, min(piece.start + BLOCK, piece.end or 0))
        piece.start = lacking.end or 0
        insort(self.pieces, lacking, key=_start)

    def failed(self, task: Task, error: SourceError) -> float:
        """Draw the consequences of a failed request; return for how many seconds its connection pauses."""
        mirror = task.mirror
        mirror.requests -= not error.asked
        others = any(each.mirror is mirror and each.received for each in self.tasks - {task})
        was_whole = not mirror.ranges or mirror.alone
        self.release(task)
        if task.revoked or self._reset:
            return 0.0
        pausing = mirror.pausing
        reset, pause = self.mirrors.blame(
            mirror,
            error,
            mixed=self._mixed,
            others=others,
            setbacks=task.setbacks,
            arrived=self.arrived,
        )
        task.holds = mirror.pausing > pausing
        if reset:
            self._again(reset)
        elif mirror is not self.mirrors.current and was_whole and self.pieces and not self.pieces[-1].kept:
            # The next mirror gives parts, perhaps: what the partial holds beyond this point is of use again.
            self.pieces += self._kept_and_lacking(self.pieces.pop())
        return pause

    def judge(self) -> None:
        """Compare the digest as soon as every byte went into it, and begin again if it is not the declared one."""
        if self._reset or self._is_lacking() or (mirror := self.mirrors.current) is None:
            return
        actual = self.sha256.hexdigest()
        if actual == self.job.file.sha256:
            self.length, self.pieces, self.verified = self.hashed, [], True
            self.job.source = redacted(mirror.url)
        elif self.length is not None:
            came = mirror.came if self.length else "an empty file"
            error = WrongBytesError(f"sha256 {self.job.file.sha256}", f"sha256 {actual}", came)
            mirror.delivered = True
            self._again(self.mirrors.blame(mirror, error, mixed=self._mixed, others=False, setbacks=0, arrived=0)[0])

    def _is_lacking(self) -> bool:
        """Whether bytes are still to come. Without a known length only the digest can say that none is."""
        if self.length is not None:
            return self.hashed < self.length
        return bool(self.tasks or self.landed or self.pieces[0].block or self.pieces[0].start > self.hashed)

    def _again(self, reset: Consequence) -> None:
        """Begin again at zero as soon as no connection is on this file: none may write over what comes then."""
        self._reset = reset
        for task in self.tasks:
            task.revoke()
        self._settle()

    def _settle(self) -> None:
        if self._reset and not self.tasks:
            if self._reset == "wipe":
                self.job.partial.wipe()
            self._begin()


def _start(piece: Piece) -> int:
    return piece.start
