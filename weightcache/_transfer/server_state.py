"""What is known of one server: how many connections it serves at once, and whether it responds at all.

Each server refuses a connection too many in its own way: HTTP 403, 429 or 503, another status, or a reset. So the kind
of refusal does not count, only that it came while the server was serving other connections. The number of those is
then the limit. Every now and then one connection more is tried: soon at first, and less often after each refusal.

Bookkeeping only: no thread, no clock, no request.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

MOST_ROUNDS = 256  # after so many successful rounds at the latest, one connection more is tried


class Request(Protocol):
    """What a server needs to know of a request.

    Attributes:
        started: When it was started.
        concurrency: Requests to the server at that time, this one included.
        is_answered: Whether the server has begun to send.
    """

    started: float
    concurrency: int

    @property
    def is_answered(self) -> bool: ...

    def on_queued(self, concurrency: int) -> None: ...


class Pausable:
    """A server, or one mirror of a file, which gets no request while it is paused."""

    _pauses = 0

    @property
    def is_paused(self) -> bool:
        return self._pauses > 0

    def pause(self) -> None:
        """Send it no request until `resume` was called as often."""
        self._pauses += 1

    def resume(self) -> None:
        self._pauses -= 1


class Server(Pausable):
    """One server, as all files of a download see it.

    Attributes:
        name: Host and port.
        requests: Requests that it serves, or has to answer.
        allowed: Connections that it may get at once.
        proven: Connections that it served at once.
        limited: Whether it refused a request that it might have granted at another time.
        is_silent: Whether it answered no request lately. Then one request at a time finds out when it does.
        last_byte: When it sent bytes last, or ``None``.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name, self._limit = name, limit
        self.requests: set[Request] = set()
        self.allowed, self.proven = limit, 0
        self.limited = self.is_silent = False
        self.last_byte: float | None = None
        self._outage_since: float | None = None
        self._last_response = float("-inf")
        # The latest wave of refusals: when its first request was started, when it was seen, what was allowed before.
        self._wave_started = self._wave_seen = float("-inf")
        self._allowed_before = limit
        self._rounds, self._step, self._parts = 0, 1, 0  # until more are tried; how many more; parts since then

    def add(self, request: Request) -> None:
        """Note that a request is sent to it."""
        self.requests.add(request)
        request.on_queued(len(self.requests))

    def remove(self, request: Request) -> None:
        """Note that a request is over, well or not."""
        self.requests.discard(request)

    def has_room(self, without: Request | None = None) -> bool:
        """Whether it may get one more request, if ``without`` were over."""
        busy = len(self.requests) - (without in self.requests)
        return not self.is_paused and busy < (1 if self.is_silent else self.allowed)

    def exceeds_proven(self, request: Request) -> bool:
        """Whether a request was one of more than it ever served at once: its refusal says nothing about the file."""
        return max(request.concurrency, len(self.requests)) > max(1, self.proven)

    def on_response(self, now: float, *, after_refusal: bool = False) -> None:
        """Note that it answered with bytes; ``after_refusal`` if it had refused the same file before."""
        self._last_response, self.is_silent = now, False
        served = sum(request.is_answered for request in self.requests)
        if served > self.proven:
            self.proven, self._rounds = served, 0
        self.limited = self.limited or after_refusal

    def on_bytes(self, now: float) -> float | None:
        """Note that it sends bytes; return for how many seconds it was out if that ends an outage."""
        since, self._outage_since = self._outage_since, None
        self.last_byte = now
        return None if since is None else now - since

    def on_outage(self, now: float) -> bool:
        """Note that it sends nothing any more; whether that was not known yet."""
        if self._outage_since is not None:
            return False
        self._outage_since = now
        return True

    def on_refusal(self, request: Request, now: float, *, throttled: bool) -> None:
        """Note that a request, which is over, was refused; ``throttled`` if it asked for fewer requests."""
        if request.started >= self._wave_seen:  # refusals of one wave count once
            self._wave_started, self._wave_seen, self._allowed_before = request.started, now, self.allowed
            self._rounds, self._step = min(max(1, 2 * self._rounds), MOST_ROUNDS), 1
        self._parts = 0
        self.limited = self.limited or any(each.is_answered for each in self.requests)
        self.allowed = min(self.allowed, max(1, len(self.requests)))
        if not self.requests and not throttled and self._last_response < self._wave_started:
            # It served no connection, which is no limit: when it is back, it gets as many connections as before.
            self.is_silent, self.allowed = True, self._allowed_before
        self.proven = min(self.proven, self.allowed)

    def on_part(self) -> None:
        """Note that a part arrived whole. After enough rounds of them, more connections are allowed."""
        self._parts += 1
        if self.allowed < self._limit and self._parts >= self.allowed * max(1, self._rounds):
            self.allowed, self._step, self._parts = min(self._limit, self.allowed + self._step), 2 * self._step, 0


class Servers:
    """The servers of one download."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, Server] = {}

    def of(self, url: str) -> Server:
        """Return the server of a URL. All files of this machine have the same one, without a name."""
        name = urlsplit(url).netloc.rpartition("@")[2]
        return self._known.setdefault(name, Server(name, self._limit))
