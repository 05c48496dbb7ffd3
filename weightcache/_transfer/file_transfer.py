"""One file of a download: which bytes are unassigned, which a connection has, and which wait to be hashed.

Bookkeeping only: no thread, no clock, no request. A file is cut into blocks of 1 MiB. Every write, every line of the
journal and every step of the hash is one block, and a connection claims a block before it writes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from weightcache._store.content_sniffing import HEAD
from weightcache._store.partial_directory import BLOCK
from weightcache.errors import redacted

from . import hedge
from .byte_tracking import FileBytes
from .failure import Failure
from .mirror_stream import ChangedError, WrongBytesError
from .segment_assignment import Task
from .transfer_types import PART, Segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .failure import Decision, Recovery
    from .mirror_state import Mirror
    from .mirror_stream import Body, SourceError
    from .mirrors import Mirrors
    from .transfer_types import Job

FileTask: TypeAlias = "Task[FileTransfer]"


class FileTransfer(FileBytes):
    """One file of the download. See also `FileBytes`.

    Attributes:
        mirrors: Where its bytes come from.
        tasks: What connections have of it.
        opened: Whether its partial is open.
        verified: Whether its digest is the declared one.
    """

    def __init__(self, job: Job, mirrors: Mirrors) -> None:
        super().__init__(job)
        self.mirrors = mirrors
        self.tasks: set[FileTask] = set()
        self.opened = self.verified = False
        self._recovery: Recovery = ""  # what happens as soon as no connection has a task of it

    def open(self) -> None:
        """Open the partial and see what it has.

        Raises:
            StorageError: It cannot be opened.
            VanishedError: The partial was swept or taken.
        """
        self.job.partial.open()
        self.opened = True
        self.start(self._usable())

    def _usable(self) -> Mapping[int, int]:
        """Return the length of each block that may be read from the partial, by its number."""
        mirror = self.mirrors.current
        return self.job.partial.present() if mirror is not None and mirror.uses_partial else {}

    @property
    def parallel(self) -> bool:
        """Whether several connections may fetch it."""
        mirror = self.mirrors.current
        return mirror is not None and mirror.parallel and not mirror.is_paused and not self._recovery

    @property
    def is_failing(self) -> bool:
        """Whether the last request failed, so that other files may go first."""
        mirror = self.mirrors.current
        return mirror is not None and mirror.is_failing

    # Assign segments to connections ----------------------------------------------------------------------------------

    def can_assign(self, below: int, *, without: FileTask | None = None) -> bool:
        """Whether the first segment may be assigned.

        Args:
            below: The offset in the file below which it must start.
            without: A task that would be given back first.
        """
        mirror, tasks = self.mirrors.current, self.tasks - {without}
        if mirror is None or self._recovery or not self.segments or self.segments[0].start >= below:
            return False
        segment = self.segments[0]
        is_open = not mirror.is_paused and mirror.server.has_room(without) and (mirror.parallel or not tasks)
        if not segment.on_disk and not is_open:
            return False
        if segment.end is None and segment.start:  # only the digest can say whether the file ends here
            return not tasks and self.hashed >= segment.start
        return True

    def assign_next(self, below: int, *, whole: bool, now: float) -> FileTask | None:
        """Assign the first segment if it starts below ``below``: as it is if ``whole``, else at most a part of it."""
        mirror = self.mirrors.current
        if mirror is None or not self.can_assign(below):
            return None
        return self._assign(self.segments.pop(0), mirror, whole=whole, now=now)

    def _assign(
        self, segment: Segment, mirror: Mirror, *, whole: bool, now: float, inherited: bool = False
    ) -> FileTask:
        task = Task(self, self.counts, mirror, segment, now, mirror.failure_epoch, inherited=inherited)
        self._add(task)
        # The first request is for a part in any case: it shows whether the link is slow, and the mirror gives parts.
        if not whole or not mirror.has_delivered:
            self.shorten(task)
        return task

    def _add(self, task: FileTask) -> None:
        self.tasks.add(task)
        if not task.segment.on_disk:
            task.mirror.on_request()
            task.mirror.server.add(task)

    def steal(self, victim: FileTask, cut: int, now: float) -> FileTask:
        """Assign what a task has beyond ``cut`` to another connection."""
        rest = victim.segment.cut(cut)
        if cut == victim.segment.start:
            # A copy: the victim may still read into its own buffer.
            block = victim.segment.drop_block()
            rest.hold(block and block.copy())
            victim.revoke()
        mirror = self.mirrors.current or victim.mirror
        return self._assign(rest, mirror, whole=False, now=now, inherited=victim.revoked)

    def add_hedge(self, primary: FileTask, now: float) -> FileTask:
        """Let another connection fetch the rest of the block that a task has begun."""
        task = hedge.start(primary, self.mirrors.current or primary.mirror, now)
        self._add(task)
        return task

    def claim(self, task: FileTask) -> None:
        """Note that a task has its block whole: no other connection fetches it any more."""
        hedge.on_complete(task)
        task.on_block_complete()

    def shorten(self, task: FileTask) -> None:
        """Cut a task at the end of the part that it is in. The rest becomes unassigned."""
        segment = task.segment
        end = (segment.start // PART + 1) * PART
        if segment.end is not None and end < segment.end and (segment.on_disk or task.mirror.parallel):
            self.unassign(segment.cut(end))

    def extend(self, task: FileTask) -> bool:
        """Give a finished task what follows, so that its response goes on, unless another connection has that."""
        if task.mirror is not self.mirrors.current or task.revoked:
            return False
        following = self.follower(task.segment.end)
        if following is not None:
            task.extend(following)
        return following is not None

    # What a connection reports ---------------------------------------------------------------------------------------

    def on_response(self, task: FileTask, body: Body) -> bool:
        """Note what a response says of itself. ``False``: this task cannot use it.

        Raises:
            ChangedError: The file is not the one that it was.
        """
        mirror = task.mirror
        if task.revoked:
            return False
        if body.offset != task.segment.position:  # it sends the whole file, so no other connection may take a part over
            mirror.require_single()
            if len(self.tasks) > 1:
                return False  # the connection that has a response goes on
            self.start({})
            self.segments = []
            task.extend(Segment(0, self.length))
        if self.length is None and body.total is not None:
            self.learn_length(body.total, [each.segment for each in self.tasks])
            for segment in (task.segment, *self.segments):
                segment.end_at(body.total)
        elif body.total not in (None, self.length):
            raise ChangedError("the file changed between two requests (length)")
        mirror.on_response(resumable=body.resumable)
        task.on_response()
        # Another ETag does not prove another file: the nodes of one host often have one each. The digest decides, and
        # if it is wrong, the mirror may send the file once more, in one response.
        self.note_version((mirror.url, body.validator or task))
        return True

    def on_bytes(self, task: FileTask, count: int, now: float) -> None:
        """Note ``count`` more bytes."""
        task.on_bytes(count, now)
        if not task.is_hedge:
            self.counts.on_present(count)
        if not task.segment.on_disk:
            self.counts.on_received(count)
            task.mirror.on_bytes()

    def on_end_of_stream(self, task: FileTask) -> None:
        """Note that a stream of unknown length ended."""
        self.length = task.segment.position
        task.segment.end_at(self.length)

    def describe(self, task: FileTask) -> str:
        """Return what the first block of the file is instead of weights; empty if it may be weights."""
        block = task.segment.block
        if block is None or block.start or not block.filled:
            return ""
        return task.describe(bytes(block.data[:HEAD]), self.job.file.path)

    def on_written(self, task: FileTask) -> bool:
        """Note that a task's block is on the disk and waits to be hashed. ``False``: the task goes no further."""
        task.on_wait()
        segment, block = task.segment, task.segment.block
        if self._recovery or block is None:
            return False
        self.buffer(block, from_disk=segment.on_disk)
        if not block.start and not segment.on_disk:
            task.mirror.on_content(self.describe(task))
        segment.advance(block.start + block.filled)
        return not task.revoked

    def on_missing(self, task: FileTask) -> None:
        """Note that the partial does not have the next block after all: a mirror must send it."""
        task.on_wait()
        start, end = task.segment.start, task.segment.end or 0
        missing = Segment(start, min(start + BLOCK, end))
        task.segment.advance(missing.end or 0)
        self.unassign(missing)

    def release(self, task: FileTask) -> None:
        """Take a task from its connection. What is left of it becomes unassigned."""
        self.tasks.discard(task)
        task.mirror.server.remove(task)
        hedge.on_ended(task)
        segment, block = task.segment, task.segment.block
        if block is not None and (task.revoked or not block.filled or segment.on_disk or task.is_hedge):
            if not task.is_hedge:
                self.counts.on_present(-block.filled)
            segment.drop_block()
        if not task.is_hedge and (segment.end is None or segment.start < segment.end):
            self.unassign(segment)
        self._start_if_idle()

    def on_failure(self, task: FileTask, error: SourceError, now: float) -> Decision | None:
        """Decide what follows from a failed request. ``None``: the task was revoked before, and says nothing."""
        mirror = task.mirror
        if not error.request_sent:
            mirror.on_unsent()
        was_whole = not mirror.uses_partial
        failure = Failure.of(task, self.tasks, error, now)
        self.release(task)
        if task.revoked or self._recovery:
            return None
        failure = failure._replace(present=self.counts.present, mixed=self.is_mixed)
        if failure.is_refusal and (failure.exceeds_proven or mirror.has_delivered or not failure.is_final):
            mirror.server.on_refusal(task, now, throttled=failure.throttled)
        decision = self.mirrors.on_failure(mirror, failure)
        if decision.recovery:
            self.restart(decision.recovery)
        elif mirror is not self.mirrors.current and was_whole:
            self.split_all(self._usable())  # the next mirror may give parts
        return decision

    # Verify ----------------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Compare the digest as soon as every byte was hashed, and start again if it is not the declared one."""
        if self._recovery or self.is_incomplete(busy=bool(self.tasks)) or (mirror := self.mirrors.current) is None:
            return
        actual = self.digest.hexdigest()
        if actual == self.job.file.sha256:
            self.length, self.segments, self.verified = self.hashed, [], True
            self.job.delivered_by(redacted(mirror.url))
        elif self.length is not None:
            looks_like = mirror.looks_like if self.length else "an empty file"
            error = WrongBytesError(f"sha256 {self.job.file.sha256}", f"sha256 {actual}", looks_like)
            mirror.on_response()
            self.restart(self.mirrors.on_failure(mirror, Failure(error, 0.0, 0, mixed=self.is_mixed)).recovery)

    def restart(self, recovery: Recovery) -> None:
        """Start again at zero as soon as no connection has a task: none may write over the new bytes."""
        self._recovery = recovery
        for task in self.tasks:
            task.revoke()
        self._start_if_idle()

    def _start_if_idle(self) -> None:
        if self._recovery and not self.tasks:
            if self._recovery == "wipe":
                self.job.partial.reset()
            self._recovery = ""
            self.start(self._usable())
