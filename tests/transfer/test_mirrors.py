"""A mirror that has delivered is waited for, and a server is asked for no more connections than it bears."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from origin import Exchange, Origin, broken, hang_up
from origin import status as answer
from schedule import SIZE, Answer, Nowhere
from support import blob, one, quiet
from weightcache import DownloadError, Manifest, ensure
from weightcache._runtime.tuning_constants import Settings
from weightcache._transfer.file_transfer import FileTask
from weightcache._transfer.mirror_stream import SourceError, TransientError
from weightcache._transfer.scheduler import Scheduler
from weightcache._transfer.transfer_types import Job

MB = 1 << 20
DATA = blob(12 * MB + 77)


class Line:
    """One connection, some mirrors of one file, and a clock that moves by the pauses alone."""

    def __init__(self, *urls: str, patience: float = 180.0) -> None:
        manifest = {"checkpoints": {"c": {"urls": list(urls), "file": "a", "sha256": "0" * 64, "size": SIZE}}}
        checkpoint = Manifest.load(manifest)["c"]
        disk: Any = Nowhere()
        job = Job(checkpoint, checkpoint.files[0], disk)
        self.scheduler = Scheduler([job], Settings(connections=1), patience, random.Random(1).uniform)
        self.now, self.asked = 0.0, list[tuple[float, str, int]]()

    def take(self) -> FileTask | None:
        task = self.scheduler.assign(self.now)
        if task is not None:
            self.asked.append((self.now, task.mirror.url, task.segment.position))
        return task

    def deliver(self, count: int) -> None:
        """Deliver so many bytes of the next segment, and then lose the connection."""
        task = self.take()
        assert task is not None
        assert self.scheduler.on_response(task, Answer(task), self.now)
        block = self.scheduler.begin_block(task)
        block.on_read(count)
        self.scheduler.on_bytes(task, count, 0.0, self.now)
        self._fail(task, TransientError("the connection broke off"))

    def fail(self, error: SourceError | None = None) -> bool:
        """Let the next request fail; ``False`` if nothing is asked any more."""
        task = self.take()
        if task is None:
            return False
        self._fail(task, error or TransientError("Connection refused"))
        return True

    def _fail(self, task: FileTask, error: SourceError) -> None:
        pause = self.scheduler.on_failure(task, error, self.now)
        self.now += max(pause, 0.01)
        self.scheduler.resume(task)


def test_two_minutes_without_an_answer_are_waited_out_and_nothing_is_fetched_twice() -> None:
    line = Line("http://h/a")
    line.deliver(1000)
    while line.now < 120.0:
        assert line.fail()
    assert line.scheduler.error is None
    times = [when for when, _, _ in line.asked]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 5.0  # its end is noticed soon
    task = line.take()
    assert task is not None
    assert task.segment.position == 1000


def test_it_is_given_up_when_the_patience_is_over() -> None:
    line = Line("http://h/a", patience=60.0)
    line.deliver(1000)
    while line.fail():
        assert line.now < 100.0
    assert 60.0 <= line.now <= 66.0
    assert line.scheduler.error is not None
    assert "Connection refused" in str(line.scheduler.error)


def test_without_patience_it_is_given_up_after_a_few_tries() -> None:
    line = Line("http://h/a", patience=0.0)
    line.deliver(1000)
    while line.fail():
        assert line.now < 60.0
    assert len(line.asked) == 1 + 4


def test_a_mirror_that_never_delivered_is_given_up_after_five_tries() -> None:
    line = Line("http://h/a")
    while line.fail():
        assert line.now < 60.0
    assert len(line.asked) == 5


def test_another_mirror_is_asked_meanwhile_and_the_first_one_again_when_that_fails() -> None:
    line = Line("http://h/a", "http://g/a")
    line.deliver(1000)
    while line.fail():
        if line.asked[-1][1] == "http://g/a":
            break
    assert line.now < 60.0
    assert line.asked[-1][2] == 1000  # it goes on where the first one stopped
    while line.asked[-1][1] == "http://g/a":
        assert line.fail()
    assert line.scheduler.error is None
    assert line.asked[-1][1] == "http://h/a"


def test_a_refusal_of_what_was_served_is_tried_again_for_a_while() -> None:
    line = Line("http://h/a")
    line.deliver(1000)
    while line.fail(SourceError("HTTP 404 Not Found")):
        assert line.now < 60.0
    assert 30.0 <= line.now <= 36.0


def test_of_many_mirrors_a_few_are_logged_and_a_hundred_listed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "weightcache")
    line = Line(*(f"http://h{number}/a" for number in range(300)))
    while line.fail(SourceError("HTTP 404 Not Found")):
        pass
    error = line.scheduler.error
    assert isinstance(error, DownloadError)
    assert len(error.attempts) == 300
    assert str(error.args[0]).count("\n") == 101
    assert "\n  and 200 more" in str(error)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) <= 2 * 10 + 1  # the first ten, each tried twice
    assert [text for text in said if "h299" in text] == []
    assert "c: 290 more mirrors of a are tried; of these nothing is logged" in said


@pytest.mark.parametrize("patience", [-1, float("nan"), "180", True, None])
def test_odd_patience(patience: Any, root: Path) -> None:
    with pytest.raises(ValueError, match="patience must be a number of seconds"):
        ensure(one(DATA, "http://h/a"), root=root, patience=patience)


# A real server ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_connection")
@pytest.mark.parametrize("fault", [hang_up(), hang_up(reset=True), answer(503), answer(522)])
def test_an_outage_in_the_middle(fault: Any, origin: Origin, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "weightcache")
    origin.put("/a", DATA, faults=[broken(5 * MB), *[fault] * 20])  # 20 is more than the tries of a new mirror
    report = quiet(one(DATA, origin.url("/a")), root).report["sam2"]
    assert report.bytes_fetched == len(DATA)
    assert origin.sent() <= len(DATA) + MB  # and what the socket held
    assert "stopped sending" in caplog.text
    assert "sends again, after" in caplog.text


def test_an_outage_without_an_end(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[broken(5 * MB)], always=hang_up())
    with pytest.raises(DownloadError):
        quiet(one(DATA, origin.url("/a")), root, patience=0.2)
    origin.files["/a"].always = None
    assert quiet(one(DATA, origin.url("/a")), root).report["sam2"].outcome == "resumed"


REFUSALS = {str(code): answer(code) for code in (400, 401, 403, 404, 421, 429, 502, 503, 520)}
REFUSALS["reset"] = hang_up(reset=True)
CASES = [*((name, 1, True) for name in REFUSALS), ("403", 1, False), ("403", 3, True), ("reset", 3, False)]


@pytest.mark.parametrize(("how", "bears", "size"), CASES)
def test_a_server_that_bears_few_connections(how: str, bears: int, size: bool, origin: Origin, root: Path) -> None:
    """How it refuses the others says nothing of the file, and it is not asked again and again."""
    lock, busy, refused = threading.Lock(), [0], [0]

    def serve(exchange: Exchange) -> None:
        with lock:
            full = busy[0] >= bears
            busy[0] += not full
            refused[0] += full
        if full:
            REFUSALS[how](exchange)
            return
        try:
            exchange.good()
        finally:
            with lock:
                busy[0] -= 1

    origin.put("/a", DATA, rate=16e6, always=serve)
    report = quiet(one(DATA, origin.url("/a"), size=size), root).report["sam2"]
    assert report.bytes_fetched < 1.1 * len(DATA)
    assert refused[0] <= 23 + 30


def test_a_refusal_of_one_that_has_answered_advises_no_token(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[broken(5 * MB)], always=answer(403))
    with pytest.raises(DownloadError) as caught:
        quiet(one(DATA, origin.url("/a")), root, patience=0.2)
    assert "403" in str(caught.value)
    assert "auth" not in caught.value.hint
