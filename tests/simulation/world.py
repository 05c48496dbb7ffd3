"""The model: a Volume, a Dict, an origin, containers, and the scheduler that lets one of them move at a time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from content import CHECKPOINTS, FILES, GOOD, NEAR, RATE, RIGHT, SHORT, SPARE, STRANGER, WAIT, receipt
from faults import Switches
from invariants import BrokenError, Patience
from weightcache import DownloadError, NotCachedError
from weightcache._coordination.lease import Lease
from weightcache._engine.miss_protocol import reconcile
from weightcache._store.partial_directory import STALE

if TYPE_CHECKING:
    from protocol import Host

T = TypeVar("T")


class VolumeCallError(Exception):
    """A commit or reload raised."""


class KilledError(BaseException):
    """Ends a coroutine that is killed: its ``finally`` may run, but no longer changes the model."""


class Step:
    """An await at which anybody else may move."""

    killing = False  # whether a killed coroutine is being taken down: then nothing can be awaited

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        if Step.killing:
            raise KilledError
        yield self.seconds


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

    def __init__(self, seed: int, switches: Switches | None, host: type[Host]) -> None:
        self.seed, self.dice = seed, random.Random(seed)
        self.switches = switches or Switches.throw(self.dice)
        self.host, self.lease = host, Lease
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
        """A hit on ``files`` must be right; and no version directory may hold anything unverified."""
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
        """Note when a waiting process sees in a head that another lives or moves; one that is forgotten changes too."""
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
        return self.now * (1 + RATE) + max(offsets) - min(offsets) < SPARE

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

    async def put(self, key: str, value: object, *, new: bool = False, timeout: float | None = None) -> bool:
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


class Container:
    """One mount of the Volume, and what its processes share."""

    def __init__(self, world: World, wanted: list[str]) -> None:
        self.world, self.wanted, self.number = world, wanted, len(world.containers)
        self.view, self.base = dict(world.server), dict(world.server)
        world.check(self.view, "mount")
        self.processes: list[Process] = []
        self.open: set[str] = set()
        self.lock: Process | None = None
        self.busy: object = None  # the process that commits or reloads
        self.reloading = self.unpushed = False
        self.alive = True
        self.returned: set[str] = set()  # digests
        self.holds: set[str] = set()  # digests with a lease that was claimed here and not released
        self.touched: set[str] = set()  # paths written since they were committed
        self.app_reads = False
        self.sleeps_until = self.woke = 0.0
        self.fetched = 0
        dice, switches = world.dice, world.switches
        self.rate, self.uptime = 1 + dice.uniform(-RATE, RATE), dice.uniform(0, 1e6)
        self.offset = dice.uniform(-NEAR, NEAR)
        if switches.clocks == "far" and dice.random() < 0.4:
            self.offset += dice.choice((-2 * STALE, -2 * SPARE, 2 * SPARE, 2 * STALE))
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
        """A holder of a lease here may be taken for dead: each checkpoint may be downloaded once more."""
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
        """Do it alone in this container, with retries, as `VolumeSession` does."""
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
        """Return how it ended: RIGHT, or which fault of the model kept its bytes away; nothing if no fault did."""
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
            lease = world.lease(entries, host, me, wait=WAIT, rng=world.dice, bytes_done=lambda: self.fetched)
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
