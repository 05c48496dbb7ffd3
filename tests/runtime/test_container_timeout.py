"""What Modal leaves to a call, as the real client's protocol says it."""

from __future__ import annotations

from pathlib import Path

import modal
import pytest
from modal_proto import api_pb2

from weightcache._runtime import container_timeout
from weightcache._runtime.container_timeout import TimeLimit, modal_time_limit
from weightcache._runtime.process_start import process_age


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    function = api_pb2.Function(timeout_secs=60, startup_timeout_secs=900)
    path = tmp_path / "arguments"
    path.write_bytes(api_pb2.ContainerArguments(function_def=function).SerializeToString())
    monkeypatch.setenv("MODAL_CONTAINER_ARGUMENTS_PATH", str(path))
    monkeypatch.setattr(container_timeout, "process_age", lambda: 100.0)
    return path


def test_while_a_container_starts(arguments: Path) -> None:
    assert modal_time_limit() == TimeLimit(800.0, "startup_timeout", 100.0)


def test_while_it_handles_an_input(arguments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modal, "current_input_id", lambda: "in-1")
    assert modal_time_limit() == TimeLimit(60, "timeout")


def test_a_thread_beside_the_inputs_has_no_limit(arguments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_timeout, "process_age", lambda: 901.0)
    assert modal_time_limit() is None


def test_what_cannot_be_read_is_no_limit(arguments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments.write_bytes(b"\xff\xff another format")
    assert modal_time_limit() is None
    arguments.unlink()
    assert modal_time_limit() is None
    monkeypatch.delenv("MODAL_CONTAINER_ARGUMENTS_PATH")
    assert modal_time_limit() is None


def test_the_age_of_a_process() -> None:
    assert 0.0 < (process_age() or 0.0) < 24 * 3600
