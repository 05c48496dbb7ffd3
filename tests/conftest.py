"""Fixtures: a real origin, an empty root, and short waits instead of long ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from origin import Origin
from support import forbidden
from weightcache import _fetch, _http, _volume

if find_spec("groundingdino") is None:
    collect_ignore = ["fashion"]  # it needs the example's own environment: `make test` runs it there, after the others


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_fetch, "RETRIES", _fetch.Retries(tries=3, base=0.001, cap=0.01, refusals=0.0))
    monkeypatch.setattr(_http, "TIMEOUTS", _http.Timeouts(connect=5.0, stall=5.0))
    monkeypatch.setattr(_volume, "BACKOFF", (0.001, 0.001))
    for name in ("MODAL_TASK_ID", "MODAL_IS_REMOTE", "WEIGHTCACHE_ROOT", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))  # else the token of who runs the tests is found
    local = tmp_path / "local"  # the container's own disk, one for each test
    local.mkdir()
    monkeypatch.setenv("TMPDIR", str(local))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no connection be called slow, whatever this machine is busy with: for tests that count what was sent."""
    monkeypatch.setattr("weightcache._schedule.PROBATION", 60.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


@pytest.fixture
def mirror() -> Iterator[Origin]:
    """A second origin; another port is another host to the rules that matter here."""
    with Origin() as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], capture_output=True, check=False)
    if made.returncode:
        forbidden(f"cannot mount a tmpfs: {made.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", path], check=True)
