"""Limits and waits that only tests change, in one value.

Code reads `DEFAULT` when a call starts, and not when it is imported, so that one replaced value reaches every module of
the call. The download hands the value down as an argument; Volume, lease, Dict and lock take it as an argument and read
`DEFAULT` if none is given. It is not a user interface: there is no environment variable for it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits and waits of one call. Times are in seconds, sizes in bytes, rates in bytes a second.

    Retries of one mirror:
        tries: Failures in a row, without progress, after which a mirror that never delivered is given up.
        backoff: Base of the backoff. The n-th failure in a row waits a random time of at most ``backoff * 2**n``.
        backoff_max: The longest backoff. After an outage, a download continues after this time at the latest.
        retry_after_max: The longest Retry-After that is waited for. A mirror that asks for more is given up.
        refusal_timeout: How long a mirror that delivered may refuse requests with a final status before it is given
            up. A server may take a while to notice that a connection has ended; a deleted file stays deleted.

    Timeouts of HTTP:
        connect_timeout: Until a connection is established.
        stall_timeout: Without a byte of the file until a connection is replaced. The head of a response with
            everything before it, and the body of a redirect, have the same time in all; all redirects of a request
            together have twice that time.
        slow_window: Time in which a connection must deliver ``slow_window_bytes``, or it is replaced as well.
        slow_window_bytes: See ``slow_window``.

    Parallel connections (docs/decisions/0008-when-one-connection-becomes-many.md):
        connections: Most connections of a download, for all files together.
        slow_after: Time that a first connection is waited for until its rate is measured.
        fast_rate: Rate, while it is waited for, at which one connection is enough.
        open_files: Most files that are open at once.

    Work stealing and hedged requests:
        stalled_after: Without a byte until an idle connection takes over.
        hedge_bytes: Bytes of one file that may be fetched twice.
        hedge_min_age: Time in which a block may be slow without a hedge: its connection has just started, or this
            machine is busy.
        hedge_min_gain: Time that a hedge must be expected to save.
        hedge_slowdown: How many times slower than usual a block must be for a hedge.
        hedge_usual: Time that a block may take while no usual rate is known.

    Progress:
        line_interval: Between two lines of progress in a log.

    Volume and coordination:
        volume_backoff: Before the second and the third try of a commit or reload.
        lease_expiry: Without a beat, the holder of a lease counts as dead after this time.
        lease_beat: Between two beats. Five may be lost or late before the lease expires.
        lease_poll: Between two reads of the heads of leases, at first and at most.
        reload_interval: A waiting container reloads the Volume this often, even if no head changes: a Dict may forget.
        lease_retry_delays: Before another try of an operation on the Dict.
        dict_timeout: For one operation on a Dict. Modal documents a few dozen milliseconds.
        dict_timeout_on_interrupt: The same after Ctrl-C, which must end the program within a second.
        lock_poll: Between two tries to acquire the lock of a root.
        lock_beat: Between two notes of its holder.
        report_interval: Between two lines that name the holder of the lock.
    """

    # Retries of one mirror
    tries: int = 5
    backoff: float = 0.5
    backoff_max: float = 5.0
    retry_after_max: float = 120.0
    refusal_timeout: float = 30.0

    # Timeouts of HTTP
    connect_timeout: float = 10.0
    stall_timeout: float = 30.0
    slow_window: float = 60.0
    slow_window_bytes: int = 60 * 1024

    # Parallel connections
    connections: int = 24
    slow_after: float = 0.05
    fast_rate: float = 200e6
    open_files: int = 32

    # Work stealing and hedged requests
    stalled_after: float = 1.0
    hedge_bytes: int = 4 << 20
    hedge_min_age: float = 0.5
    hedge_min_gain: float = 2.0
    hedge_slowdown: float = 4.0
    hedge_usual: float = 10.0

    # Progress
    line_interval: float = 10.0

    # Volume and coordination
    volume_backoff: tuple[float, ...] = (0.5, 2.0)
    lease_expiry: float = 30.0
    lease_beat: float = 5.0
    lease_poll: tuple[float, float] = (1.0, 5.0)
    reload_interval: float = 15.0
    lease_retry_delays: tuple[float, ...] = (0.5, 1.0, 2.0)
    dict_timeout: float = 5.0
    dict_timeout_on_interrupt: float = 0.3
    lock_poll: float = 0.05
    lock_beat: float = 1.0
    report_interval: float = 10.0


DEFAULT = Settings()
