"""What `doctor` does with a manifest of a stranger: its work and its words grow with the manifest, and no faster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compared import Compared
from weightcache.cli import doctor
from weightcache.cli.doctor import _copies_in_image, _tokens


class Using:
    """A checkpoint that counts how often its variables are asked for."""

    def __init__(self, number: int, variables: tuple[str, ...]) -> None:
        self.name, self._variables, self.asked = f"c{number:03}{'x' * 90}", variables, 0

    @property
    def variables(self) -> tuple[str, ...]:
        self.asked += 1
        return self._variables


def test_many_checkpoints_that_need_many_variables() -> None:
    checkpoints: list[Any] = [Using(number, tuple(f"V{each}" for each in range(100))) for number in range(300)]
    found = [*_tokens(checkpoints)]
    assert len(found) == 100
    assert {each.asked for each in checkpoints} == {1}
    assert max(len(each.text) for each in found) < 1300
    assert f"{checkpoints[9].name} and 290 more needs it" in found[0].text


def test_each_file_of_the_image_is_compared_with_the_declared_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.os, "walk", lambda start: [(start, [], [f"g{number}" for number in range(200)])])
    names = [Compared(f"f{number}") for number in range(200)]
    files = [SimpleNamespace(path=SimpleNamespace(rpartition=lambda _, n=name: ("", "", n)), size=5) for name in names]
    checkpoint: Any = SimpleNamespace(files=files)
    layout: Any = SimpleNamespace(root=str(tmp_path))
    Compared.count = 0
    assert _copies_in_image(layout, [checkpoint]).ok
    assert Compared.count < 1000
