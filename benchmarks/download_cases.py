"""The cases of download.py: which files come over which link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Job = dict[str, Any]
    Result = dict[str, Any]


RATE, ROUND_TRIP = 40, 20  # MB/s of each connection, milliseconds
THROTTLED = (6_000, 400)  # bytes a second
ONE, BOTH = ("groundingdino",), ("groundingdino", "sam2-large")


@dataclass
class Case:
    title: str
    checkpoints: tuple[str, ...]
    link: str  # plain, tls, shaped, shaped-tls or throttled-N
    disk: bool = False
    alone: bool = False  # only weightcache: other clients may wait for the slow connection for hours


CASES = {
    "one": Case("694 MB, plain loopback, into /dev/shm", ONE, "plain"),
    "both": Case("694 and 898 MB, plain loopback, into /dev/shm", BOTH, "plain"),
    "tls": Case("694 MB, TLS on loopback, into /dev/shm", ONE, "tls"),
    "disk": Case("694 MB, plain loopback, onto a disk", ONE, "plain", disk=True),
    "both-disk": Case("694 and 898 MB, TLS on loopback, onto a disk", BOTH, "tls", disk=True),
    "shaped": Case(f"694 MB, {RATE} MB/s a connection, {ROUND_TRIP} ms, into /dev/shm", ONE, "shaped"),
    "shaped-tls": Case(f"694 MB, TLS, {RATE} MB/s a connection, {ROUND_TRIP} ms, into /dev/shm", ONE, "shaped-tls"),
    **{
        f"throttled-{slow}": Case(
            f"694 MB, {RATE} MB/s a connection, {ROUND_TRIP} ms, one connection of them {slow} bytes/s",
            ONE,
            f"throttled-{slow}",
            alone=True,
        )
        for slow in THROTTLED
    },
}
