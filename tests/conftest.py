"""Fixtures: a real origin, an empty root, and short waits instead of long ones."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hub import Hub, isolated_client
from origin import Origin
from support import change_settings, forbidden
from trained import DATA, FILES, write
from weightcache.cli.main import main

if TYPE_CHECKING:
    from control_plane import ControlPlane

# Tests that need an environment of their own: `make test` runs those of the example in its environment, after the
# others, and those of the site in .venv, which has the extra `docs`.
NEEDS = {"example": "groundingdino", "site": "sphinx"}
collect_ignore = [folder for folder, package in NEEDS.items() if find_spec(package) is None]

# A shell starts a command in the background (`make test &`) with SIGINT ignored, and every child inherits that: Python
# then raises no KeyboardInterrupt, and a test that interrupts a child waits until it times out. With a handler set
# here, children start with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Coverage measures the processes that run the tests. In each program that a test starts, it would take a fifth of a
# second of CPU time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.fixture(autouse=True, scope="module")
def same_log_level() -> Iterator[None]:
    """A module that leaves the library silent would hide the log from other tests, in another order each time."""
    yield
    assert (logging.getLogger("weightcache").level, logging.root.manager.disable) == (logging.NOTSET, logging.NOTSET)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waits = {
        "backoff": 0.001,
        "backoff_max": 0.01,
        "refusal_timeout": 0.0,
        "connect_timeout": 5.0,
        "stall_timeout": 5.0,
    }
    change_settings(monkeypatch, tries=3, volume_backoff=(0.001, 0.001), **waits)
    for name in ("MODAL_TASK_ID", "MODAL_IS_REMOTE", "WEIGHTCACHE_ROOT", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))  # else the token of the user is found
    local = tmp_path / "local"  # the container's own disk, one for each test
    local.mkdir()
    monkeypatch.setenv("TMPDIR", str(local))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no connection be called slow, whatever this machine is busy with: for tests that count what was sent."""
    change_settings(monkeypatch, slow_after=60.0)


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


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line in an empty directory: ``run("add", …)`` returns code, stdout and stderr."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words: Any) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server, isolated_client(tmp_path / "hf"):
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield server


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """Modal's server, for its real client; `namespaces` as well if it starts containers."""
    from control_plane import ControlPlane  # not at the top: it imports modal, which most tests do without

    with ControlPlane(tmp_path / "plane") as server:
        yield server


@pytest.fixture
def namespaces() -> None:
    """Skip the test if this machine allows no mounts of its own to a container."""
    from control_plane import needs_namespaces

    needs_namespaces()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A file, as training leaves it."""
    path = tmp_path / "out" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory, as training leaves it."""
    return write(tmp_path / "run", FILES)
