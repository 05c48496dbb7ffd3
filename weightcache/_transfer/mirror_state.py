"""The state of one mirror while one file is fetched from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from .server_state import Pausable, Server


class Access(Enum):
    """In which way a mirror gives a file."""

    PARALLEL = auto()  # in parts, to several connections at once
    SINGLE = auto()  # in parts, to one connection at a time
    WHOLE = auto()  # in one response only: it ignores Range


class Delivery(IntEnum):
    """How far a mirror has come with a file, ever. A later state includes the earlier ones."""

    NOTHING = 0
    RESPONSE = 1  # it answered with the file, or a part of it
    BYTES = 2  # it sent bytes of it


@dataclass(eq=False)
class Mirror(Pausable):
    """What is known of one URL while one file is fetched from it.

    Attributes:
        url: The URL.
        server: Its server.
        order: Its place in the declaration.
        hub: The page of the Hub's repository that it belongs to; empty without one.
        requests: Requests that were sent to it.
        access: See `Access`.
        delivery: See `Delivery`.
        exclusive: Whether the file is fetched from it alone, so that the digest is a verdict on its bytes.
        failures: Failures in a row, without progress.
        failure_epoch: Failures that counted, ever. A request that started in an earlier epoch says nothing new.
        is_failing: Whether it failed more than once since it sent bytes.
        is_refusing: Whether it refused the file since it answered.
        not_before: It gets no request before this time, if another mirror is tried meanwhile.
        looks_like: What the file starts as, if not as weights do.
    """

    url: str
    server: Server
    order: int = 0
    hub: str = ""
    requests: int = 0
    access: Access = Access.PARALLEL
    delivery: Delivery = Delivery.NOTHING
    exclusive: bool = False
    failures: int = 0
    failure_epoch: int = 0
    is_failing: bool = False
    is_refusing: bool = False
    not_before: float = 0.0
    looks_like: str = ""

    def __post_init__(self) -> None:
        self._most_present = 0  # bytes of the file at one of its failures: more of them is progress

    @property
    def has_ranges(self) -> bool:
        """Whether it gives parts of the file."""
        return self.access is not Access.WHOLE

    @property
    def has_delivered(self) -> bool:
        """Whether it ever answered with the file, or a part of it."""
        return self.delivery >= Delivery.RESPONSE

    @property
    def has_sent_bytes(self) -> bool:
        return self.delivery >= Delivery.BYTES

    @property
    def parallel(self) -> bool:
        """Whether several connections may fetch the file from it."""
        return self.access is Access.PARALLEL and not self.exclusive

    @property
    def uses_partial(self) -> bool:
        """Whether it gives single parts, so that only those missing in the partial are requested."""
        return self.has_ranges and not self.exclusive

    def rest(self, until: float) -> None:
        """Send it no request before ``until``, since another mirror is tried meanwhile."""
        self.not_before = until

    def on_request(self) -> None:
        self.requests += 1

    def on_unsent(self) -> None:
        """Note that a request could not even be sent."""
        self.requests -= 1

    def on_response(self, *, resumable: bool = True) -> None:
        """Note that it answered with the file or a part of it; ``resumable`` if another request may continue it."""
        self.delivery = max(self.delivery, Delivery.RESPONSE)
        if not resumable:
            self.require_whole()

    def clear_refusal(self) -> bool:
        """Note that it refuses the file no longer; whether it did."""
        was, self.is_refusing = self.is_refusing, False
        return was

    def on_bytes(self) -> None:
        self.delivery, self.is_failing = Delivery.BYTES, False

    def on_content(self, looks_like: str) -> None:
        """Note what the file starts as."""
        self.looks_like = looks_like

    def on_failure(self, present: int, epoch: int) -> bool:
        """Count a failure; whether it is news.

        Args:
            present: Bytes of the file that are there.
            epoch: The `failure_epoch` when the request was started.
        """
        progress = present > self._most_present
        if not progress and epoch != self.failure_epoch:
            return False
        self.failure_epoch += 1
        self.failures = 1 if progress else self.failures + 1
        self._most_present = max(self._most_present, present)
        self.is_failing = self.failures > 1
        return True

    def on_refusal(self, *, is_final: bool) -> None:
        self.is_refusing = is_final

    def require_single(self) -> None:
        """Use it on one connection at a time."""
        if self.access is Access.PARALLEL:
            self.access = Access.SINGLE

    def require_whole(self) -> None:
        """Request the whole file from now on."""
        self.access = Access.WHOLE

    def isolate(self) -> None:
        """Take no byte of the file from anywhere else, on one connection."""
        self.exclusive = True
