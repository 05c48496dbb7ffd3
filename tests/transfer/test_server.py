"""How many connections a server gets: what it bears is found out once, and asked for again ever more seldom."""

from __future__ import annotations

import random
from typing import Any

from schedule import SIZE, Answer, Nowhere
from weightcache import Manifest
from weightcache._transfer.mirrors import Retries
from weightcache._transfer.scheduler import Schedule
from weightcache._transfer.segments import Job, Task
from weightcache._transfer.server import Host, Hosts
from weightcache._transfer.stream import SourceError, TransientError


class Line:
    """One file of one server that allows so many connections, and the requests that it refused."""

    def __init__(self, bears: int, limit: int = 24, refusal: SourceError | None = None) -> None:
        manifest = {"checkpoints": {"c": {"urls": ["http://h/a"], "sha256": "0" * 64, "size": SIZE}}}
        checkpoint = Manifest.load(manifest)["c"]
        disk: Any = Nowhere()
        self.schedule = Schedule([Job(checkpoint, checkpoint.files[0], disk)], Retries(base=0.0), random.uniform, limit)
        self.bears, self.refused, self.now = bears, 0, 0.0
        self.refusal = refusal or SourceError("HTTP 403 Forbidden")
        self.serving: list[Task] = []

    @property
    def host(self) -> Host:
        mirror = self.schedule.transfers[0].mirrors.current
        assert mirror is not None
        return mirror.host

    def ask(self) -> None:
        """Let idle connections ask for what they may."""
        self.now += 1.0
        asked = []
        while (task := self.schedule.take(self.now)) is not None:
            asked.append(task)
        self.now += 1.0
        for task in asked:
            if len(self.serving) < self.bears:
                self.serving.append(task)
                assert self.schedule.answered(task, Answer(task), self.now)
                self.schedule.arrive(task, 1, 0.0, self.now)
            else:
                self.refused += 1
                self.schedule.failed(task, self.refusal, self.now)
                self.schedule.resume(task)

    def finish(self) -> None:
        """Let the oldest connection end its part."""
        self.now += 1.0
        task = self.serving.pop(0)
        task.piece.start, task.piece.block = task.piece.end or 0, None
        self.schedule.transfers[0].hashed = task.piece.start  # the window moves on
        self.schedule.release(task, self.now)

    def begin(self) -> None:
        self.ask()
        self.schedule.look(self.now + 100)  # it says nothing for a while: many from now on


def test_a_server_that_allows_few_connections_is_soon_asked_for_no_more() -> None:
    for bears in (1, 2, 3):
        for refusal in (SourceError("HTTP 404 Not Found"), TransientError("HTTP 503", crowded=True)):
            line = Line(bears, refusal=refusal)
            line.begin()
            line.ask()
            assert line.host.allowed == bears
            first = line.refused
            for _ in range(500):
                line.finish()
                line.ask()
            assert first <= 23
            assert line.refused - first <= 10, line.refused
            assert line.schedule.error is None


def test_a_server_that_bears_more_again_gets_more() -> None:
    line = Line(1)
    line.begin()
    line.ask()
    assert line.host.allowed == 1
    line.bears = 24
    for _ in range(80):
        line.finish()
        line.ask()
    assert line.host.allowed == 24


def test_a_server_that_answers_nobody_is_asked_by_one_and_then_by_all() -> None:
    line = Line(24)
    line.begin()
    line.ask()
    assert len(line.serving) == 24
    for task in line.serving:
        line.schedule.failed(task, TransientError("the connection broke off"), line.now)
        line.schedule.resume(task)
    line.serving.clear()
    line.bears, line.refusal = 0, TransientError("Connection refused")
    line.ask()
    first = line.refused
    assert first <= 24 + 1
    for _ in range(5):
        line.ask()
    assert line.host.silent
    line.bears = 24
    line.ask()
    line.ask()
    assert len(line.serving) == 24


def test_two_servers_are_judged_each_for_itself() -> None:
    hosts = Hosts(24)
    limited, free = hosts.of("http://user@h:80/a"), hosts.of("http://g/a")
    assert hosts.of("http://h:80/b?x") is limited
    checkpoint = Manifest.load({"checkpoints": {"c": {"urls": ["http://h/a"], "sha256": "0" * 64}}})["c"]
    job: Any = Job(checkpoint, checkpoint.files[0], Nowhere())  # type: ignore[arg-type]
    schedule = Schedule([job], Retries(), random.uniform, 24)
    served = schedule.take(0.0)
    assert served is not None
    limited.tasks.add(served)
    limited.answered(1.0)
    served.answered = True
    limited.refused(served, 2.0, crowded=False)
    assert (limited.allowed, free.allowed) == (1, 24)
