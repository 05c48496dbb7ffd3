"""Whether one connection is slow, so that several pay off (docs/decisions/0008-when-one-connection-becomes-many.md)."""

from __future__ import annotations

RESPONSE = 0.001  # seconds of every response that are no sign of a slow link


class LinkSpeed:
    """The rate of the first connection, in the time that it is waited for.

    Args:
        slow_after: Seconds of waiting after which the rate is measured.
        fast_rate: Bytes a second of a connection that is not slow.
    """

    def __init__(self, slow_after: float, fast_rate: float) -> None:
        self._slow_after, self._fast_rate = slow_after, fast_rate
        self._waited, self._received = 0.0, 0

    def on_response(self, seconds: float) -> bool:
        """Note how long a response took; whether the link is slow."""
        return self.on_bytes(0, max(0.0, seconds - RESPONSE))

    def on_bytes(self, count: int, waited: float) -> bool:
        """Note ``count`` bytes that were waited for; whether the link is slow. ``False`` may mean: not known yet."""
        self._received += count
        self._waited += waited
        if self._waited < self._slow_after:
            return False
        is_slow = self._received < self._fast_rate * self._waited
        self._waited, self._received = 0.0, 0
        return is_slow
