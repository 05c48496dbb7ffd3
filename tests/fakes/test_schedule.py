"""The fakes of the scheduler's tests: an empty partial without a disk, and an answer with the bounds of its segment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from schedule import SIZE, Answer, Nowhere
from weightcache._transfer.transfer_types import PART


def test_the_partial_is_empty() -> None:
    partial = Nowhere()
    partial.open()
    assert partial.present() == {}


def test_an_answer_covers_what_its_task_asked_for() -> None:
    task: Any = SimpleNamespace(segment=SimpleNamespace(position=PART, end=3 * PART))
    answer = Answer(task)
    assert (answer.offset, answer.end, answer.total) == (PART, 3 * PART, SIZE)
    with pytest.raises(NotImplementedError):
        answer.read_into(memoryview(bytearray(1)))
    answer.close()
