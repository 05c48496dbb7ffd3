"""A few points of the push campaign, and what its judge finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from errno_injection import BrokenError
from push_campaign import Push, PushWorld, push_world


@pytest.fixture(scope="module")
def world() -> Iterator[PushWorld]:
    with push_world() as found:
        yield found


@pytest.mark.parametrize("version", [1, 2])
def test_a_push_that_ends_in_the_middle(world: PushWorld, version: int) -> None:
    push = Push("damaged", version)
    middle = world.calls(push) // 2
    assert world.attempt(push._replace(call=middle, after=True)) in ("send", "connect")
    assert world.attempt(push._replace(call=10_000)) == ""  # it has not so many calls


def test_wrong_bytes_beside_a_receipt_are_found(world: PushWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"a": {"a.bin": b"other"}, "d": {}}
    monkeypatch.setattr("push_campaign.FILES", wrong)
    with pytest.raises(BrokenError, match="wrong bytes"):
        world.attempt(Push("empty", 1, 10_000))


def test_a_point_can_be_written_down_and_read_again() -> None:
    point = Push("damaged", 2, 17, after=True)
    assert str(point) == "push damaged 2 17 after"
    assert Push.parse("damaged 2 17 after") == point
