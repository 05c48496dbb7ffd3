"""When an idle connection takes over from a slow one, and what it takes. test_hedge.py does it on a real link."""

from __future__ import annotations

import pytest

from schedule import SIZE, Answer, answered, read, scheduler_of_a_file
from weightcache._runtime.tuning_constants import Settings
from weightcache._store.partial_directory import BLOCK
from weightcache._transfer.transfer_types import PART
from weightcache._transfer.work_stealing import Pace, hedge, steal

SETTINGS = Settings()


def test_all_but_the_next_block_of_a_slow_connection_is_stolen() -> None:
    scheduler = scheduler_of_a_file()
    slow = answered(scheduler)
    read(scheduler, slow, 100_000, 9.9)
    assert slow.segment.end == PART
    taken = steal([slow], Pace(latency=0.05, rate=1e6), 10.0, SETTINGS, pending=False)
    assert taken is not None
    assert (slow.segment.end, slow.revoked) == (2 * BLOCK, False)
    assert (taken.segment.start, taken.segment.end) == (2 * BLOCK, PART)


def test_a_connection_at_the_usual_rate_keeps_its_segment_while_there_is_other_work() -> None:
    scheduler = scheduler_of_a_file()
    usual = answered(scheduler)
    read(scheduler, usual, 500_000, 9.9)
    assert steal([usual], Pace(latency=0.05, rate=1e5), 10.0, SETTINGS, pending=True) is None
    assert usual.segment.end == PART


@pytest.mark.parametrize(("now", "is_hedged"), [(7.9, False), (8.1, True)])
def test_a_block_may_take_eight_times_the_latency(now: float, is_hedged: bool) -> None:
    scheduler = scheduler_of_a_file()
    task = answered(scheduler)
    read(scheduler, task, 1000, 0.1)
    found = hedge([task], Pace(latency=1.0, rate=1e6), now, SETTINGS)
    assert (found is not None) is is_hedged
    assert task.rival is found


@pytest.mark.parametrize(("seconds", "is_replaced"), [(15.9, False), (16.1, True)])
def test_a_slow_hedge_is_replaced_after_twice_that_time(seconds: float, is_replaced: bool) -> None:
    """Each next one gets twice the time again: if all are slow, none must be replaced."""
    scheduler, pace = scheduler_of_a_file(), Pace(latency=1.0, rate=1e6)
    task = answered(scheduler)
    read(scheduler, task, 1000, 0.1)
    first = hedge([task], pace, 10.0, SETTINGS)
    assert first is not None
    scheduler.tasks.add(first)
    read(scheduler, first, 10, 11.0)
    found = hedge([task], pace, 10.0 + seconds, SETTINGS)
    assert (found is not None) is is_replaced
    assert first.revoked is is_replaced


def test_a_response_with_the_whole_file_is_not_taken_over() -> None:
    """A server without ranges that pauses would send the same bytes again to each connection that takes over."""
    scheduler, pace = scheduler_of_a_file(), Pace(latency=0.05, rate=1e6)
    scheduler.parallel, scheduler.allowed = True, 4
    first, second = scheduler.assign(0.0), scheduler.assign(0.0)
    assert first is not None
    assert second is not None
    scheduler.release(first, 0.0)
    response = Answer(second)
    response.offset = 0
    assert scheduler.on_response(second, response, 0.0)
    assert (second.segment.start, second.segment.end) == (0, SIZE)
    read(scheduler, second, 1000, 0.1)
    assert steal([second], pace, 1000.0, SETTINGS, pending=False) is None
    assert hedge([second], pace, 1000.0, SETTINGS) is None


def test_the_pace_follows_what_is_new_by_a_quarter() -> None:
    pace = Pace(latency=1.0)
    pace.on_response(5.0)
    assert pace.latency == 2.0
    pace.on_segment(100.0)
    assert pace.rate == 100.0  # the first one is all that is known
    pace.on_segment(200.0)
    assert pace.rate == 125.0
