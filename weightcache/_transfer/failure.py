"""A failed request: what was going on, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from .mirror_stream import RangeError, TransientError

if TYPE_CHECKING:
    from collections.abc import Collection

    from .mirror_state import Mirror
    from .mirror_stream import SourceError
    from .segment_assignment import FileT, Task
    from .server_state import Server

# What happens to the bytes of a file after a failure: nothing; read them again from the start, with those of the
# partial; or drop them all, those of the partial included.
Recovery = Literal["", "rewind", "wipe"]


class Failure(NamedTuple):
    """What was going on when a request failed.

    Attributes:
        error: What failed.
        now: When.
        present: Bytes of the file that are there.
        failure_epoch: The mirror's when the request was started. A failure that became known since then is no news.
        mixed: Whether the bytes that are there come from more than one response.
        others: Whether other connections receive bytes of this file from this mirror.
        is_refusal: Whether the server answered with an error, before any byte of the file.
        exceeds_proven: Whether it was one request more than the server ever served at once.
        answered: Whether the mirror had begun to send.
        received: Whether it had sent any bytes.
    """

    error: SourceError
    now: float
    present: int
    failure_epoch: int = 0
    mixed: bool = False
    others: bool = False
    is_refusal: bool = False
    exceeds_proven: bool = False
    answered: bool = True
    received: bool = False

    @classmethod
    def of(cls, task: Task[FileT], tasks: Collection[Task[FileT]], error: SourceError, now: float) -> Failure:
        """Return the failure of a task, before that is released.

        Args:
            task: The task.
            tasks: All tasks of its file.
            error: What failed.
            now: When.
        """
        mirror = task.mirror
        answered, received = task.is_answered, task.received > 0
        is_refusal = error.request_sent and not (received or answered or isinstance(error, RangeError))
        return cls(
            error,
            now,
            task.counts.present,
            task.failure_epoch,
            others=any(each.mirror is mirror and each.received for each in tasks if each is not task),
            is_refusal=is_refusal,
            exceeds_proven=is_refusal and mirror.server.exceeds_proven(task),
            answered=answered,
            received=received,
        )

    @property
    def throttled(self) -> bool:
        """Whether the server asked for fewer requests."""
        return isinstance(self.error, TransientError) and self.error.throttled

    @property
    def is_final(self) -> bool:
        """Whether another try cannot succeed, as far as the error says."""
        return not isinstance(self.error, TransientError)

    @property
    def retry_after(self) -> float:
        """Seconds that the mirror asks to wait."""
        return self.error.retry_after if isinstance(self.error, TransientError) else 0.0


class Decision(NamedTuple):
    """What follows from a failure.

    Attributes:
        recovery: What happens to the bytes.
        pause: For how many seconds the connection pauses.
        paused_with: What pauses with it, if anything: the mirror, or its whole server.
        outage: Whether the mirror is waited for because it delivered before.
    """

    recovery: Recovery = ""
    pause: float = 0.0
    paused_with: Mirror | Server | None = None
    outage: bool = False
