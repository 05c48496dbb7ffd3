"""How many connections a server gets: what it bears is found out once, and asked for again ever more seldom."""

from __future__ import annotations

import random
from typing import Any

import pytest

from schedule import Answer, Nowhere, scheduler_of_a_file
from weightcache import Manifest
from weightcache._runtime.tuning_constants import Settings
from weightcache._transfer.file_transfer import FileTask
from weightcache._transfer.mirror_stream import SourceError, TransientError
from weightcache._transfer.scheduler import Scheduler
from weightcache._transfer.server_state import Server, Servers
from weightcache._transfer.transfer_types import Job


class Line:
    """One file of one server that allows so many connections, and the requests that it refused."""

    def __init__(self, bears: int, limit: int = 24, refusal: SourceError | None = None) -> None:
        self.scheduler = scheduler_of_a_file(backoff=0.0, connections=limit)
        self.bears, self.refused, self.now = bears, 0, 0.0
        self.refusal = refusal or SourceError("HTTP 403 Forbidden")
        self.serving: list[FileTask] = []

    @property
    def server(self) -> Server:
        mirror = self.scheduler.files.transfers[0].mirrors.current
        assert mirror is not None
        return mirror.server

    def ask(self, *, resume: bool = True) -> None:
        """Let idle connections ask for what they may; without ``resume``, those that are refused go on pausing."""
        self.now += 1.0
        asked = []
        while (task := self.scheduler.assign(self.now)) is not None:
            asked.append(task)
        self.now += 1.0
        for task in asked:
            if len(self.serving) < self.bears:
                self.serving.append(task)
                assert self.scheduler.on_response(task, Answer(task), self.now)
                self.scheduler.on_bytes(task, 1, 0.0, self.now)
            else:
                self.refused += 1
                self.scheduler.on_failure(task, self.refusal, self.now)
                if resume:
                    self.scheduler.resume(task)

    def finish(self) -> None:
        """Let the oldest connection end its part."""
        self.now += 1.0
        task = self.serving.pop(0)
        task.segment.advance(task.segment.end or 0)
        self.scheduler.files.transfers[0].counts.hashed = task.segment.start  # the window moves on
        self.scheduler.release(task, self.now)

    def begin(self) -> None:
        self.ask()
        self.scheduler.update(self.now + 100)  # it says nothing for a while: many from now on


def test_a_server_that_allows_few_connections_is_soon_asked_for_no_more() -> None:
    for bears in (1, 2, 3):
        for refusal in (SourceError("HTTP 404 Not Found"), TransientError("HTTP 503", throttled=True)):
            line = Line(bears, refusal=refusal)
            line.begin()
            line.ask()
            assert line.server.allowed == bears
            first = line.refused
            for _ in range(500):
                line.finish()
                line.ask()
            assert first <= 23
            assert line.refused - first <= 10, line.refused
            assert line.scheduler.error is None


def test_a_server_that_bears_more_again_gets_more() -> None:
    line = Line(1)
    line.begin()
    line.ask()
    assert line.server.allowed == 1
    line.bears = 24
    for _ in range(80):
        line.finish()
        line.ask()
    assert line.server.allowed == 24


def test_a_refused_connection_pauses_alone_while_others_are_served() -> None:
    """The server asked this one to wait. The others must not wait with it."""
    line = Line(2, refusal=TransientError("HTTP 503", 60.0, throttled=True))
    line.begin()
    line.ask(resume=False)
    assert line.refused
    line.finish()
    assert line.scheduler.assign(line.now) is not None


def test_a_server_that_answers_nobody_is_asked_by_one_and_then_by_all() -> None:
    line = Line(24)
    line.begin()
    line.ask()
    assert len(line.serving) == 24
    for task in line.serving:
        line.scheduler.on_failure(task, TransientError("the connection broke off"), line.now)
        line.scheduler.resume(task)
    line.serving.clear()
    line.bears, line.refusal = 0, TransientError("Connection refused")
    line.ask()
    first = line.refused
    assert first <= 24 + 1
    for _ in range(5):
        line.ask()
    assert line.server.is_silent
    line.bears = 24
    line.ask()
    line.ask()
    assert len(line.serving) == 24


@pytest.mark.parametrize(
    ("refusal", "is_silent"), [(TransientError("HTTP 500"), True), (SourceError("HTTP 404 Not Found"), False)]
)
def test_a_first_refusal_that_may_pass_lets_the_server_rest(refusal: SourceError, is_silent: bool) -> None:
    """One that says that this file is not there says nothing of the others."""
    line = Line(0, refusal=refusal)
    server = line.server
    line.ask()
    assert line.refused == 1
    assert server.is_silent is is_silent


def test_two_servers_are_judged_each_for_itself() -> None:
    servers = Servers(24)
    limited, free = servers.of("http://user@h:80/a"), servers.of("http://g/a")
    assert servers.of("http://h:80/b?x") is limited
    checkpoint = Manifest.load({"checkpoints": {"c": {"urls": ["http://h/a"], "sha256": "0" * 64}}})["c"]
    job: Any = Job(checkpoint, checkpoint.files[0], Nowhere())  # type: ignore[arg-type]
    scheduler = Scheduler([job], Settings(), 180.0, random.uniform)
    served = scheduler.assign(0.0)
    assert served is not None
    limited.add(served)
    limited.on_response(1.0)
    served.on_response()
    limited.on_refusal(served, 2.0, throttled=False)
    assert (limited.allowed, free.allowed) == (1, 24)
