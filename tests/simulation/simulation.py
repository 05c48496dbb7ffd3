"""A deterministic simulation of many containers on one Volume: the shipped protocol on a model of everything else.

One thread and a seeded scheduler. Each container runs `reconcile` with a `_lease.Lease`, as shipped; what they await
is done here, on dictionaries, and at every await any other container may move, die, sleep, commit or reload. A seed
replays exactly. A file is a tuple of blocks; a Volume is a mapping from paths to files.

Where Modal is silent a switch is thrown by the seed, and the invariants must hold in every position (docs/volumes.md
has the sources): whether a commit becomes visible as a whole or file by file in any order; whether files that are open
for writing are left out of it, taken in part or whole; whether a reload commits, discards or keeps what was not
committed; whether it happens after every commit; whether a file that was written and not changed is committed too.
Besides, a seed chooses who dies, sleeps, has files open, reads only or finds no origin, how slow all of it is, and how
far each container's clock is off.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from weightcache import DownloadError, NotCachedError
from weightcache._coordination.lease import EXPIRY, LOOK, POLL, Lease
from weightcache._engine.reconcile import reconcile
from weightcache._store.partial_file import VanishedError
from weightcache._store.partials import STALE

T = TypeVar("T")
Blocks = tuple[Any, ...]
CHECKPOINTS: dict[str, dict[str, Blocks]] = {
    "x": {"f": tuple(("x", number) for number in range(4))},
    "y": {"a": (("a", 0), ("a", 1)), "b": (("b", 0), ("b", 1))},
}
GOOD = {f"{digest}/{path}": blocks for digest, files in CHECKPOINTS.items() for path, blocks in files.items()}
FILES = {digest: [f"{digest}/{path}" for path in files] for digest, files in CHECKPOINTS.items()}
STRANGER: Blocks = ("?",) * 4  # as long as the real one
SHORT: Blocks = ("short",)
WAIT = 300.0  # what `ensure` calls wait: longer than the slowest block takes
STALL = 2 * WAIT  # how long an origin that stalls says nothing, once
RATE = 1e-3  # by how much a container's clocks may go too fast or too slow
NEAR = 20.0  # seconds by which its wall clock may be off; where clocks are far apart some are off by hours or days
OLD = -1e6  # when the receipts were written that a world begins with; the others are younger than half of it
RIGHT = "it has the right bytes"  # how an `ensure` ended


def receipt(digest: str) -> str:
    return f"receipts/{digest}"


class BrokenError(AssertionError):
    """An invariant does not hold, in ``world``."""

    world: World


class VolumeCallError(Exception):
    """A commit or reload raised."""


class KilledError(BaseException):
    """What a coroutine meets that is killed: its ``finally`` may run, but does nothing to the world any more."""


class Step:
    """An await at which anybody else may move."""

    killing = False  # whether a killed coroutine is being taken down: then nothing can be awaited

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        if Step.killing:
            raise KilledError
        yield self.seconds


@dataclass
class Switches:
    """What a seed chose."""

    visibility: str = "whole"  # or "file": one by one, in any order
    open_writers: str = "exclude"  # or "partial", "include"
    reload_over: str = "commit"  # or "discard", "keep"
    skip_reload: bool = False  # a commit reloads afterwards, or not
    background: bool = True
    commit_fails: float = 0.0
    reload_fails: float = 0.0
    touched: bool = False  # a file that was written is committed, also with the same content
    opens: bool = False  # the app has files open now and then, so that a reload fails
    dict: str = "ok"  # or "flaky", "forget", "down", "slow"
    prune: bool = False
    kills: int = 0
    kill: str = "container"  # or "exit" (with a last commit), "process"
    sleeps: bool = False
    origin_fails: float = 0.0
    origin: str = "ok"  # or "down" or "stalls": for some containers
    block: float = 2.0  # seconds that a block of a download takes
    readers: bool = False  # some containers may not write
    clocks: str = "near"  # or "far"
    begin: str = "empty"  # or "truncated", "unreceipted", "stranger", "gap", "old" (a version that nobody declares)
    containers: int = 3
    processes: int = 1

    @classmethod
    def throw(cls, dice: random.Random) -> Switches:
        c = dice.choice
        return cls(
            visibility=c(["whole", "file"]),
            open_writers=c(["exclude", "partial", "include"]),
            reload_over=c(["commit", "discard", "keep"]),
            skip_reload=c([False, False, True]),
            background=c([False, True, True]),
            commit_fails=c([0, 0, 0.3]),
            reload_fails=c([0, 0, 0.2]),
            touched=c([False, True]),
            opens=c([False, False, True]),
            dict=c(["ok", "ok", "ok", "ok", "flaky", "forget", "down", "slow"]),
            prune=c([False, False, False, True]),
            kills=c([0, 0, 1, 1, 2]),
            kill=c(["container", "exit", "process"]),
            sleeps=c([False, False, True]),
            origin_fails=c([0, 0, 0, 0.1]),
            origin=c(["ok", "ok", "ok", "ok", "down", "stalls"]),
            block=c([2.0, 2.0, 15.0]),
            readers=c([False, False, False, True]),
            clocks=c(["near", "near", "near", "far"]),
            begin=c(["empty", "empty", "truncated", "unreceipted", "stranger", "gap", "old"]),
            containers=c([2, 3, 4, 5, 9, 16]),
            processes=c([1, 1, 2]),
        )

    @property
    def healthy(self) -> bool:
        """Whether the lease may be expected to spare every second download."""
        disturbed = self.commit_fails or self.reload_fails or self.opens or self.prune or self.dict != "ok"
        return not disturbed and self.origin != "stalls"


@dataclass(eq=False)
class Process:
    coroutine: Coroutine[Any, Any, None]
    container: Container | None
    is_main: bool = False
    owner: Process | None = None  # a heartbeat dies with whom it beats for
    number: int = 0
    dead: bool = False
    killed: bool = False
    ends: list[str] = field(default_factory=list)  # of each `ensure`: RIGHT, an excuse, or nothing

    def bury(self) -> None:
        """Take it down where it stands."""
        Step.killing = True
        try:
            self.coroutine.throw(KilledError())
        except (KilledError, StopIteration):
            pass
        finally:
            Step.killing = False


class World:
    """The server of the Volume, the Dict, the origin, and the scheduler."""

    def __init__(self, seed: int, switches: Switches | None = None, host: type[Host] | None = None) -> None:
        self.seed, self.dice = seed, random.Random(seed)
        self.switches = switches or Switches.throw(self.dice)
        self.host, self.lease = host or Host, Lease
        self.now = 0.0
        self.server: dict[str, Any] = {}
        self.entries: dict[str, Any] = {}
        self.containers: list[Container] = []
        self.downloads = dict.fromkeys(CHECKPOINTS, 0)
        self.lives = dict.fromkeys(CHECKPOINTS, 1)  # a download may begin once in each
        self.fetched = self.deaths = self.failures = self.finished = self.moves = self.swept = self.pruned_young = 0
        self.lived: dict[str, float] = {}  # when a lease's head last showed a sign of life
        self.moved: dict[str, float] = {}  # when it last showed progress
        self.trace: list[tuple[float, int, str]] = []
        self._queue: list[tuple[float, float, int, Process]] = []
        self._count = 0

    def span(self, seconds: float) -> float:
        """How long something takes that usually takes ``seconds``."""
        return seconds * self.dice.choice((0.01, 0.3, 1, 1, 1, 3, 8)) * (0.5 + self.dice.random())

    def start(self, coroutine: Coroutine[Any, Any, None], container: Container | None, after: float = 0.0) -> Process:
        self._count += 1
        process = Process(coroutine, container, number=self._count)
        if container:
            container.processes.append(process)
        self._push(self.now + after, process)
        return process

    def _push(self, when: float, process: Process) -> None:
        self._count += 1
        heapq.heappush(self._queue, (when, self.dice.random(), self._count, process))

    def run(self) -> None:
        while self._queue:
            if self.moves > 600_000:
                raise BrokenError("progress: no end in sight")
            when, _, _, process = heapq.heappop(self._queue)
            container = process.container
            if process.dead:
                process.bury()
                continue
            if container and container.sleeps_until > when:
                self._push(container.sleeps_until + self.dice.random(), process)
                continue
            self.now = max(self.now, when)
            self.moves += 1
            if container and process.is_main and container.disturb(process):
                process.bury()
                continue
            try:
                seconds = process.coroutine.send(None)
            except StopIteration:
                process.dead = True
            else:
                self._push(self.now + seconds, process)

    def boot(self, after: float, wanted: list[str]) -> None:
        async def begin() -> None:
            container = Container(self, wanted)
            self.containers.append(container)
            if self.switches.background:
                self.start(container.background(), container, self.span(2))
            if self.switches.opens:
                self.start(container.app(), container, self.span(2))
            for _ in range(self.switches.processes):
                container.start_main(self.span(0.1))

        self.start(begin(), None, after)

    def note(self, what: str, container: Container | None = None) -> None:
        self.trace.append((round(self.now, 6), container.number if container else -1, what))

    def check(self, files: dict[str, Any], where: str) -> None:
        """Whoever looks at ``files`` and calls it a hit must be right; and nothing unverified may be in a place."""
        for digest, paths in FILES.items():
            if receipt(digest) in files and all(len(files.get(path, ())) == len(GOOD[path]) for path in paths):
                for path in paths:
                    if files[path] != GOOD[path]:
                        raise BrokenError(f"G1: a hit on wrong bytes of {path} ({where})")
        begun = {"stranger": STRANGER, "truncated": SHORT}.get(self.switches.begin)
        for path, blocks in files.items():
            if path in GOOD and blocks != GOOD[path] and (path, blocks) != ("x/f", begun):
                raise BrokenError(f"G1: unverified bytes in {path} ({where})")

    async def forget(self) -> None:
        for _ in range(6):
            await Step(self.span(15))
            for key in list(self.entries):
                if self.dice.random() < 0.5:
                    self.head_changes(key, None)
                    del self.entries[key]

    def head_changes(self, key: str, value: Any) -> None:
        """Note when who watches a head sees that somebody lives or moves; one that is forgotten changes too."""
        digest, _, what = key.partition("/")
        if what == "head":
            before = self.entries.get(key)
            if (value and value[:4]) != (before and before[:4]):
                self.lived[digest] = self.now
            if (value and (value[0], value[4])) != (before and (before[0], before[4])):
                self.moved[digest] = self.now

    @property
    def clocks_agree(self) -> bool:
        """Whether nobody's clock can yet take for old what somebody wrote here."""
        offsets = [container.offset for container in self.containers]
        return self.now * (1 + RATE) + max(offsets) - min(offsets) < Host.spare

    def has(self, digests: Sequence[str]) -> bool:
        """Whether all of them are committed, and right."""
        return all(self.server.get(path) == GOOD[path] for digest in digests for path in FILES[digest])


class Entries:
    """The Dict as one process sees it: a `_lease.Store`."""

    def __init__(self, container: Container, patience: Patience) -> None:
        self._world, self._container, self._patience = container.world, container, patience

    async def _reach(self) -> None:
        world = self._world
        mode = world.switches.dict
        await Step(world.span(1.0 if mode == "slow" else 0.05))
        if mode == "down" or (mode == "flaky" and world.dice.random() < 0.15):
            raise ConnectionError(mode)

    async def _answer(self) -> None:
        await Step(self._world.span(1.0 if self._world.switches.dict == "slow" else 0.05))
        if self._world.switches.dict == "flaky" and self._world.dice.random() < 0.15:
            raise ConnectionError("the answer is lost")

    async def get(self, key: str) -> object:
        await self._reach()
        value = self._world.entries.get(key)
        self._patience.hears(key, value)
        await self._answer()
        return value

    async def put(self, key: str, value: object, *, new: bool = False, hurried: bool = False) -> bool:
        await self._reach()
        made = not (new and key in self._world.entries)
        if not made:
            self._patience.loses(key)
        else:
            self._world.head_changes(key, value)
            self._world.entries[key] = value
            self._world.note(f"{key} = {value}", self._container)
            digest, _, what = key.partition("/")
            if new:
                self._container.holds.add(digest)
            elif what == "head" and value[2] != "held":
                self._container.holds.discard(digest)
        await self._answer()
        return made

    async def pop(self, key: str) -> object:
        await self._reach()
        value = self._world.entries.pop(key, None)
        await self._answer()
        return value


class Patience:
    """How long one `ensure` may wait for others, by the clock of the world.

    A waiter sees what a head says at the latest one round after it was written: a rest of at most POLL, and its own
    calls to the Dict and to the Volume. It counts from there, by its own clock, and judges by the first head that it
    asks for afterwards, another round later. So it waits no longer than

    - EXPIRY + 2 * (POLL + calls) after the last sign of life: a new number, state or beat;
    - WAIT + 2 * (POLL + calls) after the last progress: a new number, or more bytes;
    - LOOK + POLL + calls after its last look at the Volume, whatever the heads say.

    ``calls`` is what the longest of its own rounds took without the rest. The first two begin anew when it loses a
    claim (the winner's head is still to come), and all when it has installed something itself and when it wakes up.
    """

    def __init__(self, container: Container) -> None:
        self._container, self._world = container, container.world
        self._held: dict[str, bool] = {}  # whether another container installs it, as last heard
        self._since: dict[str, float] = {}  # for what it waits, and since when, or since it lost a claim of it
        self._calls = self._tries = 0.0
        self._rests = False
        self.restarts()

    def restarts(self) -> None:
        """It waits from now on: without a lock, or while it installs something itself, it does not wait for a lease."""
        self._since.clear()
        self._round = self._looked = self._world.now  # when the round began; when it looked last
        self._tries = 0.0

    def hears(self, key: str, head: Any) -> None:
        """Note whether what it reads tells of a holder whom nobody's clock could take for dead or stuck."""
        digest, world = key.partition("/")[0], self._world
        self._held[digest] = (
            bool(head)
            and head[2] == "held"
            and world.now - world.lived[digest] < EXPIRY / (1 + RATE)
            and world.now - world.moved[digest] < WAIT / (1 + RATE)
        )

    def is_left(self, digests: Sequence[str]) -> bool:
        """Whether no container installs any of them, as last heard, or as the Dict may have failed to say."""
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
        if world.now - max(self._looked, container.woke) > LOOK / (1 - RATE) + a_round:
            raise BrokenError(f"waits: no look at the Volume since {self._looked:.1f}")
        late = []
        for digest, began in self._since.items():
            for limit, signs in ((EXPIRY, world.lived), (WAIT, world.moved)):
                waited = world.now - max(began, container.woke, signs.get(digest, 0.0))
                if waited > limit / (1 - RATE) + 2 * a_round:
                    late.append(f"waits: {waited:.1f} s for {digest}, whose holder may be silent for {limit:g} s")
                    break
        # A reader waits while any container installs a part of what it lacks; any other one claims what is free.
        if late and (len(late) == len(self._since) or not container.reads_only):
            raise BrokenError(late[0])


class Container:
    """One mount of the Volume, and what its processes share."""

    def __init__(self, world: World, wanted: list[str]) -> None:
        self.world, self.wanted, self.number = world, wanted, len(world.containers)
        self.view, self.base = dict(world.server), dict(world.server)
        world.check(self.view, "mount")
        self.processes: list[Process] = []
        self.open: set[str] = set()
        self.lock: Process | None = None
        self.busy: object = None  # who commits or reloads
        self.reloading = self.unpushed = False
        self.alive = True
        self.returned: set[str] = set()  # digests
        self.holds: set[str] = set()  # digests whose lease was claimed here and not released
        self.touched: set[str] = set()  # paths written since they were committed
        self.app_reads = False
        self.sleeps_until = self.woke = 0.0
        self.fetched = 0
        dice, switches = world.dice, world.switches
        self.rate, self.uptime = 1 + dice.uniform(-RATE, RATE), dice.uniform(0, 1e6)
        self.offset = dice.uniform(-NEAR, NEAR)
        if switches.clocks == "far" and dice.random() < 0.4:
            self.offset += dice.choice((-2 * STALE, -2 * Host.spare, 2 * Host.spare, 2 * STALE))
        self.steps = 0
        self.reads_only = switches.readers and dice.random() < 0.4
        self.origin = switches.origin if dice.random() < 0.4 else "ok"
        self.dies_at = dice.randrange(1, 150) if self.number < switches.kills else -1
        self.sleeps_at = dice.randrange(1, 150) if switches.sleeps and dice.random() < 0.4 else -1

    @property
    def wall(self) -> float:
        """What its wall clock says."""
        return self.world.now * self.rate + self.offset

    @property
    def files(self) -> dict[str, Any]:
        """What a process sees: a Volume looks empty while it reloads."""
        return {} if self.reloading else self.view

    def disturb(self, process: Process) -> bool:
        """Die or fall asleep if it is time; whether the process moves no more."""
        self.steps += 1
        if self.steps == self.sleeps_at:
            self.sleeps_until = self.world.now + self.world.dice.choice((20, 60, 400))
            self.woke = self.sleeps_until + 1
            self.world.note(f"sleeps until {self.sleeps_until:.1f}", self)
            self.lose()
        if self.steps != self.dies_at:
            return False
        world, how = self.world, self.world.switches.kill
        world.deaths += 1
        world.note(f"dies: {how}", self)
        self.lose()
        self.holds.clear()
        if how == "process":  # the kernel frees its lock and closes its files; what it wrote stays
            for each in self.processes:
                each.dead |= each is process or each.owner is process
            process.killed = True
            self.open.clear()
            if self.lock is process:
                self.lock = None
            if self.reloading:
                self.finish_reload()  # the runtime does it, not the process
            self.busy = None
            self.start_main(world.span(1))
            return True
        for each in self.processes:
            each.killed |= not each.dead
            each.dead = True
        self.alive, self.busy, self.reloading = False, None, False
        self.open.clear()
        if how == "exit":
            world.start(self.push(), None, world.span(0.1))
        world.boot(world.span(3), self.wanted)
        return True

    def lose(self) -> None:
        """Who holds a lease here may be taken for dead: each checkpoint may be downloaded once more."""
        for digest in self.holds:
            self.world.lives[digest] += 1

    def start_main(self, after: float) -> None:
        process = self.world.start(_nothing(), self, after)
        process.coroutine.close()
        process.coroutine = self.main(process)
        process.is_main = True

    # The Volume.

    def write(self, path: str, value: Any) -> None:
        self.view[path] = value
        self.touched.add(path)
        if path.startswith(("x/", "y/", "receipts/")):
            self.world.check(self.view, f"write {path}")

    async def push(self) -> None:
        """What a commit does: last writer wins, file by file."""
        world, switches = self.world, self.world.switches
        if self.reads_only:
            return
        changed = sorted(self.changed())
        world.dice.shuffle(changed)
        taken = {path: self.view.get(path) for path in changed}
        await Step(world.span(1.0))
        for path in changed:
            value = taken[path]
            if path in self.open and switches.open_writers != "include":
                if switches.open_writers == "exclude" or path.startswith("journal"):
                    continue
                value = value and tuple(block if world.dice.random() < 0.5 else 0 for block in value)
            if switches.visibility == "file":
                await Step(world.span(0.3))
            for files in (world.server, self.base):
                if value is None:
                    files.pop(path, None)
                else:
                    files[path] = value
            if switches.visibility == "file":
                world.check(world.server, f"push of {path}")
        world.check(world.server, "push")

    def changed(self) -> set[str]:
        """What a commit takes."""
        changed = {path for path in {*self.view, *self.base} if self.view.get(path) != self.base.get(path)}
        return changed | {path for path in self.touched if path in self.view and self.world.switches.touched}

    def finish_reload(self) -> None:
        world = self.world
        mine = {path: self.view.get(path) for path in self.changed()}
        self.view, self.base = dict(world.server), dict(world.server)
        if world.switches.reload_over != "keep":
            self.touched.clear()
        if world.switches.reload_over == "keep":
            for path, value in mine.items():
                if value is None:
                    self.view.pop(path, None)
                else:
                    self.view[path] = value
        self.reloading = False
        world.check(self.view, "reload")
        # What is old may be pruned, also while it is healed; and so may what a clock that is far off takes for old.
        if world.switches.begin not in ("truncated", "gap") and world.clocks_agree:
            for path in (path for digest in self.returned for path in FILES[digest]):
                if self.view.get(path) != GOOD[path]:
                    raise BrokenError(f"young: {path} was returned, and vanished")

    async def _reload(self) -> None:
        world = self.world
        if self.open:
            raise BrokenError(f"G7: open at a reload: {self.open}")
        if self.app_reads or world.dice.random() < world.switches.reload_fails:
            await Step(world.span(0.1))
            raise VolumeCallError("there are open files")
        if world.switches.reload_over == "commit":
            await self.push()
        self.reloading = True
        await Step(world.span(0.3))
        self.finish_reload()

    async def _commit(self) -> None:
        world = self.world
        if self.open:
            raise BrokenError(f"G7: open at a commit: {self.open}")
        fails = world.dice.random() < world.switches.commit_fails and world.dice.choice(("before", "after"))
        if fails == "before":
            await Step(world.span(0.2))
            raise VolumeCallError("commit")
        await self.push()
        if fails == "after":
            raise VolumeCallError("commit, although it is durable")
        if not world.switches.skip_reload:
            await self._reload()

    async def call(self, operation: Callable[[], Awaitable[None]]) -> bool:
        """Do it alone in this container, with retries, as `VolumeCalls` does."""
        for delay in (0.5, 2.0, None):
            while self.busy is not None:
                await Step(0.1)
            self.busy = me = object()
            try:
                await operation()
            except VolumeCallError:
                if delay is None:
                    return False
            else:
                return True
            finally:
                if self.busy is me:
                    self.busy = None
            await Step(delay or 0.0)
        return False

    async def background(self) -> None:
        for _ in range(40):
            await Step(self.world.span(4))
            while self.busy is not None:
                await Step(0.1)
            self.busy = me = object()
            await self.push()
            if self.busy is me:
                self.busy = None

    async def app(self) -> None:
        """Have a file open now and then."""
        for _ in range(6):
            self.app_reads = True
            await Step(self.world.span(8))
            self.app_reads = False
            await Step(self.world.span(8))

    # What its processes do.

    async def main(self, process: Process) -> None:
        world, dice = self.world, self.world.dice
        if world.switches.prune and dice.random() < 0.5:
            await self.locked(process, lambda: world.host(self, [], process).prune())
        process.ends.append(await self.ensure(process, self.wanted))
        await Step(world.span(5))
        if world.switches.prune and dice.random() < 0.3:
            await self.locked(process, lambda: world.host(self, [], process).prune())
        if dice.random() < 0.3:
            process.ends.append(await self.ensure(process, ["x", "y"]))
        await Step(world.span(5))
        if all(each.dead or each is process for each in self.processes if each.is_main):
            for each in self.processes:
                each.dead |= each is not process
            self.busy = None
            if self.reloading:
                self.finish_reload()
            await self.push()

    async def locked(self, process: Process, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        while self.lock is not None:
            await Step(0.2)
        self.lock = process
        done = await work()
        self.lock = None
        return done

    async def ensure(self, process: Process, wanted: list[str]) -> str:
        """Return how it ended: RIGHT, or why the world did not let it have its bytes; nothing if the world did."""
        world = self.world
        host = world.host(self, wanted, process)
        if not await host.missing():
            return RIGHT
        # What is there before it begins it must find, unless no reload shows it, or somebody prunes.
        hidden = world.switches.reload_fails or world.switches.opens or world.switches.prune
        must_find = world.has(wanted) and not hidden

        async def cold() -> str:
            me = f"{self.number}.{world._count}.{world.dice.random()}"
            host.patience.restarts()
            entries = Entries(self, host.patience)
            lease = world.lease(entries, host, me, wait=WAIT, dice=world.dice, bytes_done=lambda: self.fetched)
            try:
                if await reconcile(host, lease, host):
                    return ""  # that what was committed does not stay happens in no position of a switch
            except DownloadError:
                return "its origin failed" if host.was_refused else ""
            except NotCachedError:
                return "no container installs it" if self.reads_only and not must_find and host.was_left else ""
            finally:
                self.holds -= set(wanted)
            for digest in wanted:
                for path in FILES[digest]:
                    if self.files.get(path) != GOOD[path]:
                        raise BrokenError(f"G1: {path} was returned and is not there")
            self.returned |= set(wanted)
            return RIGHT

        end = await self.locked(process, cold)
        world.note(end, self)
        return end


async def _nothing() -> None:
    pass


@dataclass
class Host:
    """One miss on the model: the engine's `Host` and `Clock`."""

    container: Container
    wanted: list[str]
    process: Process
    changed: list[str] = field(default_factory=list)
    lacking: dict[str, list[str]] = field(default_factory=dict)
    published: set[str] = field(default_factory=set)
    was_refused: bool = False  # by its origin
    was_left: bool = False  # by every container that might install what is missing

    def __post_init__(self) -> None:
        self.patience = Patience(self.container)

    @property
    def world(self) -> World:
        return self.container.world

    def now(self) -> float:
        return (self.world.now + self.container.uptime) * self.container.rate

    async def sleep(self, seconds: float) -> None:
        await Step(seconds)
        self.patience.slept(seconds)

    def state(self, digest: str) -> str:
        files = self.container.files
        if any(len(files.get(path, ())) != len(GOOD[path]) for path in FILES[digest]):
            return "missing"
        return "ready" if receipt(digest) in files else "unverified"

    async def missing(self) -> list[str]:
        missing = []
        for digest in self.wanted:
            await Step(self.world.span(0.01))
            state = self.state(digest)
            if state == "ready" or (state == "unverified" and digest in self.published):
                if any(self.container.files[path] != GOOD[path] for path in FILES[digest]):
                    raise BrokenError(f"G1: a look calls wrong bytes of {digest} {state}")
            else:
                missing.append(digest)
        return missing

    async def is_dirty(self) -> bool:
        return self.container.unpushed

    async def reload(self) -> None:
        await self.container.call(self.container._reload)
        self.patience.looks()

    async def commit(self) -> bool:
        committed = await self.container.call(self.container._commit)
        self.patience.looks()
        if not committed:
            return False
        self.container.unpushed = False
        return True

    async def can_write(self) -> bool:
        return not self.container.reads_only

    async def prepare(self, digests: Sequence[str]) -> bool:
        files = self.container.files
        self.changed, self.lacking = [], {}
        for digest in digests:
            self.published.discard(digest)
            self.lacking[digest] = []
            for path in FILES[digest]:
                right = len(files.get(path, ())) == len(GOOD[path])
                if right and receipt(digest) not in files:
                    await Step(self.world.span(0.5))  # hashed once
                    right = self.container.files.get(path) == GOOD[path]
                if not right:
                    self.lacking[digest].append(path)
            if self.lacking[digest] or receipt(digest) not in self.container.files:
                self.changed.append(digest)
        self.container.unpushed |= bool(self.changed)
        healing = [digest for digest in self.changed if receipt(digest) in self.container.view]
        for digest in healing:
            self.container.view.pop(receipt(digest))
        return bool(healing)

    async def install(self) -> None:
        self.container.unpushed |= bool(self.changed)
        for digest in self.changed:
            begun = False
            for path in self.lacking[digest]:
                begun = await self.fetch(digest, path, begun)
            self.published.add(digest)

    async def fetch(self, digest: str, path: str, begun: bool) -> bool:
        """Bring a file by way of a partial: take what others journaled, fetch the rest, publish by rename."""
        world, container = self.world, self.container
        name = f"{path}.{container.number}.{self.process.number}"
        partial, journal = f"partial/{name}", f"journal/{name}"
        data: list[Any] = [0] * len(GOOD[path])
        for other in [p for p in container.files if p.startswith(f"partial/{path}.")]:
            theirs, (_, *noted) = container.files[other], container.files.get(f"journal{other[7:]}", (0.0,))
            for number in noted:
                if number < len(theirs) and theirs[number] == GOOD[path][number]:  # the journal has its checksum
                    data[number] = theirs[number]
            if other.startswith(f"partial/{path}.{container.number}.") and other != partial:
                container.view.pop(other, None)  # a dead writer of this container: only one holds the lock
                container.view.pop(f"journal{other[7:]}", None)
        await Step(world.span(0.1))
        container.open |= {partial, journal}
        try:
            container.write(partial, tuple(data))
            container.write(journal, (container.wall, *(number for number, block in enumerate(data) if block)))
            for number, block in enumerate(GOOD[path]):
                if data[number]:
                    continue
                if not begun:
                    begun = True
                    world.downloads[digest] += 1
                    world.note(f"downloads {digest}", container)
                await Step(world.span(world.switches.block))
                if container.origin == "stalls":
                    container.origin = "ok"
                    await Step(STALL)
                if container.origin == "down" or world.dice.random() < world.switches.origin_fails:
                    world.failures += 1
                    self.was_refused = True
                    raise DownloadError("no mirror", hint="", checkpoint=digest, file=path, attempts=())
                data[number] = block
                world.fetched += 1
                container.fetched += 1
                container.write(partial, tuple(data))
                await Step(world.span(0.01))
                container.write(journal, (*container.view.get(journal, (container.wall,)), number))
        finally:
            container.open -= {partial, journal}
        await self.publish(path, partial, journal)
        return begun

    async def publish(self, path: str, partial: str, journal: str) -> None:
        container = self.container
        await Step(self.world.span(0.05))
        if partial not in container.files:
            raise VanishedError(partial)
        container.write(path, container.view[partial])
        container.view.pop(partial)
        container.view.pop(journal, None)

    async def has_published(self) -> bool:
        return any(digest in self.published for digest in self.changed)

    async def write_receipts(self) -> None:
        self.container.unpushed = True
        for digest in self.changed:
            if digest in self.published:
                if self.state(digest) == "missing":
                    raise VanishedError(digest)
                self.container.write(receipt(digest), self.container.wall)
                await Step(self.world.span(0.02))
        self.sweep()

    def sweep(self) -> bool:
        """Remove partials that were opened more than a day ago by the clock of who sweeps; whether there were any."""
        view = self.container.view
        stale = [path for path in view if path.startswith("journal/") and self.container.wall - view[path][0] > STALE]
        for path in stale:
            view.pop(path)
            view.pop(f"partial{path[7:]}", None)
        self.world.swept += len(stale)
        return bool(stale)

    async def on_lost(self, what: str) -> None:
        self.world.note(f"vanished: {what}", self.container)

    async def serve_read_only(self, digests: Sequence[str]) -> None:
        self.was_left = self.patience.is_left(digests)
        if any(self.state(digest) == "missing" for digest in digests):
            raise NotCachedError("no container installs it", hint="")
        for digest in digests:  # complete, without a receipt: hashed and returned, and nothing is written
            for path in FILES[digest]:
                if self.container.files[path] != GOOD[path]:
                    raise NotCachedError("wrong bytes, and no way to heal them", hint="")

    async def waiting(self, lease: Lease, digests: Sequence[str]) -> None:
        self.patience.rests(digests)

    async def with_heartbeat(
        self, beat: Callable[..., Coroutine[Any, Any, None]], work: Coroutine[Any, Any, Any]
    ) -> Any:
        over = False

        async def pause(seconds: float) -> bool:
            until = self.world.now + seconds * self.world.dice.uniform(0.8, 1.2)
            while not over and self.world.now < until:
                await Step(0.5)
            return not over

        beats = self.world.start(beat(pause), self.container, 0.0)
        beats.owner = self.process
        try:
            return await work
        finally:
            over = True
            while not beats.dead:
                await Step(0.05)
            self.patience.restarts()

    # Prune: every checkpoint here is declared by somebody, but a container with an older manifest does not know "x".

    spare = 3600.0

    async def prune(self) -> None:
        container, world = self.container, self.world
        await self.refresh()
        container.unpushed |= self.sweep()
        for digest in ["old", *world.dice.sample(sorted(CHECKPOINTS), 1)]:
            verified = container.files.get(receipt(digest))
            if verified is None or container.wall - verified < self.spare:
                continue
            world.pruned_young += verified > OLD / 2
            container.unpushed = True
            container.view.pop(receipt(digest))
            if not await self.commit():
                return
            for path in [p for p in container.files if p.startswith(f"{digest}/")]:
                container.view.pop(path, None)
                await Step(world.span(0.1))
            container.unpushed = True
            await self.commit()

    async def refresh(self) -> None:
        if not await self.is_dirty() or await self.commit():
            await self.reload()


def simulate(seed: int, switches: Switches | None = None, host: type[Host] | None = None, lease: Any = None) -> World:
    """Run one seed to its end and check what must hold.

    Raises:
        BrokenError: An invariant does not hold.
    """
    world = World(seed, switches, host)
    world.lease = lease or Lease
    dice, begin = world.dice, world.switches.begin
    if begin == "truncated":
        world.server |= {receipt("x"): OLD, "x/f": ("short",)}
    elif begin == "unreceipted":
        world.server["x/f"] = GOOD["x/f"]
    elif begin == "stranger":
        world.server["x/f"] = STRANGER
    elif begin == "gap":
        world.server |= {receipt("y"): OLD, "y/a": GOOD["y/a"]}
    elif begin == "old":
        world.server |= {receipt("old"): OLD, "old/f": ("old",)}
    for _ in range(world.switches.containers):
        world.boot(dice.random() * dice.choice((0, 1, 30)), dice.choice((["x"], ["x", "y"], ["y", "x"])))
    if world.switches.dict == "forget":
        world.start(world.forget(), None, 3.0)
    try:
        world.run()
        _progress(world)
        _judge(world)
    except BrokenError as error:
        error.world = world
        raise
    finally:
        for _, _, _, process in world._queue:
            process.bury()
    return world


def _progress(world: World) -> None:
    """Each survivor has its bytes; else its own origin failed, or it may not write and no container installed them."""
    for container in world.containers:
        mains = [process for process in container.processes if process.is_main and not process.killed]
        if any("" in process.ends or not process.ends for process in mains):
            raise BrokenError(f"progress: container {container.number} could have had its bytes, and has not")
        world.finished += bool(mains) and all(process.ends[0] == RIGHT for process in mains)


def _judge(world: World) -> None:
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
