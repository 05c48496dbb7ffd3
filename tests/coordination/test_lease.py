"""The lease between containers: its steps on a Dict that may fail."""

from __future__ import annotations

import logging
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from lease_dict import FakeDict, Time, lease
from support import change_settings
from weightcache._coordination import kv
from weightcache._coordination.lease import Lease
from weightcache._coordination.lease_observation import Head
from weightcache._engine.miss_protocol import run_sync
from weightcache._runtime.tuning_constants import DEFAULT

BEAT, EXPIRY = DEFAULT.lease_beat, DEFAULT.lease_expiry


X, Y = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = {"lease_poll": (0.01, 0.01), "reload_interval": 0.02, "lease_retry_delays": (0.001,) * 3}
    change_settings(monkeypatch, **waits)


def take(who: Lease, *digests: str) -> list[str]:
    return run_sync(who.claim(run_sync(who.claimable(digests))))


def beat(who: Lease, times: int) -> None:
    left = iter([True] * times)

    async def pause(seconds: float) -> bool:
        assert seconds == BEAT
        return next(left, False)

    run_sync(who.beat(pause))


def head(found: FakeDict, digest: str = X) -> tuple[int, str, str]:
    return found[f"{digest}/head"][:3]


def test_one_holds_and_the_other_waits_until_it_is_done(
    found: FakeDict, clock: Time, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "weightcache")
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    assert take(a, X) == [X]
    assert (found[f"{X}/1"], head(found)) == ("a", (1, "a", "held"))
    assert take(b, X) == []
    run_sync(b.wait([X]))
    assert (b.waited_for, b.waited > 0) == ("a", True)
    run_sync(a.release([X], "done"))
    assert head(found) == (1, "a", "done")
    assert take(b, X) == [X]
    run_sync(b.release([X], "done"))
    assert dict(found) == {f"{X}/2": "b", f"{X}/head": (2, "b", "done", 0, 0)}  # the claim before it is removed
    assert take(a, X) == [X]
    run_sync(a.release([X], "done"))
    assert sorted(found) == [f"{X}/3", f"{X}/head"]
    assert caplog.records == []


def test_who_holds_one_does_not_keep_the_other(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    assert take(a, X) == [X]
    assert take(b, X, Y) == [Y]
    assert b.held_by_others([X, Y]) == [X]


def test_a_failed_one_is_followed_at_once(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, X)
    run_sync(a.release([X], "failed", tidy=False))
    assert take(b, X) == [X]
    assert head(found) == (2, "b", "held")


def test_a_dead_one_is_followed_when_its_beat_has_stopped(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, X)
    assert take(b, X) == []
    for _ in range(3):
        clock.time += EXPIRY - 1
        beat(a, 1)
        assert take(b, X) == []
    clock.time += EXPIRY
    assert take(b, X) == []
    clock.time += 1
    assert take(b, X) == [X]
    beat(a, 2)  # it was only asleep
    assert head(found) == (2, "b", "held")
    run_sync(a.release([X], "done"))
    assert head(found) == (2, "b", "held")


@pytest.mark.parametrize("asleep", [X, Y])
def test_a_sleep_of_the_waiters_is_not_the_holders_silence(asleep: str, found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, X, Y)
    assert take(b, X, Y) == []
    get, naps = found.get, [f"{asleep}/head"]

    def falls_asleep_with_the_answer(key: str) -> Any:
        value = get(key)
        if key in naps:
            naps.remove(key)
            clock.time += 2 * EXPIRY
            beat(a, 1)  # which this answer cannot show
        return value

    found.get = falls_asleep_with_the_answer  # type: ignore[method-assign,assignment]
    assert take(b, X, Y) == []


def test_what_went_missing_since_the_heads_were_read_may_be_held(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, Y)
    assert run_sync(b.claimable([X])) == [X]
    assert b.held_by_others([X, Y]) == [Y]
    run_sync(b.claimable([X, Y]))
    run_sync(a.release([Y], "done"))
    run_sync(b.claimable([X, Y]))
    assert b.held_by_others([X, Y]) == []


def test_one_that_slept_through_its_lease_leaves_the_next_alone(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, X)
    take(b, X)
    clock.time += EXPIRY + 1
    assert take(b, X) == [X]
    run_sync(a.release([X], "done"))
    assert head(found) == (2, "b", "held")


def test_what_was_released_is_not_kept_alive(found: FakeDict, clock: Time) -> None:
    a = lease(found, clock, "a")
    take(a, X)
    run_sync(a.release([X], "done"))
    take(a, Y)
    beat(a, 2)
    assert (head(found, X)[2], head(found, Y)[2]) == ("done", "held")


def test_a_lost_claim_gives_the_winner_time_to_speak(found: FakeDict, clock: Time) -> None:
    b = lease(found, clock, "b")
    free = run_sync(b.claimable([X]))
    found[f"{X}/1"] = "a"  # it won, and is about to write its head
    clock.time += EXPIRY - 1
    assert (free, run_sync(b.claim(free))) == ([X], [])
    clock.time += EXPIRY
    assert take(b, X) == []
    clock.time += 1
    assert take(b, X) == [X]
    assert head(found) == (2, "b", "held")


def test_an_old_number_is_not_claimed(found: FakeDict, clock: Time) -> None:
    b = lease(found, clock, "b")
    free = run_sync(b.claimable([X]))
    found[f"{X}/head"] = (3, "a", "held", 1, 0)  # meanwhile; and a has removed the claims before its own
    assert run_sync(b.claim(free)) == []
    assert f"{X}/1" not in found
    assert head(found) == (3, "a", "held")


def test_a_claim_whose_answer_was_lost_is_known_again(found: FakeDict, clock: Time) -> None:
    a = lease(found, clock, "a")
    free = run_sync(a.claimable([X]))
    found.faults = ["after"]
    assert run_sync(a.claim(free)) == [X]
    assert (head(found), a.failure) == ((1, "a", "held"), "")


@pytest.mark.parametrize("after", range(5))
def test_a_dict_that_fails_is_done_without(
    after: int, found: FakeDict, clock: Time, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    a = lease(found, clock, "a")
    found.faults = [""] * after + ["before"] * 100
    assert take(a, X, Y) == [X, Y]
    assert (a.failure == "ConnectionError: the Dict is away") is (after < 5)
    beat(a, 2)
    run_sync(a.release([X, Y], "done"))
    assert {record.name for record in caplog.records} == {"weightcache"}


def test_a_beat_that_fails_is_followed_by_the_next(found: FakeDict, clock: Time) -> None:
    a = lease(found, clock, "a")
    take(a, X)
    found.faults = ["before", "", "after"]
    beat(a, 3)
    assert found[f"{X}/head"][3] == 2


def test_one_that_beats_and_moves_nothing_is_not_waited_for(found: FakeDict, clock: Time) -> None:
    done = iter([*range(1, 22), *[7] * 100])
    a = lease(found, clock, "a", bytes_done=lambda: next(done))
    b = lease(found, clock, "b", wait=60.0)
    take(a, X)
    assert take(b, X) == []
    for _ in range(20):
        clock.time += 10
        beat(a, 1)
        assert take(b, X) == []
    beat(a, 1)
    assert take(b, X) == []
    assert b.progress([X]) == 7
    for _ in range(7):
        clock.time += 10
        beat(a, 1)
        taken = take(b, X)
    assert taken == [X]
    assert head(found) == (1, "a", "held")  # it keeps its lease


@pytest.mark.parametrize(
    "value",
    [
        None,
        "x",
        7,
        (),
        (1, "a", "held", 0),
        (1, "a", "gone", 0, 0),
        (-1, "a", "held", 0, 0),
        (True, "a", "held", 0, 0),
        (1, "a\x1b[2J", "held", 0, 0),  # it would be shown
    ],
)
def test_what_is_no_head_is_as_good_as_none(value: object, found: FakeDict, clock: Time) -> None:
    found[f"{X}/head"] = value
    assert Head.parse(value) is None
    assert take(lease(found, clock, "a"), X) == [X]


def test_ones_own_head_does_not_keep_one_waiting(found: FakeDict, clock: Time) -> None:
    a = lease(found, clock, "a")
    take(a, X)
    found.faults = ["before"]
    run_sync(a.release([X], "done"))
    assert head(found)[2] == "held"
    assert take(a, X) == [X]


def test_a_dict_that_hangs_has_an_end(monkeypatch: pytest.MonkeyPatch, found: FakeDict) -> None:
    change_settings(monkeypatch, dict_timeout=0.05)
    answered = threading.Event()
    monkeypatch.setattr(found, "get", lambda key: answered.wait(30.0))
    store = kv.open_store(found, object())  # type: ignore[arg-type]
    assert store is not None
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        run_sync(store.get("x"))
    answered.set()


def test_the_first_container_makes_the_dict_of_its_volume(
    monkeypatch: pytest.MonkeyPatch, found: FakeDict, clock: Time
) -> None:
    class Volume:
        object_id = ""

        def hydrate(self) -> None:
            self.object_id = "vo-1"

    opened: list[tuple[str, bool]] = []

    def from_name(name: str, *, create_if_missing: bool = False) -> FakeDict:
        opened.append((name, create_if_missing))
        return found

    modal = SimpleNamespace(Volume=Volume, Dict=SimpleNamespace(from_name=from_name))
    monkeypatch.setitem(sys.modules, "modal", modal)
    store = kv.open_store("auto", Volume())  # type: ignore[arg-type]
    assert store is not None
    assert opened == [("weightcache-vo-1", True)]
    assert run_sync(store.put("x", 1, new=True))
    assert run_sync(store.get("x")) == 1


def test_waits_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, found: FakeDict, clock: Time) -> None:
    change_settings(monkeypatch, lease_poll=(1.0, 10.0))
    a, waits = lease(found, clock, "a"), []
    for _ in range(12):
        before = clock.time
        run_sync(a.wait([X]))
        waits.append(clock.time - before)
    assert waits[0] <= 1.0
    assert all(5.0 <= seconds <= 10.0 for seconds in waits[6:])
    assert (a.holder([X]), a.waited_for, a.waited) == ("", "", pytest.approx(sum(waits)))
