"""Whether link counts of open files are right: gVisor keeps a count of one for a file that has no name any more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from weightcache._runtime import link_count_check
from weightcache._runtime.link_count_check import link_counts_are_right


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    link_counts_are_right.cache_clear()


def test_it_says_what_an_open_file_without_a_name_shows(tmp_path: Path) -> None:
    path = tmp_path / "removed"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    assert link_counts_are_right(str(tmp_path)) is (os.fstat(descriptor).st_nlink == 0)
    os.close(descriptor)
    assert list(tmp_path.iterdir()) == [tmp_path / "local"]


def test_a_count_that_stays_at_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def kept(descriptor: int) -> os.stat_result:
        found = list(real(descriptor))
        found[3] = 1  # st_nlink
        return os.stat_result(found)

    monkeypatch.setattr(link_count_check.os, "fstat", kept)
    assert link_counts_are_right(str(tmp_path)) is False


def test_where_no_file_can_be_made_nothing_is_known(tmp_path: Path) -> None:
    assert link_counts_are_right(str(tmp_path / "missing")) is False


def test_it_is_asked_once_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = link_counts_are_right(str(tmp_path))

    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(link_count_check, "opened", fail)
    assert link_counts_are_right(str(tmp_path)) is said
