"""The story of a cold `ensure` between containers, told once from top to bottom in `tell`.

look again → read the leases → reload and look again → claim → bring what is missing: withdraw the receipts of what is
healed, fetch and publish, commit, write the receipts, commit → look a last time → release.

Two commits, because Modal promises no order in which the files of one commit become visible, and a receipt must
never be seen before its data. Whoever holds a lease never waits for another one: two containers that need each other's
checkpoint would wait for ever.

What a step does is the `House`'s business: `_fill` does it on the disk, and the simulation in ``tests/`` on a model of
a Volume. For the sake of the simulation everything is a coroutine; `run` drives one that never suspends.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from weightcache._runtime import settings as runtime_settings
from weightcache._store.partial_file import VanishedError
from weightcache.errors import WeightCacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from weightcache._coordination.lease import Clock, Lease, Pause

T = TypeVar("T")

_log = logging.getLogger("weightcache")

ROUNDS = 3  # how often it is begun again after something of ours vanished


class House(Protocol):
    """What can be done in one container. Digests are full digests of checkpoints."""

    async def look(self) -> list[str]:
        """Return the digests of what is not ready."""

    async def unpushed(self) -> bool:
        """Whether this container wrote what no commit has taken."""

    async def reload(self) -> None:
        """Show what other containers committed."""

    async def commit(self) -> bool:
        """Push what this container wrote; whether that succeeded."""

    async def can_write(self) -> bool:
        """Whether the root may be written to."""

    async def prepare(self, digests: Sequence[str]) -> bool:
        """Find out what is missing of each; withdraw the receipt of what must be healed. Whether one was withdrawn."""

    async def bring(self) -> None:
        """Fetch what is missing, hashing it, and publish it by rename."""

    async def write_receipts(self) -> None:
        """Write the receipts of what is complete."""

    async def has_published(self) -> bool:
        """Whether anything that was prepared is complete."""

    async def vanished(self, what: str) -> None:
        """Note that something of ours vanished while it was written."""

    async def give_up(self, digests: Sequence[str]) -> None:
        """Serve what is there from a root that cannot be written to, or raise what the caller is told."""

    async def waiting(self, lease: Lease, digests: Sequence[str]) -> None:
        """Tell the user, and who waits for us in this container, for whom we wait."""

    async def alongside(self, beat: Callable[[Pause], Coroutine[Any, Any, None]], work: Coroutine[Any, Any, T]) -> T:
        """Do the work while ``beat`` runs beside it; end that one before returning."""


async def tell(house: House, lease: Lease | None, clock: Clock) -> list[str]:
    """Bring everything that is missing, or wait for who does. Returns what was lost as often as it was brought."""
    missing = await house.look()
    looked, brought = float("-inf"), Counter[str]()
    while missing and max(brought[digest] for digest in missing) < ROUNDS:
        # The heads first: one that says "done" was written after the last commit, so the reload shows its data.
        free = missing if lease is None else await lease.claimable(missing)
        if free or clock.now() - looked >= runtime_settings.DEFAULT.reload_interval:
            await _refresh(house)
            looked, missing = clock.now(), await house.look()
            free = [digest for digest in free if digest in missing]
        if not await house.can_write():
            if missing and (lease is None or not lease.held_by_others(missing)):
                await house.give_up(missing)
                return []
            held = []
        else:
            held = free if lease is None else await lease.claim(free)
        if held:
            brought.update(held)
            await _bring_under(lease, house, held)
            missing = await house.look()
        elif missing and lease is not None:
            await house.waiting(lease, missing)
            await lease.wait(missing)
    return missing


async def _bring_under(lease: Lease | None, house: House, digests: Sequence[str]) -> None:
    if lease is None:
        await _bring(house, digests)
        return
    try:
        await house.alongside(lease.beat, _bring(house, digests))
    except BaseException as error:
        await lease.release(digests, "failed", tidy=isinstance(error, Exception))
        raise
    await lease.release(digests, "done")


async def _bring(house: House, digests: Sequence[str]) -> None:
    try:
        if await house.prepare(digests):
            await house.commit()  # other containers must not serve a hit from a place that changes
        try:
            await house.bring()
        except (WeightCacheError, VanishedError):
            # What is complete is kept, with its receipt; and the first error is the one reported.
            with suppress(WeightCacheError, VanishedError):
                await _settle(house)
            raise
        await _settle(house)
    except VanishedError as error:
        _log.info("%s vanished while it was written; beginning again", error)
        await house.vanished(str(error))


async def _settle(house: House) -> None:
    """Commit the data of what is complete, then write the receipts and commit them.

    Without a commit no receipt: it could reach another container before its data. The bytes here are right all the
    same, so they are returned, and the next container adopts them.
    """
    if await house.has_published() and await house.commit():
        await house.write_receipts()
        await house.commit()


async def _refresh(house: House) -> None:
    """Show what other containers committed, without losing what this one wrote.

    A reload discards what no commit has taken, perhaps a partial, or a publication that nobody else has.
    """
    if not await house.unpushed() or await house.commit():
        await house.reload()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends to its end."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a coroutine of the story waited for an event loop")
