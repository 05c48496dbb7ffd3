"""The lease between containers: which one downloads, and which ones wait. It only avoids duplicate downloads.

One Dict for each Volume holds, for each full digest:

- ``<digest>/<n>`` = the holder of the n-th lease, written once, by a put that fails if the key exists;
- ``<digest>/head`` = (n, holder, "held" | "done" | "failed", beat, bytes done).

A Dict has no compare-and-swap and no expiry of one key, so a lease is never taken from a dead holder: the next number
is claimed. It contains no times, because the clocks of two containers differ: a holder is taken for dead when its
beat has not changed for `Settings.lease_expiry` seconds of the waiter's own clock.

Everything here is a coroutine, so that the simulation in ``tests/`` can stop it anywhere and let other containers
move. In a container none of them ever suspends: see `_engine.reconcile.run_sync`.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any, Protocol

from weightcache._runtime import tuning_constants as runtime_settings

from .lease_observation import Head, LeaseState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeAlias

    from weightcache._runtime.tuning_constants import Settings

    # Waits for so many seconds; returns whether to go on afterwards.
    Pause: TypeAlias = Callable[[float], Awaitable[bool]]

_log = logging.getLogger("weightcache")


class Store(Protocol):
    """The operations of a Dict that a lease needs. After an exception, the operation may or may not have happened."""

    async def get(self, key: str) -> object:
        """Return the value, or ``None``."""

    async def put(self, key: str, value: object, *, new: bool = False, timeout: float | None = None) -> bool:
        """Write, if ``new`` only where there is no value; return whether it was written. ``timeout``: in seconds."""

    async def pop(self, key: str) -> object:
        """Remove a key and return its value, or ``None``."""


class Clock(Protocol):
    """The clock of one container."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class UnavailableError(Exception):
    """The Dict failed, repeatedly. Never leaves the library: it goes on without a lease."""


class Lease:
    """One caller's part in the leases of the digests that it needs.

    Attributes:
        waited_for: The last holder that was waited for; empty if there was no wait.
        waited: Seconds waited.
        failure: Why the lease is not used any more; empty while it works.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        me: str,
        *,
        wait: float,
        rng: random.Random | None = None,
        bytes_done: Callable[[], int] = lambda: 0,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or runtime_settings.DEFAULT
        self._store, self._clock, self._me, self._wait = store, clock, me, wait
        self._rng = rng or random.Random()  # noqa: S311 (no secret: it keeps containers from moving in step)
        self._watched: dict[str, LeaseState] = {}
        self._poll = self._settings.lease_poll[0]
        self._bytes_done = bytes_done  # fetched or hashed by this container: waiters judge its progress by it
        self.waited_for, self.waited, self.failure = "", 0.0, ""

    async def claimable(self, digests: Sequence[str]) -> list[str]:
        """Read the heads; return the digests that nobody holds, or whose holder is dead or too slow."""
        for digest in digests:
            if not self.failure:
                await self._guard(self._read(digest))
        return [digest for digest in digests if self._is_claimable(digest)]

    async def _read(self, digest: str) -> None:
        head, asked = await self._head(digest)
        now = self._clock.now()
        self._watched.setdefault(digest, LeaseState(now, self._settings.lease_expiry)).update(head, asked, now)

    async def _head(self, digest: str) -> tuple[Head | None, float]:
        """Return the head, and when it was asked for."""
        asked = 0.0

        async def get() -> object:
            nonlocal asked
            asked = self._clock.now()
            return await self._store.get(f"{digest}/head")

        return Head.parse(await self._retry(get)), asked

    def _is_claimable(self, digest: str) -> bool:
        if self.failure:
            return True
        watched = self._watched.get(digest)
        if watched is None:
            return False  # it went missing since the heads were read: somebody may hold it
        head = watched.head
        if head and head.state == "held" and head.holder != self._me:
            return watched.is_silent or watched.is_stuck(self._wait)
        # A container that claimed a number that no head shows yet is about to write its head, or died before it.
        return watched.is_silent or watched.highest_lost <= (head.number if head else 0)

    def held_by_others(self, digests: Sequence[str]) -> list[str]:
        """Return those that somebody alive holds, or may hold."""
        return [digest for digest in digests if not self._is_claimable(digest)]

    async def claim(self, digests: Sequence[str]) -> list[str]:
        """Claim what is `claimable`; return the digests to download now."""
        held = []
        for digest in digests:
            watched = self._watched.get(digest)
            if self.failure or watched is None:
                held.append(digest)
            elif watched.is_stuck(self._wait) and watched.head and watched.head.state == "held":
                _log.warning("%s made no progress for %g s; not waiting for it", watched.head.holder, self._wait)
                held.append(digest)  # it beats, so the lease is its own; this only costs bandwidth
            elif await self._guard(self._claim(digest, watched)) or self.failure:
                held.append(digest)
        return held

    async def _claim(self, digest: str, watched: LeaseState) -> bool:
        number = watched.next
        key = f"{digest}/{number}"
        if not await self._put_new(key):
            watched.highest_lost, watched.alive_at = number, self._clock.now()
            return False
        head, asked = await self._head(digest)
        if head and head.number >= number:
            # A holder removes the claims before its own: one that is asleep could otherwise claim an old number.
            await self._retry(lambda: self._store.pop(key))
            watched.update(head, asked, self._clock.now())
            return False
        watched.number, watched.beat = number, 0
        await self._retry(lambda: self._write(digest, watched, "held"))
        return True

    async def _put_new(self, key: str) -> bool:
        tried = False

        async def put() -> bool:
            nonlocal tried
            again, tried = tried, True
            # A put that failed may have been done: then our own name stands there.
            return await self._store.put(key, self._me, new=True) or (again and await self._store.get(key) == self._me)

        made: bool = await self._retry(put)
        return made

    async def beat(self, pause: Pause) -> None:
        """Write a heartbeat for every lease that we hold, until ``pause`` returns false."""
        while await pause(self._settings.lease_beat):
            for digest, watched in self._watched.items():
                if watched.number:
                    try:
                        head = Head.parse(await self._store.get(f"{digest}/head"))
                        if head and head.number > watched.number:
                            watched.number = 0  # we were taken for dead, and another container has the lease now
                            continue
                        watched.beat += 1
                        await self._write(digest, watched, "held")
                    except Exception as error:  # noqa: BLE001 (a Dict raises whatever it likes; the next beat tries again)
                        _log.info("no beat for the lease of %s: %s", digest[:16], error)

    async def release(self, digests: Sequence[str], state: str, *, tidy: bool = True) -> None:
        """Report that we are done or that we failed, so that other containers stop waiting.

        Args:
            digests: Some of those that `claim` returned.
            state: ``done`` or ``failed``.
            tidy: Also remove the claims before ours. Without it, this is one operation with a short timeout.
        """
        for digest in digests:
            watched = self._watched.get(digest)
            if watched is None or not watched.number:
                continue
            try:
                await self._release(digest, watched, state, tidy=tidy)
            except Exception as error:  # noqa: BLE001 (waiting containers see the missing beat)
                _log.info("the lease of %s could not be released: %s", digest[:16], error)
            watched.number, watched.highest_lost = 0, 0

    async def _release(self, digest: str, watched: LeaseState, state: str, *, tidy: bool) -> None:
        if tidy:
            head = Head.parse(await self._store.get(f"{digest}/head"))
            if head and head.number > watched.number:
                return
        await self._write(digest, watched, state, timeout=None if tidy else self._settings.dict_timeout_on_interrupt)
        number = watched.number - 1
        while tidy and number > 0 and await self._store.pop(f"{digest}/{number}") is not None:
            number -= 1

    async def _write(self, digest: str, watched: LeaseState, state: str, *, timeout: float | None = None) -> None:
        head = Head(watched.number, self._me, state, watched.beat, self._bytes_done())
        await self._store.put(f"{digest}/head", head.to_tuple(), timeout=timeout)

    async def wait(self, digests: Sequence[str]) -> None:
        """Wait for one poll interval."""
        self.waited_for = self.holder(digests) or self.waited_for
        seconds = self._poll * self._rng.uniform(0.5, 1.0)
        self._poll = min(self._poll * 1.5, self._settings.lease_poll[1])
        began = self._clock.now()
        await self._clock.sleep(seconds)
        self.waited += self._clock.now() - began

    def holder(self, digests: Sequence[str]) -> str:
        """Return the holder of the first of ``digests`` that has one; empty if none has."""
        heads = [watched.head for digest in digests if (watched := self._watched.get(digest))]
        return next((head.holder for head in heads if head and head.state == "held"), "")

    def progress(self, digests: Sequence[str]) -> int:
        """Return how many bytes the holders of ``digests`` say that they have."""
        heads = [watched.head for digest in digests if (watched := self._watched.get(digest))]
        return max((head.done for head in heads if head), default=0)

    async def _guard(self, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except UnavailableError as error:
            self.failure = str(error)
            return None

    async def _retry(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        for delay in (*self._settings.lease_retry_delays, None):
            try:
                return await operation()
            except Exception as error:  # noqa: BLE001 (a Dict raises whatever it likes)
                if delay is None:
                    raise UnavailableError(f"{type(error).__name__}: {error}") from None
                _log.info("the lease: %s; trying again in %g s", error, delay)
                await self._clock.sleep(delay)
        raise AssertionError
