"""What the Dict says about one lease, and what one waiter knows about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """The last report of the newest holder of a lease."""

    number: int
    holder: str
    state: str
    beat: int = 0
    done: int = 0

    @classmethod
    def parse(cls, value: object) -> Head | None:
        """Return the head that a Dict holds; ``None`` for a value that this library does not write."""
        if not isinstance(value, (tuple, list)) or len(value) != 5:
            return None
        number, holder, state, beat, done = value
        if not isinstance(holder, str) or not holder.isprintable():  # it is shown in messages
            return None
        if not all(type(count) is int and count >= 0 for count in (number, beat, done)):
            return None
        return cls(number, holder, state, beat, done) if state in ("held", "done", "failed") else None

    def to_tuple(self) -> tuple[int, str, str, int, int]:
        return self.number, self.holder, self.state, self.beat, self.done


class LeaseState:
    """What one caller knows of one digest."""

    def __init__(self, now: float, expiry: float) -> None:
        self._expiry = expiry
        self.head: Head | None = None
        # If this process sleeps between the answer and reading its clock, its own sleep must not count as silence of
        # the holder. So silence is measured up to the time of the request.
        self.requested_at = now  # when the head that we know was asked for
        self.alive_at = now  # when number or beat changed last, or a claim was lost: the holder lived then
        self.progress_at = now  # when there was progress in bytes last
        self.highest_lost = 0  # the highest number that somebody else claimed
        self.number = 0  # that of the lease that we hold; 0 for none
        self.beat = 0

    @property
    def next(self) -> int:
        return max(self.head.number if self.head else 0, self.highest_lost) + 1

    @property
    def is_silent(self) -> bool:
        return self.requested_at - self.alive_at > self._expiry

    def is_stuck(self, wait: float) -> bool:
        return self.requested_at - self.progress_at > wait

    def update(self, head: Head | None, asked: float, now: float) -> None:
        before, self.head, self.requested_at = self.head, head, asked
        if (head and (head.number, head.state, head.beat)) != (before and (before.number, before.state, before.beat)):
            self.alive_at = now
        if (head and (head.number, head.done)) != (before and (before.number, before.done)):
            self.progress_at = now
