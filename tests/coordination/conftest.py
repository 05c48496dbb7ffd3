"""Fixtures: the Dict and the clock of a lease."""

from __future__ import annotations

import pytest

from lease_dict import FakeDict, Time


@pytest.fixture
def found() -> FakeDict:
    return FakeDict()


@pytest.fixture
def clock() -> Time:
    return Time()
