"""What must hold in every simulated world: no wait is too long, everybody gets its bytes, nothing is fetched twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from content import FILES, GOOD, RATE, RIGHT, WAIT
from faults import Switches
from weightcache._runtime.tuning_constants import DEFAULT

if TYPE_CHECKING:
    from world import Container, World

EXPIRY, POLL, RELOAD_INTERVAL = DEFAULT.lease_expiry, DEFAULT.lease_poll, DEFAULT.reload_interval


class BrokenError(AssertionError):
    """An invariant does not hold, in ``world``."""

    world: World


class Patience:
    """How long one `ensure` may wait for others, by the simulated clock.

    A waiter sees what a head says at the latest one round after it was written: a rest of at most POLL, and its own
    calls to the Dict and to the Volume. It counts from there, by its own clock, and judges by the first head that it
    asks for afterwards, another round later. So it waits no longer than

    - EXPIRY + 2 * (POLL + calls) after the last sign of life: a new number, state or beat;
    - WAIT + 2 * (POLL + calls) after the last progress: a new number, or more bytes;
    - RELOAD_INTERVAL + POLL + calls after it last read the Volume, whatever the heads say.

    ``calls`` is what the longest of its own rounds took without the rest. The first two begin anew when it loses a
    claim (the winner's head is still to come), and all when it has downloaded something itself and when it wakes up.
    """

    def __init__(self, container: Container) -> None:
        self._container, self._world = container, container.world
        self._held: dict[str, bool] = {}  # whether a container downloads it, as it last read
        self._since: dict[str, float] = {}  # for what it waits, and since when, or since it lost a claim of it
        self._calls = self._tries = 0.0
        self._rests = False
        self.restarts()

    def restarts(self) -> None:
        """It waits from now on: one without the lock, or with a download of its own, does not wait for a lease."""
        self._since.clear()
        self._round = self._looked = self._world.now  # when the round began; when it looked last
        self._tries = 0.0

    def hears(self, key: str, head: Any) -> None:
        """Note whether the head names a holder that is neither dead nor stuck by any container's clock."""
        digest, world = key.partition("/")[0], self._world
        self._held[digest] = (
            bool(head)
            and head[2] == "held"
            and world.now - world.lived[digest] < EXPIRY / (1 + RATE)
            and world.now - world.moved[digest] < WAIT / (1 + RATE)
        )

    def is_left(self, digests: Sequence[str]) -> bool:
        """Whether no container downloads any of them, as it last read, or the Dict may have lost it."""
        return self._world.switches.dict in ("flaky", "down", "forget") or not any(map(self._held.get, digests))

    def loses(self, key: str) -> None:
        digest = key.partition("/")[0]
        if digest in self._since:
            self._since[digest] = self._world.now

    def looks(self) -> None:
        self._looked = self._world.now

    def rests(self, digests: Sequence[str]) -> None:
        if self._world.switches.dict in ("flaky", "down"):
            self._tries = 0.0  # what an operation that failed waits before it is tried again is one of the calls
        now = self._world.now
        self._calls = max(self._calls, now - max(self._round, self._container.woke) - self._tries)
        self._since = {digest: self._since.get(digest, now) for digest in digests}
        self._rests = True
        self.check()

    def slept(self, seconds: float) -> None:
        if not self._rests:
            self._tries += seconds
            return
        self.check()
        self._rests, self._round, self._tries = False, self._world.now, 0.0

    def check(self) -> None:
        world, container = self._world, self._container
        a_round = POLL[1] + self._calls + 0.01
        if world.now - max(self._looked, container.woke) > RELOAD_INTERVAL / (1 - RATE) + a_round:
            raise BrokenError(f"waits: no look at the Volume since {self._looked:.1f}")
        late = []
        for digest, began in self._since.items():
            for limit, signs in ((EXPIRY, world.lived), (WAIT, world.moved)):
                waited = world.now - max(began, container.woke, signs.get(digest, 0.0))
                if waited > limit / (1 - RATE) + 2 * a_round:
                    late.append(f"waits: {waited:.1f} s for {digest}, whose holder may be silent for {limit:g} s")
                    break
        # A read-only one waits while any container downloads a part of what it lacks; another one claims what is free.
        if late and (len(late) == len(self._since) or not container.reads_only):
            raise BrokenError(late[0])


def progress(world: World) -> None:
    """Every survivor has its bytes; else its own origin failed, or it is read-only and no other downloaded them."""
    for container in world.containers:
        mains = [process for process in container.processes if process.is_main and not process.killed]
        if any("" in process.ends or not process.ends for process in mains):
            raise BrokenError(f"progress: container {container.number} could have had its bytes, and has not")
        world.finished += bool(mains) and all(process.ends[0] == RIGHT for process in mains)


def judge(world: World) -> None:
    if world.switches.healthy:
        for digest, count in world.downloads.items():
            if count > world.lives[digest] + world.failures:
                raise BrokenError(f"{count} downloads of {digest}, {world.lives[digest]} + {world.failures} allowed")
    # Afterwards a fresh, undisturbed container finishes, and fetches what is missing alone.
    world.switches = Switches(containers=1, background=False, begin=world.switches.begin)
    lacking = sum(len(GOOD[path]) for path in GOOD if world.server.get(path) != GOOD[path])
    before, world.moves = world.fetched, 0
    world.now += 10 * EXPIRY
    world.boot(0.0, ["x", "y"])
    world.run()
    [process] = [process for process in world.containers[-1].processes if process.is_main]
    if process.ends[0] != RIGHT or not world.has(list(FILES)):
        raise BrokenError("G4: a fresh container does not heal it")
    if world.fetched - before > lacking:
        raise BrokenError(f"G4: {world.fetched - before} blocks fetched, {lacking} were missing")
