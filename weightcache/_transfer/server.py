"""What is known of one server: how many connections it bears at once, and whether it gives anything at all.

A server refuses a connection that is too many in its own way: HTTP 403, 429 or 503, another status, or a reset. So what
counts is not how it refuses, but that it did while it served others. Those that it serves are then all that it gets.
Every now and then it is asked for more: soon at first, and the more seldom the more often it refused.

Bookkeeping alone: no thread, no clock, no request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from .segments import Task

MOST_ROUNDS = 256  # after so many that went well, one more connection is tried at the latest


class Server:
    """One server, as all files of a download see it.

    Attributes:
        name: Server and port.
        tasks: What is asked of it, or comes from it, at the moment.
        allowed: Connections that it is asked for at once.
        proven: Connections that it served at once.
        limited: Whether it refused a request that it might have granted at another time.
        moved: When it sent bytes last, or ``None``.
        pausing: Pauses that go on: until then nobody asks it.
        silent: Whether it gave no answer to anybody lately: then one request at a time finds out when it does.
        outage: Since when it gives nothing, if the user knows of that.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name, self._limit = name, limit
        self.tasks: set[Task] = set()
        self.allowed, self.proven = limit, 0
        self.limited = self.silent = False
        self.pausing = 0
        self.moved: float | None = None
        self.outage: float | None = None
        self._answered = float("-inf")  # when it answered last
        self._wave_began = self._wave_seen = float("-inf")  # of the latest refusals: the first one
        self._before = limit  # what was allowed then
        self._rounds, self._step, self._good = 0, 1, 0  # until it is asked for more; for how many; parts since then

    def has_room(self, without: Task | None = None) -> bool:
        """Whether it may be asked for one thing more, if ``without`` were ended."""
        busy = len(self.tasks) - (without in self.tasks)
        return not self.pausing and busy < (1 if self.silent else self.allowed)

    def is_beyond(self, task: Task) -> bool:
        """Whether a request was one of more than it ever served at once: then a refusal says nothing of the file."""
        return max(task.crowd, len(self.tasks)) > max(1, self.proven)

    def answered(self, now: float) -> None:
        """Note that it answered as it should."""
        self._answered, self.silent = now, False
        served = sum(task.answered for task in self.tasks)
        if served > self.proven:
            self.proven, self._rounds = served, 0

    def refused(self, task: Task, now: float, *, throttled: bool) -> None:
        """Note that a request, which is over, was refused; ``throttled`` if it was asked for fewer requests."""
        if task.began >= self._wave_seen:  # a wave of refusals is one
            self._wave_began, self._wave_seen, self._before = task.began, now, self.allowed
            self._rounds, self._step = min(max(1, 2 * self._rounds), MOST_ROUNDS), 1
        self._good = 0
        self.limited = self.limited or any(each.answered for each in self.tasks)
        self.allowed = min(self.allowed, max(1, len(self.tasks)))
        if not self.tasks and not throttled and self._answered < self._wave_began:
            # It served nobody. That is no limit: when it is back, it gets as many as before.
            self.silent, self.allowed = True, self._before
        self.proven = min(self.proven, self.allowed)

    def gave_a_part(self) -> None:
        """Note that a part came whole; after rounds of them there may be more connections."""
        self._good += 1
        if self.allowed < self._limit and self._good >= self.allowed * max(1, self._rounds):
            self.allowed, self._step, self._good = min(self._limit, self.allowed + self._step), 2 * self._step, 0


class Servers:
    """The servers of one download."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, Server] = {}

    def of(self, url: str) -> Server:
        """Return the server of a URL. Files of this machine have one for all of them."""
        name = urlsplit(url).netloc.rpartition("@")[2]
        return self._known.setdefault(name, Server(name, self._limit))
