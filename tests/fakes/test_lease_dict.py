"""The fake Dict behaves as Modal's does, fails before or after an operation, and its clock moves with sleeps."""

from __future__ import annotations

import asyncio

import pytest

from lease_dict import FakeDict, Time


def test_put_get_and_pop() -> None:
    found = FakeDict()
    assert found.get("a/head") is None
    assert found.put("a/head", 1, skip_if_exists=True)
    assert not found.put("a/head", 2, skip_if_exists=True)
    assert found.get("a/head") == 1
    assert found.put("a/head", 2)
    assert found.pop("a/head") == 2
    with pytest.raises(KeyError, match="a/head"):
        found.pop("a/head")
    assert found.log == [f"{name} head" for name in ("get", "put", "put", "get", "put", "pop", "pop")]


@pytest.mark.parametrize(("fault", "kept"), [("before", {}), ("after", {"a": 1})])
def test_a_fault_comes_once_before_or_after_the_operation(fault: str, kept: dict[str, int]) -> None:
    found = FakeDict()
    found.faults = [fault]
    with pytest.raises(ConnectionError):
        found.put("a", 1)
    assert dict(found) == kept
    assert found.put("a", 3)


def test_the_clock_moves_with_sleeps_alone() -> None:
    clock = Time()
    before = clock.now()
    asyncio.run(clock.sleep(2.5))
    assert clock.now() == before + 2.5
