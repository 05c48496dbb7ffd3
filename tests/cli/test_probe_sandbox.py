"""What the probe of a sandbox answers on this machine, where the answers are known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from weightcache.cli import probe_sandbox
from weightcache.cli.probe_sandbox import sandbox


@pytest.mark.skipif(sys.platform != "linux", reason="these are the answers of Linux")
def test_the_answers_of_this_machine(tmp_path: Path) -> None:
    found = sandbox(tmp_path)
    json.dumps(found)
    assert found["kernel"].startswith("Linux version ")
    assert (found["memfd_create"], found["pid_namespace_has_an_id"]) == ("ok", True)
    for place in ("on_the_volume", "on_its_own_disk"):
        assert found[place]["links_of_a_removed_file"] == 0
        assert found[place]["sync_file_range"] == "ok"
        assert found[place]["bytes_used_by_a_gap"] < probe_sandbox.GAP
        assert found[place]["symlink"] == "ok"
        assert found[place]["link_opened_without_following"] in ("ELOOP", "ENOTDIR")
        assert isinstance(found[place]["lease"], str)


def test_a_call_that_fails_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("os.memfd_create", refuse)
    assert sandbox(tmp_path)["memfd_create"] == "ENOSYS"


def test_a_refused_call_on_a_file_leaves_the_other_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)  # pathlib of Python 3.10 has its own os.symlink
    monkeypatch.setattr("os.ftruncate", refuse)
    monkeypatch.delattr("os.memfd_create", raising=False)
    found = sandbox(tmp_path)
    json.dumps(found)
    assert found["memfd_create"] == "AttributeError"
    for place in ("on_the_volume", "on_its_own_disk"):
        assert (found[place]["symlink"], found[place]["bytes_used_by_a_gap"]) == ("EPERM", "EPERM")
        assert found[place]["link_opened_without_following"] == "ENOENT"
        assert (found[place]["links_of_a_removed_file"], found[place]["sync_file_range"]) == (0, "ok")


def test_a_directory_that_cannot_be_made_is_an_answer(tmp_path: Path) -> None:
    found = sandbox(tmp_path / "missing")
    assert found["on_the_volume"] == "ENOENT"
    assert found["on_its_own_disk"]["links_of_a_removed_file"] == 0
