"""One value for all limits and waits, handed down from the entry of a call."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

import weightcache
from weightcache._runtime.tuning_constants import DEFAULT, Settings


def test_no_field_can_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        DEFAULT.tries = 1  # type: ignore[misc]


def test_every_field_is_described() -> None:
    described = re.findall(r"^ +(\w+): ", Settings.__doc__ or "", re.MULTILINE)
    assert described == [field.name for field in fields(Settings)]


def test_the_default_is_handed_down_to_the_download() -> None:
    package = Path(weightcache.__file__).parent / "_transfer"
    assert not [path.name for path in package.glob("*.py") if "settings.DEFAULT" in path.read_text()]
