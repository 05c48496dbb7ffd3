"""The states of a task exclude each other."""

from __future__ import annotations

from typing import Any

from weightcache._transfer.mirror_state import Mirror
from weightcache._transfer.segment_assignment import Task, TaskState
from weightcache._transfer.server_state import Server
from weightcache._transfer.transfer_types import ByteCounts, Segment


def task(*, on_disk: bool = False) -> Task[Any]:
    mirror = Mirror("http://h/a", Server("h", 24))
    return Task(None, ByteCounts(), mirror, Segment(0, 100, on_disk), 1.0, 0)


def test_a_request_waits_for_its_response_and_is_answered_until_it_ends() -> None:
    each = task()
    each.on_requested()
    assert (each.is_reading, each.is_answered) == (True, False)
    each.on_response()
    assert (each.is_reading, each.is_answered) == (True, True)
    each.on_block_complete()
    assert (each.is_reading, each.is_answered, each.is_writing) == (False, True, True)
    each.on_wait()
    assert (each.is_reading, each.is_answered, each.is_writing) == (False, True, False)
    each.end()
    assert not each.is_answered


def test_no_mirror_answers_what_is_read_from_the_disk() -> None:
    each = task(on_disk=True)
    each.on_room(2.0)
    assert (each.is_reading, each.is_answered, each.last_byte) == (True, False, 2.0)


def test_a_pause_outlasts_the_end_of_the_work() -> None:
    each = task()
    each.pause(each.mirror)
    each.end()
    assert each.state is TaskState.PAUSED
    assert each.mirror.is_paused
    assert each.resume()
    assert not each.mirror.is_paused
    assert not each.resume()


def test_a_block_that_is_written_can_be_revoked_only_afterwards() -> None:
    each = task()
    each.on_block_complete()
    each.revoke()
    assert (each.is_writing, each.revoked) == (True, True)
