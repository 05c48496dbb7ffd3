"""Time limits and intervals in one place. Tests shorten them; there are no environment variables for them.

Code reads `DEFAULT` when it is called, and not when it is imported, so that a test can replace it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Time limits and intervals, in seconds."""

    # Volume and coordination
    volume_backoff: tuple[float, ...] = (0.5, 2.0)  # before the second and the third try of a commit or reload
    lease_expiry: float = 30.0  # without a beat, a holder of a lease is taken for dead after this time
    lease_beat: float = 5.0  # between two beats: five may be lost or late before the lease expires
    lease_poll: tuple[float, float] = (1.0, 5.0)  # between two reads of the heads, at first and at most
    reload_interval: float = 15.0  # a waiter reloads the Volume this often even if no head changes: a Dict may forget
    lease_retry_delays: tuple[float, ...] = (0.5, 1.0, 2.0)  # before another try of an operation on the Dict
    dict_timeout: float = 5.0  # for one operation on a Dict; Modal documents a few dozen milliseconds
    dict_timeout_on_interrupt: float = 0.3  # the same after Ctrl-C, which must end the program within a second
    lock_poll: float = 0.05  # between two tries to acquire the lock of a root
    lock_beat: float = 1.0  # between two notes of its holder
    report_interval: float = 10.0  # between two lines that name the holder of the lock


DEFAULT = Settings()
