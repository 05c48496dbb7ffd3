"""One file on its way: which bytes are nobody's yet, which are on a connection, and which wait for the hash.

Bookkeeping alone: no thread, no clock, no request. A file is cut into blocks of 1 MiB: every write, line of the
journal and step of the hash is one block, and a connection has claimed a block before it writes it.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from typing import TYPE_CHECKING

from weightcache._store.file_kind import HEAD
from weightcache._store.partials import BLOCK
from weightcache.errors import redacted

from . import hedge
from .mirrors import Failure
from .segments import PART, Block, Piece, Task
from .stream import ChangedError, RangeError, TransientError, WrongBytesError

if TYPE_CHECKING:
    from .mirrors import Consequence, Mirror, Mirrors, Verdict
    from .segments import Job
    from .stream import Body, SourceError


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
        self.raced = 0  # bytes that were fetched twice, by rivals

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
        """Cut ``rest``, which is nobody's, into what the partial holds of it and what it lacks."""
        mirror, pieces, position = self.mirrors.current, list[Piece](), rest.start
        takes = mirror is not None and mirror.ranges and not mirror.alone
        for number, length in sorted(self.job.partial.present().items() if takes else ()):
            start = number * BLOCK
            if start < position or length != (BLOCK if self.length is None else min(BLOCK, self.length - start)):
                continue
            if rest.end is not None and start + length > rest.end:
                break  # what lies beyond is in other hands
            if start > position:
                pieces.append(Piece(position, start))
            if pieces and pieces[-1].kept and pieces[-1].end == start:
                pieces[-1].end = start + length
            else:
                pieces.append(Piece(start, start + length, kept=True))
            position = start + length
        if rest.end is None or position < rest.end:
            pieces.append(Piece(position, rest.end))
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

    @property
    def is_failing(self) -> bool:
        """Whether the last request failed, so that other files may go first."""
        mirror = self.mirrors.current
        return mirror is not None and mirror.failing

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
        if not piece.kept and (mirror.pausing or not mirror.host.has_room(without) or (tasks and not mirror.parallel)):
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
        self._add(task)
        # The first request is for a part in any case: it shows whether the link is slow, and the mirror gives parts.
        if not whole or not mirror.delivered:
            self.shorten(task)
        return task

    def _add(self, task: Task) -> None:
        self.tasks.add(task)
        if not task.piece.kept:
            task.mirror.requests += 1
            task.mirror.host.tasks.add(task)
            task.crowd = len(task.mirror.host.tasks)

    def race(self, holder: Task, now: float) -> Task:
        """Let another connection fetch the block that a task has begun, from where that is."""
        task = hedge.rival(holder, self.mirrors.current or holder.mirror, now)
        self._add(task)
        return task

    def claim(self, task: Task) -> None:
        """Note that a task has its block whole: nobody else fetches it any more."""
        hedge.won_by(task)

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
        self.arrived += 0 if task.copy else count
        task.received += count
        if not task.piece.kept:
            self.job.received += count
            task.mirror.moved, task.mirror.failing = True, False

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
        task.mirror.host.tasks.discard(task)
        hedge.ended(task)
        piece = task.piece
        if piece.block is not None and (task.revoked or not piece.block.filled or piece.kept or task.copy):
            self.arrived -= 0 if task.copy else piece.block.filled
            piece.block = None
        if not task.copy and (piece.end is None or piece.start < piece.end):
            insort(self.pieces, piece, key=_start)
        self._settle()

    def lack(self, task: Task) -> None:
        """Note that the next block of a kept piece is not there after all: a mirror must bring it."""
        piece = task.piece
        lacking = Piece(piece.start, min(piece.start + BLOCK, piece.end or 0))
        piece.start = lacking.end or 0
        insort(self.pieces, lacking, key=_start)

    def failed(self, task: Task, error: SourceError, now: float) -> Verdict | None:
        """Draw the consequences of a failed request. ``None``: it was taken away before, and says nothing."""
        mirror, host = task.mirror, task.mirror.host
        mirror.requests -= not error.asked
        others = any(each.mirror is mirror and each.received for each in self.tasks - {task})
        is_refusal = error.asked and not (task.received or task.answered or isinstance(error, RangeError))
        beyond = is_refusal and host.is_beyond(task)
        was_whole = not mirror.ranges or mirror.alone
        self.release(task)
        if task.revoked or self._reset:
            return None
        if is_refusal and (beyond or mirror.delivered or isinstance(error, TransientError)):
            crowded = isinstance(error, TransientError) and error.crowded
            host.refused(task, now, crowded=crowded)
        failure = Failure(
            error,
            now,
            self.arrived,
            task.setbacks,
            mixed=self._mixed,
            others=others,
            beyond=beyond,
            answered=task.answered,
            received=task.received > 0,
        )
        verdict = self.mirrors.blame(mirror, failure)
        if verdict.reset:
            self._again(verdict.reset)
        elif mirror is not self.mirrors.current and was_whole:
            # The next mirror gives parts, perhaps: what the partial holds of what is still lacking need not be sent.
            # Each piece is cut for itself: between two of them may lie what has landed, or what a connection fetches.
            pieces, self.pieces = self.pieces, []
            for piece in pieces:
                self.pieces += [piece] if piece.kept else self._kept_and_lacking(piece)
        return verdict

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
            self._again(self.mirrors.blame(mirror, Failure(error, 0.0, 0, mixed=self._mixed)).reset)

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
                self.job.partial.reset()
            self._begin()


def _start(piece: Piece) -> int:
    return piece.start
