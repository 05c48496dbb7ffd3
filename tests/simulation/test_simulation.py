"""The lease and the protocol on a model of Modal: every seed holds the invariants, and planted bugs are found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

import world as world_model
from content import FILES, GOOD, receipt
from faults import Switches
from invariants import EXPIRY, RELOAD_INTERVAL, BrokenError
from protocol import Host
from simulation import simulate
from support import change_settings
from weightcache import DownloadError, NotCachedError
from weightcache._coordination.lease import Lease
from weightcache._coordination.lease_observation import Head
from weightcache._engine import miss_protocol
from weightcache._store.partial_file import VanishedError
from world import Step

SEEDS = 300


def test_every_seed_holds() -> None:
    served = 0
    for seed in range(SEEDS):
        try:
            served += simulate(seed).finished > 0  # it raises where an invariant breaks
        except BaseException as error:
            raise AssertionError(f"{error}; again with: python tests/simulation/simulate.py --seed {seed}") from error
    assert served > 0.9 * SEEDS  # else too much is excused


def test_a_seed_replays_exactly() -> None:
    for seed in range(20):
        assert simulate(seed).trace == simulate(seed).trace
    assert simulate(1).trace != simulate(2).trace


def found(limit: int = 1500, **plant: Any) -> str:
    """Return the first broken invariant of ``limit`` seeds."""
    for seed in range(limit):
        try:
            simulate(seed, **plant)
        except BrokenError as error:
            return str(error)
    raise AssertionError(f"not found in {limit} seeds")


class PublishesUnverified(Host):
    async def fetch(self, digest: str, path: str, begun: bool) -> bool:
        self.container.write(path, (*GOOD[path][:-1], "?"))
        return begun


class ReceiptBeforeRename(Host):
    async def publish(self, path: str, partial: str, journal: str) -> None:
        self.container.write(receipt(path.partition("/")[0]), self.world.now)
        await Step(self.world.span(0.1))
        await super().publish(path, partial, journal)


class TrustsExistence(Host):
    def state(self, digest: str) -> str:
        return "ready" if all(path in self.container.files for path in FILES[digest]) else "missing"


class PrunesTheYoung(Host):
    spare = 0.0


class BlamesTheOrigin(Host):
    """Says that the origin failed, which was never asked."""

    async def fetch(self, digest: str, path: str, begun: bool) -> bool:
        raise DownloadError("no mirror", hint="", checkpoint=digest, file=path, attempts=())


class ReloadsOverUnpushed(Host):
    async def is_dirty(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("host", "broken"),
    [
        (PublishesUnverified, "G1"),
        (ReceiptBeforeRename, "G1|G4"),
        (TrustsExistence, "G1"),
        (PrunesTheYoung, "young"),
        (BlamesTheOrigin, "progress"),
    ],
)
def test_a_wrong_step_is_found(host: type[Host], broken: str) -> None:
    assert found(host=host).partition(":")[0] in broken.split("|")


async def _one_commit(host: Any) -> None:
    if await host.has_published():
        await host.write_receipts()
        await host.commit()


async def _receipts_whatever(host: Any) -> None:
    if await host.has_published():
        await host.commit()
        await host.write_receipts()
        await host.commit()


async def _release_first(lease: Any, host: Any, digests: Sequence[str]) -> None:
    async def install_and_release() -> None:
        with suppress(VanishedError):
            await host.prepare(digests)
            await host.install()
            await lease.release(digests, "done")
            await miss_protocol.commit_results(host)

    await host.with_heartbeat(lease.beat, install_and_release())


_right_protocol = miss_protocol.reconcile


async def _blind_protocol(host: Any, lease: Any, clock: Any) -> list[str]:
    """Does not look after the last commit."""
    if not await host.can_write():
        return await _right_protocol(host, lease, clock)
    missing = await host.missing()
    while missing:
        free = await lease.claimable(missing)
        await miss_protocol.sync_volume(host)
        missing = await host.missing()
        if held := await lease.claim([digest for digest in free if digest in missing]):
            await miss_protocol._install_under_lease(lease, host, held)
            missing = [digest for digest in missing if digest not in held]
        elif missing:
            await lease.wait(missing)
    return []


async def _claims_without_reload(host: Any, lease: Any, clock: Any) -> list[str]:
    if not await host.can_write():
        return await _right_protocol(host, lease, clock)
    missing, reloaded = await host.missing(), False
    while missing:
        free = await lease.claimable(missing)
        if not reloaded or not free:
            await miss_protocol.sync_volume(host)
            reloaded, missing = True, await host.missing()
        if held := await lease.claim([digest for digest in free if digest in missing]):
            await miss_protocol._install_under_lease(lease, host, held)
            missing = await host.missing()
        elif missing:
            await lease.wait(missing)
    return []


async def _waits_while_holding(host: Any, lease: Any, clock: Any) -> list[str]:
    if not await host.can_write():
        return await _right_protocol(host, lease, clock)
    missing, held = await host.missing(), list[str]()
    while missing:
        free = await lease.claimable([digest for digest in missing if digest not in held])
        held += await lease.claim(free[:1])
        if set(missing) <= set(held):
            await miss_protocol._install_under_lease(lease, host, held)
            missing, held = await host.missing(), []
        else:
            await host.with_heartbeat(lease.beat, lease.wait([digest for digest in missing if digest not in held]))
            await miss_protocol.sync_volume(host)
            missing = [digest for digest in await host.missing() if digest in missing]
            held = [digest for digest in held if digest in missing]
    return []


async def _gives_up(host: Any, lease: Any, clock: Any) -> list[str]:
    missing: list[str] = await host.missing()
    return missing


async def _says_that_nobody_installs_it(host: Any, lease: Any, clock: Any) -> list[str]:
    if await host.missing():
        raise NotCachedError("no container installs it", hint="")
    return []


async def _reads_without_reload(host: Any, lease: Any, clock: Any) -> list[str]:
    if await host.can_write():
        return await _right_protocol(host, lease, clock)
    if missing := await host.missing():
        await host.serve_read_only(missing)
    return []


async def _reads_without_waiting(host: Any, lease: Any, clock: Any) -> list[str]:
    if await host.can_write():
        return await _right_protocol(host, lease, clock)
    if missing := await host.missing():
        await lease.claimable(missing)
        await miss_protocol.sync_volume(host)
        if missing := await host.missing():
            await host.serve_read_only(missing)
    return []


@pytest.mark.parametrize(
    ("name", "wrong", "broken"),
    [
        ("commit_results", _one_commit, "G1"),
        ("_install_under_lease", _release_first, "downloads"),
        ("reconcile", _blind_protocol, "G1"),
        ("reconcile", _claims_without_reload, "downloads"),
        ("reconcile", _waits_while_holding, "downloads"),  # after `wait` seconds each gives up waiting
        ("reconcile", _gives_up, "progress"),
        ("reconcile", _says_that_nobody_installs_it, "progress"),
        ("reconcile", _reads_without_reload, "progress"),
        ("reconcile", _reads_without_waiting, "progress"),
    ],
)
def test_a_wrong_protocol_is_found(
    name: str, wrong: Callable[..., Any], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miss_protocol, name, wrong)
    if name == "reconcile":
        monkeypatch.setattr(world_model, "reconcile", wrong)
    said = found()
    assert any(word in said for word in broken.split("|")), said


def test_receipts_for_data_that_no_commit_took_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miss_protocol, "commit_results", _receipts_whatever)
    rare = Switches(begin="stranger", visibility="file", commit_fails=0.7)
    assert found(switches=rare).startswith("G1")


def test_a_reload_over_what_no_commit_took_is_found() -> None:
    rare = Switches(reload_over="discard", commit_fails=0.8, background=False, processes=2)
    assert found(host=ReloadsOverUnpushed, switches=rare).startswith("young")


class PopsAndPuts(Lease):
    """Steals by pop and put of one key, as a lock file would be taken from a dead holder."""

    async def _claim(self, digest: str, watched: Any) -> bool:
        head = watched.head
        if head:
            await self._retry(lambda: self._store.pop(f"{digest}/head"))
        watched.number = watched.next
        mine = Head(watched.number, self._me, "held")
        made = await self._retry(lambda: self._store.put(f"{digest}/head", mine.to_tuple(), new=True))
        if not made:
            watched.number = 0
        return made


class NeverBeats(Lease):
    async def beat(self, pause: Any) -> None:
        while await pause(5.0):
            pass


class ForgetsTheHead(Lease):
    """Does not read the head again after a claim."""

    async def _claim(self, digest: str, watched: Any) -> bool:
        number = watched.next
        if not await self._put_new(f"{digest}/{number}"):
            watched.highest_lost, watched.alive_at = number, self._clock.now()
            return False
        watched.number, watched.beat = number, 0
        await self._retry(lambda: self._write(digest, watched, "held"))
        return True


class TakesItsSleepForSilence(Lease):
    """Judges a head by a clock that it reads later."""

    async def claimable(self, digests: Sequence[str]) -> list[str]:
        await super().claimable(digests)
        for watched in self._watched.values():
            watched.requested_at = self._clock.now()
        return [digest for digest in digests if self._is_claimable(digest)]


class WaitsForWhoStalls(Lease):
    def __init__(self, *args: Any, wait: float, **options: Any) -> None:
        super().__init__(*args, wait=float("inf"), **options)


class TimesItsBeats(Lease):
    """Writes its wall clock into its beats, as a lock with an expiry would; others compare it with their own."""

    async def _write(self, digest: str, watched: Any, state: str, *, timeout: float | None = None) -> None:
        watched.beat = int(self._clock.container.wall) + 100  # type: ignore[attr-defined]
        await super()._write(digest, watched, state, timeout=timeout)

    def _is_claimable(self, digest: str) -> bool:
        watched = self._watched.get(digest)
        if watched and watched.head and watched.head.state == "held" and watched.head.holder != self._me:
            return self._clock.container.wall + 100 - watched.head.beat > EXPIRY  # type: ignore[attr-defined]
        return super()._is_claimable(digest)


@pytest.mark.parametrize(
    ("lease", "broken"), [(PopsAndPuts, "downloads"), (NeverBeats, "downloads"), (WaitsForWhoStalls, "waits")]
)
def test_a_wrong_lease_is_found(lease: type[Lease], broken: str) -> None:
    assert broken in found(lease=lease)


def test_a_lease_that_compares_clocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "downloads" in found(lease=TimesItsBeats, switches=Switches(block=15.0))
    monkeypatch.setattr(world_model, "NEAR", 0.0)
    with pytest.raises(AssertionError, match="not found"):
        found(100, lease=TimesItsBeats, switches=Switches(block=15.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_expiry", 10 * EXPIRY),
        ("lease_expiry", 2 * EXPIRY),
        ("lease_poll", (1.0, 60.0)),
        ("reload_interval", 3 * RELOAD_INTERVAL),
    ],
)
def test_who_waits_too_long_is_found(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, **{name: value})
    assert found().startswith("waits")


def test_clocks_that_are_far_apart_matter_to_sweep_and_prune() -> None:
    """Else that every seed holds would say nothing of them."""
    worlds = [
        [simulate(seed, Switches(clocks=clocks, prune=True, kills=1, containers=9)) for seed in range(30)]
        for clocks in ("near", "far")
    ]
    swept = [sum(world.swept for world in each) for each in worlds]
    pruned = [sum(world.pruned_young for world in each) for each in worlds]
    assert swept[0] == pruned[0] == 0
    assert swept[1] > 0
    assert pruned[1] > 0


def test_a_claim_of_an_old_number_is_found() -> None:
    """It takes one that sleeps between its look and its claim, and two lives of a lease meanwhile."""
    assert "downloads" in found(lease=ForgetsTheHead, switches=Switches(sleeps=True, kills=1, containers=9))


def test_a_sleep_taken_for_the_holders_silence_is_found() -> None:
    assert "downloads" in found(lease=TakesItsSleepForSilence, switches=Switches(sleeps=True, block=15.0, containers=9))


def test_a_failed_holder_is_followed_and_a_dead_one_too() -> None:
    followed = itertools.count()
    for seed in range(SEEDS):
        world = simulate(seed)
        if world.switches.healthy and (world.failures or world.deaths) and max(world.downloads.values()) > 1:
            next(followed)
    assert next(followed) > 5  # else the bound on downloads would never be tried
