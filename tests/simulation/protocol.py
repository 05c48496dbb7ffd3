"""One miss of `ensure` on the model: what the shipped protocol asks of its host."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from content import CHECKPOINTS, FILES, GOOD, OLD, SPARE, STALL, receipt
from invariants import BrokenError, Patience
from weightcache import DownloadError, NotCachedError
from weightcache._coordination.lease import Lease
from weightcache._store.partial_directory import STALE
from weightcache._store.partial_file import VanishedError
from world import Container, Process, Step, World


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
    was_left: bool = False  # by all that might download what is missing

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
                    raise BrokenError(f"G1: an inspection calls wrong bytes of {digest} {state}")
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
        """Download a file into a partial: take what others journaled, fetch the rest, publish by rename."""
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
        """Remove partials that were opened more than a day ago by this container's clock; return whether any were."""
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

    spare = SPARE

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
