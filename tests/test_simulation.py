"""The lease and the story on a model of Modal: every seed holds the invariants, and planted bugs are found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import simulation
from simulation import FILES, GOOD, BrokenError, House, Step, Switches, receipt, simulate
from weightcache import _story
from weightcache._lease import Head, Lease

SEEDS = 300


def test_every_seed_holds() -> None:
    for seed in range(SEEDS):
        try:
            world = simulate(seed)  # it raises where an invariant breaks
        except BaseException as error:
            raise AssertionError(f"{error}; again with: python tests/simulate.py --seed {seed}") from error
        assert world.finished > 0, f"nobody came to an end; again with: python tests/simulate.py --seed {seed}"


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


class PublishesUnverified(House):
    async def fetch(self, digest: str, path: str, begun: bool) -> bool:
        self.container.write(path, (*GOOD[path][:-1], "?"))
        return begun


class ReceiptBeforeRename(House):
    async def publish(self, path: str, partial: str, journal: str) -> None:
        self.container.write(receipt(path.partition("/")[0]), self.world.now)
        await Step(self.world.span(0.1))
        await super().publish(path, partial, journal)


class TrustsExistence(House):
    def state(self, digest: str) -> str:
        return "ready" if all(path in self.container.files for path in FILES[digest]) else "missing"


class PrunesTheYoung(House):
    spare = 0.0


class ReloadsOverUnpushed(House):
    async def unpushed(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("house", "broken"),
    [
        (PublishesUnverified, "G1"),
        (ReceiptBeforeRename, "G1|G4"),
        (TrustsExistence, "G1"),
        (PrunesTheYoung, "young"),
    ],
)
def test_a_wrong_step_is_found(house: type[House], broken: str) -> None:
    assert found(house=house).partition(":")[0] in broken.split("|")


async def _one_commit(house: Any) -> None:
    if await house.has_published():
        await house.write_receipts()
        await house.commit()


async def _receipts_whatever(house: Any) -> None:
    if await house.has_published():
        await house.commit()
        await house.write_receipts()
        await house.commit()


async def _release_first(lease: Any, house: Any, digests: Sequence[str]) -> None:
    async def bring_and_release() -> None:
        await house.prepare(digests)
        await house.bring()
        await lease.release(digests, "done")
        await _story._settle(house)

    await house.alongside(lease.beat, bring_and_release())


async def _blind_tell(house: Any, lease: Any, clock: Any) -> list[str]:
    """Does not look after the last commit."""
    missing = await house.look()
    while missing:
        free = await lease.free(missing)
        await _story._refresh(house)
        missing = await house.look()
        if held := await lease.claim([digest for digest in free if digest in missing]):
            await _story._bring_under(lease, house, held)
            missing = [digest for digest in missing if digest not in held]
        elif missing:
            await lease.rest(missing)
    return []


async def _claims_without_reload(house: Any, lease: Any, clock: Any) -> list[str]:
    missing, reloaded = await house.look(), False
    while missing:
        free = await lease.free(missing)
        if not reloaded or not free:
            await _story._refresh(house)
            reloaded, missing = True, await house.look()
        if held := await lease.claim([digest for digest in free if digest in missing]):
            await _story._bring_under(lease, house, held)
            missing = await house.look()
        elif missing:
            await lease.rest(missing)
    return []


async def _waits_while_holding(house: Any, lease: Any, clock: Any) -> list[str]:
    missing, held = await house.look(), list[str]()
    while missing:
        free = await lease.free([digest for digest in missing if digest not in held])
        held += await lease.claim(free[:1])
        if set(missing) <= set(held):
            await _story._bring_under(lease, house, held)
            missing, held = await house.look(), []
        else:
            await house.alongside(lease.beat, lease.rest([digest for digest in missing if digest not in held]))
            await _story._refresh(house)
            missing = [digest for digest in await house.look() if digest in missing]
            held = [digest for digest in held if digest in missing]
    return []


@pytest.mark.parametrize(
    ("name", "wrong", "broken"),
    [
        ("_settle", _one_commit, "G1"),
        ("_bring_under", _release_first, "downloads"),
        ("tell", _blind_tell, "G1"),
        ("tell", _claims_without_reload, "downloads"),
        ("tell", _waits_while_holding, "downloads"),  # after `wait` seconds each gives up waiting
    ],
)
def test_a_wrong_story_is_found(
    name: str, wrong: Callable[..., Any], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_story, name, wrong)
    if name == "tell":
        monkeypatch.setattr(simulation, "tell", wrong)
    said = found()
    assert any(word in said for word in broken.split("|")), said


def test_receipts_for_data_that_no_commit_took_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_story, "_settle", _receipts_whatever)
    rare = Switches(begin="stranger", visibility="file", commit_fails=0.7)
    assert found(switches=rare).startswith("G1")


def test_a_reload_over_what_no_commit_took_is_found() -> None:
    rare = Switches(reload_over="discard", commit_fails=0.8, background=False, processes=2)
    assert found(house=ReloadsOverUnpushed, switches=rare).startswith("young")


class PopsAndPuts(Lease):
    """Steals by pop and put of one key, as a lock file would be taken from a dead holder."""

    async def _claim(self, digest: str, watched: Any) -> bool:
        head = watched.head
        if head:
            await self._trying(lambda: self._store.pop(f"{digest}/head"))
        watched.number = watched.next
        mine = Head(watched.number, self._me, "held")
        made = await self._trying(lambda: self._store.put(f"{digest}/head", mine.value(), new=True))
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
            watched.lost, watched.changed = number, self._clock.now()
            return False
        watched.number, watched.beat = number, 0
        await self._trying(lambda: self._write(digest, watched, "held"))
        return True


class TakesItsSleepForSilence(Lease):
    """Judges a head by a clock that it reads later."""

    async def free(self, digests: Sequence[str]) -> list[str]:
        await super().free(digests)
        for watched in self._watched.values():
            watched.asked = self._clock.now()
        return [digest for digest in digests if self._is_free(digest)]


@pytest.mark.parametrize("lease", [PopsAndPuts, NeverBeats])
def test_a_wrong_lease_is_found(lease: type[Lease]) -> None:
    assert "downloads" in found(lease=lease)


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
