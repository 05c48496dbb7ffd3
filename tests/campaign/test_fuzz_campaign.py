"""A small part of the fuzz campaign, the same for the same seed; and each of its judgements, seen to fail."""

from __future__ import annotations

import json
import signal
import threading
import time
from itertools import islice
from random import Random
from typing import Any

import pytest

import fuzz_campaign
from campaign_table import Limit
from fuzz_campaign import fuzz, input_of, probe, problem_of, repeat, rows, steepness, targets_here
from fuzz_inputs import json_of, nested
from fuzz_targets import Target
from weightcache import ManifestError
from weightcache._coordination import lock
from weightcache._pinning.hub_requests import HubRequests
from weightcache._store import inspect
from weightcache._transfer import http_session
from weightcache._transfer.http_session import Session

ROUNDS = 8
_pages = HubRequests.pages


def test_a_sample_of_the_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_campaign, "SHORT", 2000)
    found, failed = rows(0, float("inf"), most=ROUNDS)
    assert failed == []
    assert {row.tried for row in found[:-1]} == {ROUNDS}
    assert {row.scenario for row in found} >= {"receipt", "journal", "tag", "Hub answer", "Location", "growing inputs"}


def test_a_fault_of_the_library_is_found_and_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_campaign, "SHORT", 1)

    monkeypatch.setattr(lock, "_in_words", lambda note: json.loads(note)["doing"])
    found, failed = rows(0, float("inf"), most=5)
    assert [row.scenario for row in found if row.failed] == ["lock note"]
    assert all(line.endswith(" lock note") for line in failed)
    assert "in " in repeat(failed[0].removeprefix("fuzz ")).splitlines()[-1]


def reading(data: bytes) -> str | None:
    kind = data[:1]
    if kind == b"k":
        raise KeyError("k")
    if kind == b"m":
        raise ManifestError("w", ["no"])
    if kind == b"e":
        raise ManifestError("w", ["no" * 1_000_000])
    if kind == b"b":
        return str(len(bytearray(20 << 20)))[9:]
    if kind == b"s":
        began = time.process_time()
        while time.process_time() < began + 0.05:
            pass
    return "it is wrong" if kind == b"w" else None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a", ""),
        (b"m", ""),
        (b"k", "KeyError: 'k' in reading of test_fuzz_campaign.py"),
        (b"e", "the message of ManifestError has 2000"),
        (b"b", "bytes of memory for 1"),
        (b"s", "s of CPU"),
        (b"w", "it is wrong"),
    ],
)
def test_what_is_wrong_with_an_input(data: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_campaign, "SECONDS", 0.02 if data == b"s" else 60.0)
    found = problem_of(Target("t", "bytes", (b"",), reading, (ManifestError,)), data, traced=True)
    assert bool(found) == bool(said)
    assert said in found


@pytest.mark.parametrize(("power", "said"), [(2, "16.00 s for 80000 times b'a', and 1.00 s for 20000 times"), (1, "")])
def test_what_grows_with_the_square_is_found(power: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_campaign, "cost", lambda target, data: (len(data) / fuzz_campaign.SHORT) ** power)
    assert steepness(Target("t", "bytes", (b"",), reading), (b"", b"a", b"")) == said


def test_the_cost_of_an_input_is_its_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuzz_campaign.cost(Target("t", "bytes", (b"",), reading), b"s") >= 0.05
    assert fuzz_campaign.cost(Target("t", "bytes", (b"",), reading), b"k") < 0.05  # what it raises is judged elsewhere


def test_inputs_are_the_same_for_the_same_seed() -> None:
    for kind, valid in (("bytes", b"abc"), ("text", "abc"), ("json", {"a": [1]}), ("value", {"a": ["x"]})):
        target = Target(kind, kind, (valid,), lambda data: None)
        drawn = [repr(input_of(target, 5, number))[:500] for number in range(40)]
        assert drawn == [repr(input_of(target, 5, number))[:500] for number in range(40)]
        assert len({*drawn}) > 20
    assert json_of(nested(5000, Random(0).random() < 2)).startswith(b'{"a":{"a":')


def believed(layout: Any, checkpoint: Any) -> dict[str, int]:
    return {"a/b.bin": 10, "c": 3}


@pytest.mark.parametrize(
    ("target", "place", "name", "broken", "said"),
    [
        ("receipt", inspect, "_receipted_sizes", believed, "a receipt for something else is believed"),
        ("receipt", inspect, "_receipted_sizes", lambda *_: None, "a right receipt is not believed"),
        ("Location", http_session, "check_host", lambda host: None, "'http://169.254.169.254/latest' is asked"),
        ("Location", Session, "redirect", lambda *_: "http://169.254.1.1/", "'' is asked instead of 'https://c.d/x?"),
        ("Location", Session, "redirect", lambda *_: "https://c.d/other", "'https://c.d/other' is asked instead of"),
        (
            "Hub answer",
            HubRequests,
            "pages",
            lambda *call: islice(_pages(*call), 1),
            "1 pages were asked for, and there are",
        ),
    ],
)
def test_a_reader_that_is_broken_is_found(
    target: str, place: Any, name: str, broken: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, broken)
    with targets_here() as targets:
        _, found = fuzz([each for each in targets if each.name == target], 0, Limit(most=40))
        assert any(said in each.problem for each in found), found
        assert fuzz_campaign.repeat(f"0 {found[0].number} {target}").endswith(found[0].problem)


def test_an_input_that_never_ends_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> None:
        while data:
            try:
                threading.Event().wait()
            except Exception:
                continue

    monkeypatch.setattr(fuzz_campaign, "ENDLESS", 0.01)
    handler = signal.getsignal(signal.SIGALRM)
    timer = signal.setitimer(signal.ITIMER_REAL, 200.0)
    endless = Target("t", "bytes", (b"a",), read, pumps=((b"", b"a", b""),))
    tried, found = fuzz([endless], 0, Limit(most=3))
    assert tried == {"t": 3}
    assert {each.problem for each in found} == {"it did not end within 0.01 s"}
    assert probe([endless])[1] == [("t", "pump-0", "it did not end within 0.01 s")]
    assert fuzz_campaign.cost(endless, b"a") < 1
    left, _ = signal.setitimer(signal.ITIMER_REAL, *timer)  # that of pytest goes on
    assert 0 < left <= 200.0
    assert signal.getsignal(signal.SIGALRM) is handler
