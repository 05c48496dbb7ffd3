"""The protocol between containers on a miss; `reconcile` holds it from top to bottom.

inspect again → read the leases → reload and inspect again → claim → install what is missing (withdraw the receipts of
what is healed, fetch and publish, commit, write the receipts, commit) → inspect a last time → release.

Two commits, because Modal promises no order in which the files of one commit become visible, and a receipt must
never be seen before its data. A container that holds a lease never waits for another one: two containers that need
each other's checkpoint would wait forever.

A `Host` carries out the steps: `host.LocalHost` on the disk, the simulation in ``tests/`` on a model of a Volume. The
simulation is also the reason that everything here is a coroutine. `run_sync` drives one that never suspends.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from weightcache._runtime import tuning_constants as runtime_settings
from weightcache._store.partial_file import VanishedError
from weightcache.errors import WeightCacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from weightcache._coordination.lease import Clock, Lease, Pause

T = TypeVar("T")

_log = logging.getLogger("weightcache")

MAX_ATTEMPTS = 3  # installations of one checkpoint before a file that is lost each time becomes an error


class Host(Protocol):
    """The steps of the protocol in one container. Digests are full digests of checkpoints."""

    async def missing(self) -> list[str]:
        """Inspect the root; return the digests of the checkpoints that are not ready."""

    async def is_dirty(self) -> bool:
        """Whether this container wrote something that no commit has taken."""

    async def reload(self) -> None:
        """Show what other containers committed."""

    async def commit(self) -> bool:
        """Publish what this container wrote to the Volume; return whether that succeeded."""

    async def can_write(self) -> bool:
        """Whether the root is writable."""

    async def prepare(self, digests: Sequence[str]) -> bool:
        """Plan what each needs, withdraw the receipts of what must be healed; return whether any was withdrawn."""

    async def install(self) -> None:
        """Copy or fetch what is missing, verify it, and publish it by rename."""

    async def write_receipts(self) -> None:
        """Write the receipts of the checkpoints that are complete."""

    async def has_published(self) -> bool:
        """Whether any checkpoint that was prepared is complete."""

    async def on_lost(self, what: str) -> None:
        """Note that ``what`` was lost while this container wrote it."""

    async def serve_read_only(self, digests: Sequence[str]) -> None:
        """Serve what is there from a read-only root, or raise `NotCachedError`."""

    async def waiting(self, lease: Lease, digests: Sequence[str]) -> None:
        """Report which container this one waits for: to the user, and to other processes of this container."""

    async def with_heartbeat(
        self, beat: Callable[[Pause], Coroutine[Any, Any, None]], work: Coroutine[Any, Any, T]
    ) -> T:
        """Run ``work`` while ``beat`` runs concurrently; end ``beat`` before returning."""


async def reconcile(host: Host, lease: Lease | None, clock: Clock) -> list[str]:
    """Install everything that is missing, or wait for the container that does.

    Returns:
        The digests that are still missing after `MAX_ATTEMPTS` installations; empty on success.
    """
    missing = await host.missing()
    looked, attempts = float("-inf"), Counter[str]()
    while missing and max(attempts[digest] for digest in missing) < MAX_ATTEMPTS:
        # The leases first: one in state "done" was written after the last commit, so the reload shows its data.
        free = missing if lease is None else await lease.claimable(missing)
        if free or clock.now() - looked >= runtime_settings.DEFAULT.reload_interval:
            await sync_volume(host)
            looked, missing = clock.now(), await host.missing()
            free = [digest for digest in free if digest in missing]
        if not await host.can_write():
            if missing and (lease is None or not lease.held_by_others(missing)):
                await host.serve_read_only(missing)
                return []
            held = []
        else:
            held = free if lease is None else await lease.claim(free)
        if held:
            attempts.update(held)
            await _install_under_lease(lease, host, held)
            missing = await host.missing()
        elif missing and lease is not None:
            await host.waiting(lease, missing)
            await lease.wait(missing)
    return missing


async def _install_under_lease(lease: Lease | None, host: Host, digests: Sequence[str]) -> None:
    if lease is None:
        await _install(host, digests)
        return
    try:
        await host.with_heartbeat(lease.beat, _install(host, digests))
    except BaseException as error:
        await lease.release(digests, "failed", tidy=isinstance(error, Exception))
        raise
    await lease.release(digests, "done")


async def _install(host: Host, digests: Sequence[str]) -> None:
    try:
        if await host.prepare(digests):
            await host.commit()  # other containers must not serve a hit from a version directory that changes
        try:
            await host.install()
        except (WeightCacheError, VanishedError):
            # Complete checkpoints keep their work, with a receipt. The first error is the one raised.
            with suppress(WeightCacheError, VanishedError):
                await commit_results(host)
            raise
        await commit_results(host)
    except VanishedError as error:
        _log.info("%s was lost while it was written; starting again", error)
        await host.on_lost(str(error))


async def commit_results(host: Host) -> None:
    """Commit the data of what is complete, then write the receipts and commit them.

    If the first commit fails, no receipt is written: it could reach another container before its data. The bytes in
    this container are verified, so they are returned all the same, and the next container adopts them.
    """
    if await host.has_published() and await host.commit():
        await host.write_receipts()
        await host.commit()


async def sync_volume(host: Host) -> None:
    """Show what other containers committed, without losing what this one wrote.

    A reload discards what no commit has taken: perhaps the only copy of a partial or of a published file.
    """
    if not await host.is_dirty() or await host.commit():
        await host.reload()


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a coroutine of the protocol waited for an event loop")
