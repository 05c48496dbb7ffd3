"""Which refusals end without a change here, and for how long a server asks to stay away."""

from __future__ import annotations

import email.utils
import time
from pathlib import Path

import pytest

from origin import Origin
from origin import status as answer
from support import blob, one
from weightcache import DownloadError, ensure
from weightcache._transfer.retry_policy import RETRYABLE, THROTTLED, seconds_to_wait

DATA = blob(5000)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "17"}, 17),
        ({"Retry-After": " 1.5 "}, 1.5),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "9" * 5000}, None),
        ({"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0),
        ({"Retry-After": "3", "RateLimit": '"api";r=0;t=99'}, 3),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api" ; r = 0 ; t = 55'}, 55),
        ({"RateLimit": '"api";t=55;r=0'}, 55),
        ({"RateLimit": '"api";r=1;t=55'}, None),
        ({"RateLimit": '"api";r=0'}, 0),
        ({"RateLimit": '"a";r=0;t=7, "b";r=40;t=300, "c";r=0;t=19'}, 19),
        ({"RateLimit": '"a,;r=0;t=900";r=5;t=7'}, None),
        ({"RateLimit": '"a;r=1\\"";r=0;t=7;pk=:cHNrMQ==:'}, 7),
        ({"RateLimit": "default;r=0;t=8"}, 8),
        ({"RateLimit": f'"api";r=0;t={"9" * 5000}'}, 0),
        ({"RateLimit": "limit=100, remaining=0, reset=12"}, 12),
        ({"RateLimit": "limit=100, remaining=3, reset=12"}, None),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "30"}, 30),
        ({"RateLimit-Remaining": "1", "RateLimit-Reset": "30"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "40"}, 40),
        ({"X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": "40"}, 40),
        ({"X-RateLimit-Remaining": "0"}, 0),
        ({"X-RateLimit-Remaining": "59", "X-RateLimit-Reset": "9999999999"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1000000000"}, 0),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "none"}, 0),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert seconds_to_wait(headers) == seconds


def test_a_header_of_quotes_is_read_at_once() -> None:
    """Searched once from each quote, it would take a minute in which no other thread runs."""
    before = time.process_time()
    assert seconds_to_wait({"RateLimit": '"' + '\\"' * 30_000}) is None
    assert time.process_time() - before < 1


def test_times_are_seconds_from_now() -> None:
    now = time.time()
    date = email.utils.formatdate(now + 100, usegmt=True)
    for headers in (
        {"Retry-After": date},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(now) + 100)},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(now) * 1000 + 100_000)},
    ):
        seconds = seconds_to_wait(headers)
        assert seconds is not None
        assert 80 < seconds <= 101


@pytest.mark.parametrize("status", [202, 408, 425, 429, 500, 503, 508, 520, 521, 522, 523, 524, 525, 529, 530])
def test_what_passes_by_itself_is_tried_again(status: int, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[answer(status)] * 2)
    assert ensure(one(DATA, origin.url("/a")), root=root, progress=False)["sam2"].read_bytes() == DATA


@pytest.mark.parametrize("status", [400, 404, 410, 501, 505, 511, 526])
def test_what_does_not_pass_is_asked_once(status: int, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, always=answer(status))
    with pytest.raises(DownloadError, match=rf"HTTP {status}.*\(1 request"):
        ensure(one(DATA, origin.url("/a")), root=root, progress=False)


@pytest.mark.parametrize(
    ("status", "headers", "body", "waits"),
    [
        (403, {"Retry-After": "7"}, b"", 7),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "8"}, b"", 8),
        (403, {"RateLimit": '"api";r=0;t=9'}, b"", 9),
        (403, {}, b'{"message": "You have exceeded a secondary rate limit."}', 60),
        (429, {"RateLimit": '"resolvers";r=0;t=11, "pages";r=9;t=99'}, b"", 11),
        (522, {"Retry-After": "12"}, b"", 12),
    ],
)
def test_it_is_left_alone_as_long_as_it_asks(
    status: int,
    headers: dict[str, str],
    body: bytes,
    waits: int,
    origin: Origin,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("weightcache._runtime.cancel.Cancel.sleep", lambda self, seconds: slept.append(seconds))
    origin.put("/a", DATA, faults=[answer(status, headers, body)])
    assert ensure(one(DATA, origin.url("/a")), root=root, progress=False)["sam2"].read_bytes() == DATA
    assert [round(each) for each in slept] == [waits]
    assert origin.gets() == 2


@pytest.mark.parametrize("header", ["Retry-After: {}", 'RateLimit: "api";r=0;t={}'])
def test_a_server_that_asks_for_more_than_two_minutes_is_given_up(
    header: str, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("weightcache._runtime.cancel.Cancel.sleep", lambda self, seconds: slept.append(seconds))
    name, value = header.split(": ")
    origin.put("/a", DATA, faults=[answer(429, {name: value.format(120)})])
    assert ensure(one(DATA, origin.url("/a")), root=root, progress=False)["sam2"].read_bytes() == DATA
    assert [round(each) for each in slept] == [120]
    origin.put("/b", DATA[1:], always=answer(429, {name: value.format(121)}))
    with pytest.raises(DownloadError, match=r"asks to wait 121 s\) \(1 request"):
        ensure(one(DATA[1:], origin.url("/b"), name="other"), root=root, progress=False)
    assert len(slept) == 1


def test_a_refusal_without_a_limit_is_final(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, always=answer(403, {"X-RateLimit-Remaining": "12", "X-RateLimit-Reset": "60"}))
    with pytest.raises(DownloadError, match=r"HTTP 403 Forbidden.*\(1 request"):
        ensure(one(DATA, origin.url("/a")), root=root, progress=False)


def test_which_answers_are_tried_again_and_which_lower_the_number_of_connections() -> None:
    assert {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 529} <= RETRYABLE
    assert not RETRYABLE & {200, 206, 400, 401, 403, 404, 410, 416, 501, 526}
    assert {403, 429, 503} == THROTTLED
