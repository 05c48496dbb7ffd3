"""A deterministic simulation of several writers on one root: the shipped storage code, stopped at every system call.

`simulation.py` has a model of a root; this has the real one, on a real file system. Each writer is a thread that runs
the shipped protocol, and only one of them moves at a time: at every call that changes the root the scheduler decides,
by the seed, whose turn is next. A seed chooses what each mirror delivers, who is killed at which call, how much of a
dead writer's journal and data is lost, and who takes a living writer for dead, as two hosts with one identity would.
There is no lock: it only saves bandwidth.

What must hold after every call: no file outside ``.weightcache/`` has other bytes than the declared ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from weightcache._coordination.volume import VolumeSession
from weightcache._engine import execute_plan, miss_protocol
from weightcache._engine.ensure_options import EnsureOptions
from weightcache._engine.run_miss import LocalHost
from weightcache._runtime.writer_identity import Writer
from weightcache._store import file_operations as store_files
from weightcache._store import journal as store_journal
from weightcache._store import partial_file
from weightcache._store.layout import Layout
from weightcache.errors import DownloadError, IntegrityError, StorageError, WeightCacheError
from weightcache.manifest import Manifest

BLOCK = 64  # bytes; 1 MiB in the library
CALLS = ("link", "mkdir", "open", "pwrite", "rename", "replace", "rmdir", "unlink", "write", "ftruncate", "fsync")
LARGE = random.Random(1).randbytes(7 * BLOCK + 5)
SMALL = b"small"
OTHER = {LARGE: random.Random(2).randbytes(len(LARGE)), SMALL: b"other"}
FILES = {hashlib.sha256(data).hexdigest(): data for data in (LARGE, SMALL)}
SHA_OF = {data: sha for sha, data in FILES.items()}


def _manifest(*, sized: bool) -> Manifest:
    def pin(data: bytes) -> dict[str, Any]:
        return {"sha256": SHA_OF[data], **({"size": len(data)} if sized else {})}

    one = {"urls": ["https://weights.example/w"], "file": "w", **pin(LARGE)}
    both = {"urls": ["https://weights.example"], "files": {"w": pin(LARGE), "s": pin(SMALL)}}
    return Manifest.load({"checkpoints": {"a": one, "b": one, "c": both}})


MANIFESTS = {sized: _manifest(sized=sized) for sized in (False, True)}


class BrokenRootError(AssertionError):
    """An invariant does not hold."""


class KilledError(BaseException):
    """What a killed writer meets at its next call: it changes nothing any more."""


@dataclass(eq=False)
class Actor:
    """One writer: a thread that moves only when it is told."""

    number: int
    container: str
    mirror: str  # "good", "other" (bytes of the right length), "short", "breaks"
    names: list[str]
    dies_at: int = -1  # the number of the call that it does not survive
    only_names: bool = False  # whether only calls that change the name of a file are counted
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    calls: int = 0
    killed: bool = False
    over: bool = False
    error: BaseException | None = None
    nonces: set[str] = field(default_factory=set)  # of its writers at work
    thread: threading.Thread | None = None


class _Silent:
    """A `Holder` and a progress that nobody reads."""

    total = 0
    bytes_done = 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


class RootWorld:
    """The scheduler, and what the writers share."""

    def __init__(self, seed: int, root: str, mistakes: bool | None = None) -> None:
        self.seed, self.dice, self.root = seed, random.Random(seed), root
        choice = self.dice.choice
        self.manifest = MANIFESTS[choice([False, True])]
        thrown = choice([False, True])
        self.mistakes = thrown if mistakes is None else mistakes  # whether a living writer may be taken for dead
        self.leases = choice([True, True, False])  # whether the file system has them
        self.links = choice([True, True, False])
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.back = threading.Semaphore(0)
        self.real = {name: getattr(os, name) for name in CALLS}
        self.trace: list[str] = []
        self.deaths = self.takeovers = 0
        for _ in range(choice([1, 2, 2, 3])):
            names = choice([["a"], ["b"], ["b", "a"], ["a", "b"], ["c"], ["c", "a"], ["a", "b", "c"]])
            mirrors = (
                ["good", "good", "other"] if self.mistakes else ["good", "good", "other", "other", "short", "breaks"]
            )
            container = "here" if self.mistakes else choice(["here", "here", "there"])
            dies_at = choice([-1, self.dice.randrange(1, 90), self.dice.randrange(1, 9)])
            self.add(container, choice(mirrors), names, dies_at, only_names=choice([False, True]))

    def add(
        self, container: str, mirror: str, names: list[str], dies_at: int = -1, *, only_names: bool = False
    ) -> Actor:
        actor = Actor(len(self.actors), container, mirror, names, dies_at, only_names)
        self.actors.append(actor)
        return actor

    # What is patched.

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        actor = self.current
        if actor is None or threading.current_thread() is not actor.thread:
            return self.real[name](*arguments, **options)
        if isinstance(arguments[0], str) and not arguments[0].startswith(self.root):
            return self.real[name](*arguments, **options)  # a note on the container's own disk
        if actor.killed:
            raise KilledError
        actor.calls += name in ("link", "rename", "replace") or not actor.only_names
        if actor.calls == actor.dies_at:
            actor.killed = True
            raise KilledError
        if name == "link" and not self.links:
            raise PermissionError(1, "no hard links here")
        result = self.real[name](*arguments, **options)
        self.trace.append(f"{actor.number} {name} {arguments[0] if isinstance(arguments[0], str) else ''}")
        self.back.release()
        actor.turn.acquire()
        if actor.killed:
            raise KilledError
        return result

    def new_writer(self, root: str) -> Writer:
        actor = self.current
        assert actor is not None
        container = hashlib.sha256(actor.container.encode()).hexdigest()[:12]
        return Writer(container, 1000 + actor.number, 1, f"{self.dice.randrange(16**8):08x}")

    def is_here(self, writer: Writer) -> bool:
        assert self.current is not None
        return writer.container == hashlib.sha256(self.current.container.encode()).hexdigest()[:12]

    def is_dead_here(self, writer: Writer) -> bool:
        if not self.is_here(writer):
            return False
        owner = self.actors[writer.pid - 1000]
        if owner is self.current:
            return writer.nonce not in owner.nonces
        return owner.over or self.mistakes

    def lease(self, descriptor: int, command: int, argument: int = 0) -> int:
        if not self.leases:
            raise OSError(22, "Invalid argument")
        return self.real_fcntl(descriptor, command, argument)

    # What a writer does.

    def download(self, jobs: Any, *, on_verified: Callable[[Any], None], **_: Any) -> None:
        """Stand in for the download: the mirror's bytes, block by block, into the shipped partial."""
        actor = self.current
        assert actor is not None
        for job in jobs:
            job.partial.open()
            for again in (False, True):
                digest, size, mixed = self._deliver(actor, job, fresh=again)
                if digest == job.file.sha256:
                    break
                job.partial.reset()
                if again or not mixed:
                    wrong = {"expected": job.file.sha256, "actual": digest, "url": "", "attempts": ()}
                    raise IntegrityError("wrong bytes", hint="", checkpoint="", file="", **wrong)
            job.partial.seal(size)
            on_verified(job)

    def _deliver(self, actor: Actor, job: Any, *, fresh: bool) -> tuple[str, int, bool]:
        good = FILES[job.file.sha256]
        sent = {"other": OTHER[good], "short": good[: len(good) // 2]}.get(actor.mirror, good)
        there = {} if fresh else job.partial.present()
        hashed, size, mixed = hashlib.sha256(), 0, False
        for number in range(-(-len(sent) // BLOCK)):
            data = job.partial.read_block(number) if number in there else None
            mixed |= data is not None
            if data is None:
                if actor.mirror == "breaks" and number == 5:
                    raise DownloadError("it broke off", hint="", checkpoint="", file="", attempts=())
                data = sent[number * BLOCK : (number + 1) * BLOCK]
                job.partial.write(number, memoryview(data))
            hashed.update(data)
            size += len(data)
        return hashed.hexdigest(), size, mixed

    def ensure(self, actor: Actor) -> None:
        layout = Layout(self.root)
        checkpoints = self.manifest.select(actor.names)
        options = EnsureOptions(progress=False)
        host = LocalHost(layout, checkpoints, options, VolumeSession(self.root, None), _Silent())  # type: ignore[arg-type]
        if miss_protocol.run_sync(miss_protocol.reconcile(host, None, host)):
            raise StorageError("vanished", hint="", path=self.root)

    def run_actor(self, actor: Actor) -> None:
        actor.turn.acquire()
        try:
            self.ensure(actor)
        except BaseException as error:
            actor.error = error
        actor.over = True
        self.back.release()

    # The scheduler.

    def run(self) -> None:
        for actor in self.actors:
            if actor.thread is None:
                actor.thread = threading.Thread(target=self.run_actor, args=(actor,), daemon=True)
                actor.thread.start()
        while moving := [actor for actor in self.actors if not actor.over]:
            actor = self.dice.choice(moving)
            for _ in range(self.dice.choice((1, 3, 20, 60))):
                self.current = actor
                actor.turn.release()
                self.back.acquire()
                self.current = None
                self.check()
                if actor.over:
                    self.bury(actor)
                    break

    def bury(self, actor: Actor) -> None:
        """Do what a power cut does: lose the end of what a dead writer wrote. Its files were closed as it unwound."""
        assert actor.thread is not None
        actor.thread.join()
        if not actor.killed:
            self.judge(actor)
            return
        self.deaths += 1
        for path in sorted(Path(self.root, ".weightcache/partial").glob("*")):
            if f"-{1000 + actor.number}-" in path.name and path.is_dir() and self.dice.random() < 0.5:
                self.tear(path)

    def tear(self, partial: Path) -> None:
        for path in sorted(partial.iterdir()):
            data = path.read_bytes()
            if path.stat().st_nlink > 1 or not data or self.dice.random() < 0.5:
                continue  # a copy that is still to be renamed: it was durable before
            keep = self.dice.randrange(len(data))
            if path.name != "journal":
                path.write_bytes(data[:keep] + bytes(len(data) - keep))
            else:
                path.write_bytes(data[:keep] + self.dice.choice((b"", b"\nopened\n", b"wiped\n", b"\xff 1 2\n")))

    def judge(self, actor: Actor) -> None:
        error = actor.error
        if error is not None and not isinstance(error, WeightCacheError):
            raise BrokenRootError(f"G5: {type(error).__name__}: {error}") from error
        expected = {"good": (), "other": (IntegrityError,), "short": (IntegrityError,), "breaks": (DownloadError,)}
        lost = isinstance(error, StorageError) and self.mistakes and len(self.actors) > 1
        if error is not None and not lost and not isinstance(error, expected[actor.mirror]):
            raise BrokenRootError(f"progress: {type(error).__name__}: {error}") from error

    def check(self) -> None:
        for folder, folders, names in os.walk(self.root):
            if folder == self.root and ".weightcache" in folders:
                folders.remove(".weightcache")
            for name in names:
                path = f"{folder}/{name}"
                data = Path(path).read_bytes()
                if data != {"w": LARGE, "s": SMALL}[name]:
                    raise BrokenRootError(f"G1: {path[len(self.root) :]} has {len(data)} bytes that nobody declared")

    def finish(self) -> None:
        """Afterwards a healthy writer has everything, and leaves nothing behind but what others may still use."""
        self.mistakes = False
        last = self.add("here", "good", ["a", "b", "c"])
        self.run()
        if last.error is not None:
            raise BrokenRootError(f"G4: a fresh writer fails: {last.error}") from last.error
        for checkpoint in self.manifest:
            for file in checkpoint.files:
                path = Layout(self.root).file(checkpoint, file)
                if not os.path.isfile(path):
                    raise BrokenRootError(f"G4: {path} is missing")


@contextlib.contextmanager
def _patched(world: RootWorld) -> Iterator[None]:
    with contextlib.ExitStack() as stack:

        def patch(target: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(target, name, value))

        world.real_fcntl = partial_file.fcntl.fcntl  # type: ignore[attr-defined]
        for module in (partial_file, store_journal):
            patch(module, "BLOCK", BLOCK)
        for name in CALLS:
            patch(os, name, lambda *a, _name=name, **o: world.call(_name, *a, **o))
        patch(partial_file.fcntl, "fcntl", world.lease)
        patch(execute_plan, "download", world.download)
        patch(execute_plan, "make_progress", lambda *_, **__: _Silent())
        patch(store_files, "parallel_map", lambda work, items, check: [work(item, check) for item in items])
        patch(Writer, "new", world.new_writer)
        patch(Writer, "is_here", lambda writer, root: world.is_here(writer))
        patch(Writer, "is_dead_here", lambda writer, root: world.is_dead_here(writer))
        patch(Writer, "__enter__", lambda writer: (world.current.nonces.add(writer.nonce), writer)[1])
        patch(Writer, "__exit__", lambda writer, *_: world.current.nonces.discard(writer.nonce))
        yield


def simulate_root(seed: int, mistakes: bool | None = None) -> RootWorld:
    """Run one seed to its end and check what must hold; with ``mistakes``, that switch is not the seed's.

    Raises:
        BrokenRootError: An invariant does not hold.
    """
    tempfile.gettempdir()  # now: it tries the directory out, under a lock that another writer would wait for
    memory = "/dev/shm"
    folder = tempfile.mkdtemp(prefix="weightcache-sim-", dir=memory if os.access(memory, os.W_OK) else None)
    world = RootWorld(seed, f"{folder}/root", mistakes)
    try:
        with _patched(world):
            try:
                world.run()
                world.finish()
            finally:
                for actor in world.actors:  # none may go on with another seed's files
                    if actor.thread is not None and not actor.over:
                        actor.killed = True
                        world.current = actor
                        actor.turn.release()
                        actor.thread.join()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return world
