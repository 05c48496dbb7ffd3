"""The scheduler under a simulated server and clock: any order of events ends, with every byte where it belongs.

Blocks are small here, and the connections are generators that do, step by step, what `workers.Connection` does;
hypothesis decides which one moves next. The bytes, the hashes and the partial's books are real.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support import blob, one
from weightcache import DownloadError, IntegrityError, Manifest
from weightcache._runtime.tuning_constants import Settings
from weightcache._transfer import file_transfer, hedge, transfer_types, work_stealing
from weightcache._transfer import scheduler as transfer_scheduler
from weightcache._transfer.file_transfer import FileTask, FileTransfer
from weightcache._transfer.mirror_stream import RangeError, SourceError, TransientError, WrongBytesError
from weightcache._transfer.scheduler import Scheduler
from weightcache._transfer.transfer_types import Block, Job

BLOCK, PART, LIMIT = 16, 64, 6
EXAMPLES = settings().max_examples  # 100, unless `make mutants` asks for fewer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transfer_types, hedge, work_stealing, transfer_scheduler, file_transfer):
        monkeypatch.setattr(module, "BLOCK", BLOCK)
    for module in (transfer_types, transfer_scheduler, file_transfer):
        monkeypatch.setattr(module, "PART", PART)


class Disk:
    """Stands in for a `PartialFile`: the same books, in memory."""

    def __init__(self, size: int, there: dict[int, bytes], lost: set[int]) -> None:
        self.data = bytearray(size)
        self.blocks = dict(there)
        self.lost = lost  # journaled, but not there
        for number, data in there.items():
            self.data[number * BLOCK : number * BLOCK + len(data)] = data

    def open(self) -> None:
        pass

    def present(self) -> dict[int, int]:
        return {number: len(data) for number, data in self.blocks.items()}

    def read_block(self, number: int) -> bytes | None:
        data = self.blocks.pop(number, None)
        if number in self.lost or data is None:
            return None
        self.blocks[number] = data
        return data

    def write(self, number: int, data: bytes) -> None:
        self.data[number * BLOCK : number * BLOCK + len(data)] = data
        self.blocks[number] = data

    def reset(self) -> None:
        self.blocks.clear()


@dataclass
class Busy:
    """What a server counts: connections that it serves, and those that it refused."""

    now: int = 0
    refused: int = 0


@dataclass
class Server:
    """One mirror: what it serves, and the odds of what goes wrong with a request."""

    body: bytes
    ranges: bool = True
    etag: str | None = '"a"'
    says_length: bool = True
    gone: bool = False
    flaky: float = 0.0
    stalls: float = 0.0
    refuses: float = 0.0
    trickles: float = 0.0
    bears: int = (
        0  # connections at once, or 0 for any number; more are refused as by a server that knows no better word
    )
    counter: Busy = field(default_factory=Busy)
    dice: random.Random = field(default_factory=random.Random)

    def open(self, start: int, end: int | None, size: int | None) -> tuple[Any, int]:
        """Answer, and say where the answer breaks off."""
        if self.gone:
            raise SourceError("HTTP 404")
        if self.bears and self.counter.now >= self.bears:
            self.counter.refused += 1
            raise SourceError("HTTP 403")
        if self.dice.random() < self.flaky:
            raise TransientError("HTTP 503", throttled=self.dice.random() < 0.5)
        total = len(self.body)
        if size not in (None, total):
            raise WrongBytesError(f"{size} bytes", f"{total} bytes")
        asked = start > 0 or end is not None
        if asked and (start >= total or self.dice.random() < self.refuses):
            raise RangeError("HTTP 416")
        if asked and self.ranges:
            answer = SimpleNamespace(offset=start, end=total if end is None else end, total=total)
        else:
            answer = SimpleNamespace(offset=0, end=total, total=total)
        if not self.says_length:
            answer.total = answer.end = None
        answer.validator, answer.resumable = self.etag, True
        stop = total if end is None or not self.ranges else end
        return answer, stop


class World:
    """All that happens, one step at a time."""

    def __init__(self, jobs: list[Job], servers: dict[str, Server], dice: random.Random, limit: int) -> None:
        waits = Settings(tries=4, backoff=1.0, backoff_max=4.0, refusal_timeout=5.0)
        limits = replace(waits, connections=limit, open_files=3, hedge_bytes=4 * BLOCK)
        self.scheduler = Scheduler(jobs, limits, 20.0, dice.uniform)
        self.servers, self.dice, self.now, self.most = servers, dice, 0.0, 1
        self.lanes: list[Iterator[None]] = []
        self.whole = set[FileTask]()  # those that asked for a part and read the whole file

    def connection(self) -> Iterator[None]:
        scheduler = self.scheduler
        while not scheduler.is_done and not scheduler.error:
            task = scheduler.assign(self.now)
            if task is None:
                yield
                continue
            try:
                yield from self.kept(task) if task.segment.on_disk else self.fetch(task)
            except SourceError as error:
                until = self.now + scheduler.on_failure(task, error, self.now)
                while self.now < until:
                    yield
                scheduler.resume(task)
            scheduler.release(task, self.now)
            yield

    def next_block(self, task: FileTask, ends: int | None) -> Iterator[None]:
        task.on_wait()
        if task.segment.start == task.segment.end and (task.segment.start == ends or not self.scheduler.extend(task)):
            return False
        while not task.revoked:
            if self.scheduler.has_room(task):
                task.on_room(self.now)
                return True
            if self.scheduler.is_needed_elsewhere(task):
                return False
            yield
        return False

    def fetch(self, task: FileTask) -> Iterator[None]:
        transfer, segment = task.transfer, task.segment
        server = self.servers[task.mirror.url]
        start, end = segment.position, None if segment.end == transfer.length else segment.end
        task.on_requested()
        yield
        body, stop = server.open(start, end, transfer.job.file.size)
        server.counter.now += 1
        if body.offset != start:
            self.whole.add(task)
        try:
            yield from self.read(task, server, body, stop)
        finally:
            server.counter.now -= 1

    def read(self, task: FileTask, server: Server, body: Any, stop: int) -> Iterator[None]:
        if not self.scheduler.on_response(task, body, self.now):
            return
        transfer, at = task.transfer, body.offset
        trickles = bool(server.trickles) and self.dice.random() < server.trickles
        stalled_at = at + self.dice.randrange(PART) if self.dice.random() < server.stalls else None
        while (yield from self.next_block(task, body.end)):
            block = self.scheduler.begin_block(task)
            segment = task.segment
            size = BLOCK if segment.end is None else min(BLOCK, segment.end - block.start)
            while block.filled < size:
                if stalled_at is not None and at >= stalled_at:
                    until = self.now + 30
                    while self.now < until and not task.revoked:
                        yield
                    if task.revoked:
                        return
                    raise TransientError("stalled")
                until = self.now + 1 if trickles else self.now
                yield
                while self.now < until and not task.revoked:
                    yield
                if task.revoked:
                    return
                count = min(1 if trickles else self.dice.randint(1, BLOCK), size - block.filled, stop - at)
                if not count and segment.end is not None:
                    raise TransientError("ended")
                if not count:
                    transfer.on_end_of_stream(task)
                    break
                assert at == block.start + block.filled
                block.buffer[block.filled : block.filled + count] = server.body[at : at + count]
                block.filled += count
                at += count
                self.scheduler.on_bytes(task, count, self.dice.choice([0.0, 0.1]), self.now)
            if task.revoked or not block.filled:
                return
            transfer.claim(task)
            yield
            assert block.start not in transfer.buffered
            transfer.job.partial.write(block.start // BLOCK, bytes(block.data))
            if not transfer.on_written(task):
                return

    def kept(self, task: FileTask) -> Iterator[None]:
        transfer = task.transfer
        while (yield from self.next_block(task, task.segment.end)):
            transfer.claim(task)
            yield
            data = transfer.job.partial.read_block(task.segment.start // BLOCK)
            if data is None:
                transfer.on_missing(task)
                continue
            task.segment.hold(Block(task.segment.start, data, len(data)))
            self.scheduler.on_bytes(task, len(data), 0.0, self.now)
            if not transfer.on_written(task):
                return

    def hasher(self) -> Iterator[None]:
        while True:
            if found := self.scheduler.next_blocks():
                transfer, blocks = found
                digest, position = transfer.digest, transfer.hashed
                for block in blocks:
                    assert block.start == position
                    digest.update(block.data)
                    position += block.filled
                    yield
                self.scheduler.on_hashed(transfer, blocks, digest)
            yield

    def check(self) -> None:
        """What holds after every step."""
        live = 0
        for transfer in self.scheduler.files.transfers:
            if transfer.opened and not transfer.verified:
                live += sum(len(block.buffer) for block in transfer.buffered.values())
                live += sum(len(segment.block.buffer) for segment in transfer.segments if segment.block)
                live += sum(len(task.segment.block.buffer) for task in transfer.tasks if task.segment.block)
                covers_once(transfer)
                counts_once(transfer)
                # A connection that took such a task over would get all of it again, and so would the next one.
                whole = [each for each in transfer.tasks & self.whole if each.is_answered]
                assert not (transfer.parallel and any(each.mirror is transfer.mirrors.current for each in whole))
        live += sum(map(len, self.scheduler._buffers.free))
        self.most = max(self.most, self.scheduler.allowed)
        # One block a connection more: a file that is begun again moves the window back below blocks that are held.
        assert live <= (self.most + transfer_scheduler.SPARE_PARTS) * PART + len(self.lanes) * BLOCK

    def run(self) -> None:
        hasher, finisher, idle = self.hasher(), 0, 0
        while idle < 200_000:
            idle += 1
            while len(self.lanes) < self.scheduler.connections_wanted():
                self.lanes.append(self.connection())
            mover = self.dice.choice([*self.lanes, hasher, hasher, None])
            if mover is None:
                self.now += self.dice.choice([0.01, 0.01, 0.3, 2.0])
                self.scheduler.update(self.now)
            else:
                next(mover, None)
            self.check()
            if self.scheduler.files.next_verified():
                self.scheduler.files.on_closed()
                finisher += 1
            if self.scheduler.error or finisher == len(self.scheduler.files.transfers):
                return
        raise AssertionError("it never came to an end")


def covers_once(transfer: FileTransfer) -> None:
    """Every byte is hashed, buffered, assigned or unassigned: exactly one of them."""
    if transfer.length is None or transfer._recovery:
        return
    spans = [(0, transfer.hashed), *((b.start, b.start + b.filled) for b in transfer.buffered.values())]
    held = [task.segment for task in transfer.tasks if not task.is_hedge]
    spans += [(segment.start, segment.end) for segment in [*transfer.segments, *held]]
    position = 0
    for start, end in sorted(span for span in spans if span[0] != span[1]):
        assert start == position, (spans, transfer.length)
        position = end
    assert position == transfer.length


def counts_once(transfer: FileTransfer) -> None:
    """The progress counts what is hashed or in memory, and of two connections that fetch one block only one."""
    if transfer._recovery:
        return
    held = [task.segment for task in transfer.tasks if not task.is_hedge]
    blocks = [*transfer.buffered.values(), *(each.block for each in [*transfer.segments, *held] if each.block)]
    assert transfer.counts.present == transfer.hashed + sum(block.filled for block in blocks)


mirrors = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["good", "good", "flipped", "short", "gone"]),
        "ranges": st.booleans(),
        "etag": st.sampled_from(['"a"', '"b"', None]),
        "says_length": st.sampled_from([True, True, False]),
        "flaky": st.sampled_from([0.0, 0.2, 0.9]),
        "stalls": st.sampled_from([0.0, 0.1, 0.5]),
        "refuses": st.sampled_from([0.0, 0.0, 0.2]),
        "trickles": st.sampled_from([0.0, 0.0, 0.3]),
        "bears": st.sampled_from([0, 0, 1, 2]),
    }
)
files = st.fixed_dictionaries(
    {
        "size": st.sampled_from([0, 1, BLOCK - 1, BLOCK, PART + 5, 9 * PART + 3, 25 * PART]),
        "declared": st.booleans(),
        "mirrors": st.lists(mirrors, max_size=2),
        "there": st.sets(st.integers(0, 30), max_size=12),
        "lost": st.sets(st.integers(0, 30), max_size=3),
        "spoiled": st.booleans(),
    }
)


GOOD = {"kind": "good", "ranges": False, "etag": None, "says_length": True, "flaky": 0.0, "stalls": 0.0, "refuses": 0.0}
# The first file begins again while blocks of the second one are buffered: those are spilled, and one of them is lost.
SET_ASIDE: list[dict[str, Any]] = [
    {"size": 579, "declared": True, "there": {1, 7}, "lost": {2}, "spoiled": True},
    {"size": 69, "declared": False, "there": set(), "lost": {2}, "spoiled": False},
    {"size": 16, "declared": True, "there": {6}, "lost": {1, 2, 4}, "spoiled": True},
    {"size": 69, "declared": False, "there": {0, 2, 11}, "lost": {2}, "spoiled": False},
]
SET_ASIDE[0]["mirrors"] = [{**GOOD, "etag": '"b"', "stalls": 0.5, "refuses": 0.2}]
SET_ASIDE[1]["mirrors"] = [
    {**GOOD, "etag": '"a"', "flaky": 0.9, "stalls": 0.1},
    {**GOOD, "flaky": 0.9, "stalls": 0.5, "refuses": 0.2},
]
SET_ASIDE[2]["mirrors"] = [{**GOOD, "etag": '"b"', "flaky": 0.9, "stalls": 0.1, "refuses": 0.2}]
SET_ASIDE[3]["mirrors"] = [{**GOOD, "etag": '"a"', "flaky": 0.2, "stalls": 0.5, "refuses": 0.2}]
LONGER = {"size": BLOCK, "declared": False, "mirrors": [{**GOOD, "kind": "short"}], "spoiled": False}
# The partial has every block, with its checksum, and the digest is another one.
SPOILED = {"size": BLOCK, "declared": True, "mirrors": [], "there": {0}, "lost": set(), "spoiled": True}


@settings(max_examples=EXAMPLES * 5 // 2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(chosen=[{**LONGER, "there": {0}, "lost": {0}}], seed=0, limit=1)  # the partial has more than the mirror
@example(chosen=[{**LONGER, "there": {0}, "lost": set()}], seed=0, limit=1)
@example(chosen=[SPOILED], seed=0, limit=1)
@example(chosen=SET_ASIDE, seed=1254, limit=LIMIT)
@given(
    chosen=st.lists(files, min_size=1, max_size=5) | st.just(SET_ASIDE),
    seed=st.integers(0, 2**32),
    limit=st.sampled_from([1, 2, LIMIT]),
)
def test_whatever_the_order_of_events(chosen: list[dict[str, Any]], seed: int, limit: int, small: None) -> None:
    dice, servers, jobs = random.Random(seed), dict[str, Server](), list[Job]()
    for index, plan in enumerate(chosen):
        data = blob(plan["size"], index)
        urls = []
        for number, mirror in enumerate([*plan["mirrors"], {"kind": "good"}]):  # the last one always works
            options = dict(mirror)
            kind, body = options.pop("kind"), data
            if kind == "flipped" and data:
                body = bytes([data[0] ^ 1]) + data[1:]
            elif kind == "short":
                body = data[:-1]
            urls.append(f"http://h/{index}/{number}")
            servers[urls[-1]] = Server(body, gone=kind == "gone", dice=dice, **options)
        there = {number: data[number * BLOCK : (number + 1) * BLOCK] for number in plan["there"]}
        if plan["spoiled"] and there:  # it has its checksum, and is wrong all the same
            there[min(there)] = bytes(len(there[min(there)]))
        there = {number: block for number, block in there.items() if block}
        checkpoint = Manifest.load(one(data, *urls, name=f"c{index}", size=plan["declared"]))[f"c{index}"]
        disk: Any = Disk(len(data), there, plan["lost"])
        jobs.append(Job(checkpoint, checkpoint.files[0], disk))
    world = World(jobs, servers, dice, limit)
    world.run()
    assert world.scheduler.error is None
    for index, (job, plan) in enumerate(zip(jobs, chosen, strict=True)):
        disk = job.partial
        assert bytes(disk.data[: plan["size"]]) == blob(plan["size"], index)
        assert job.source in servers


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.lists(mirrors, min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_without_a_good_mirror_it_ends_with_the_first_error(bad: list[dict[str, Any]], seed: int, small: None) -> None:
    dice, data = random.Random(seed), blob(5 * PART + 7)
    servers = {}
    for number, mirror in enumerate(bad):
        options = {**mirror, "kind": "gone" if mirror["kind"] == "good" else mirror["kind"]}
        kind = options.pop("kind")
        body = data[:-1] if kind == "short" else bytes([data[0] ^ 1]) + data[1:]
        servers[f"http://h/{number}"] = Server(body, gone=kind == "gone", dice=dice, **options)
    checkpoint = Manifest.load(one(data, *servers, name="c"))["c"]
    disk: Any = Disk(len(data), {}, set())
    world = World([Job(checkpoint, checkpoint.files[0], disk)], servers, dice, LIMIT)
    world.run()
    error = world.scheduler.error
    assert isinstance(error, DownloadError)
    assert [attempt.url for attempt in error.attempts] == list(servers)
    if servers["http://h/0"].gone:
        assert not isinstance(error, IntegrityError)


@settings(max_examples=EXAMPLES * 3 // 5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bears=st.integers(1, 3),
    sizes=st.lists(st.sampled_from([1, BLOCK, PART + 5, 9 * PART + 3, 25 * PART]), min_size=1, max_size=5),
    declared=st.booleans(),
    stalls=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**32),
)
def test_a_server_that_bears_few_connections_serves_every_file(
    bears: int, sizes: list[int], declared: bool, stalls: float, seed: int, small: None
) -> None:
    """It refuses all others as if the files were not there, and there is no other mirror."""
    dice, jobs, busy = random.Random(seed), list[Job](), Busy()
    servers = {}
    for index, size in enumerate(sizes):
        data = blob(size, index)
        url = f"http://h/{index}"
        servers[url] = Server(data, stalls=stalls, bears=bears, dice=dice, counter=busy)
        checkpoint = Manifest.load(one(data, url, name=f"c{index}", size=declared))[f"c{index}"]
        disk: Any = Disk(len(data), {}, set())
        jobs.append(Job(checkpoint, checkpoint.files[0], disk))
    world = World(jobs, servers, dice, LIMIT)
    world.run()
    assert world.scheduler.error is None
    parts = sum(-(-size // PART) for size in sizes)
    assert busy.refused <= 3 * LIMIT + parts, (busy.refused, parts)
