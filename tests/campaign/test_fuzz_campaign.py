"""A small part of the fuzz campaign, the same for the same seed; and each of its judgements, seen to fail."""

from __future__ import annotations

import json
import time
from random import Random

import pytest

import fuzz_campaign
from fuzz_campaign import input_of, problem_of, repeat, rows, steepness
from fuzz_inputs import json_of, nested
from fuzz_targets import Target
from weightcache import ManifestError
from weightcache._coordination import lock

ROUNDS = 8


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
