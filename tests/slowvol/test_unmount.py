"""A volume of benchmarks/slowvol never stays mounted, and says so where it cannot run."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import slowvol
from slow_volume import DATA, FAST, SHA256, digest, ended, mounted, wait_for_end
from slowvol import SlowVolume

# --- it never stays ---


def test_it_is_gone_after_the_block_even_where_a_file_is_open(backing: Path) -> None:
    with SlowVolume(backing, **FAST) as volume:
        fd = os.open(volume.path / "current.pt", os.O_RDONLY)
        assert mounted(volume.path)
    assert not mounted(volume.path)
    assert not volume.path.exists()
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    assert volume._daemon.returncode == 0  # it ended on its own, and was not killed
    volume.close()  # a second time does nothing


def test_it_is_gone_after_an_exception(backing: Path) -> None:
    with pytest.raises(ZeroDivisionError), SlowVolume(backing, **FAST) as volume:
        raise ZeroDivisionError
    assert not mounted(volume.path)


def test_it_outlives_the_thread_that_mounted_it(backing: Path) -> None:
    volume = SlowVolume(backing, **FAST)
    thread = threading.Thread(target=volume.__enter__)
    thread.start()
    thread.join()
    try:
        assert digest(volume.path / "current.pt") == SHA256
        volume.evict()
        assert digest(volume.path / "current.pt") == SHA256
    finally:
        volume.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_no_signal_to_its_process_leaves_a_mount(number: signal.Signals, backing: Path) -> None:
    with SlowVolume(backing, **FAST) as volume:
        end = ended(volume._daemon.pid)
        os.kill(volume._daemon.pid, number)
        wait_for_end(end)
        assert mounted(volume.path) == (number == signal.SIGKILL)
    assert not mounted(volume.path)


def test_an_order_to_a_process_that_was_killed_says_so(backing: Path) -> None:
    with SlowVolume(backing, **FAST) as volume:
        end = ended(volume._daemon.pid)
        volume._daemon.kill()
        wait_for_end(end)
        with pytest.raises(RuntimeError, match="ended with -9"):
            volume.evict()


def test_unmounting_it_by_hand_ends_its_process(backing: Path) -> None:
    with SlowVolume(backing, **FAST) as volume:
        end = ended(volume._daemon.pid)
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*command, volume.path], check=True)
        wait_for_end(end)
    assert not volume.path.exists()


PARENT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from slowvol import SlowVolume
volume = SlowVolume(sys.argv[2])
volume.__enter__()
"""


@contextlib.contextmanager
def parent(backing: Path, code: str) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """Start a process that mounts a volume and then does ``code``; yield it, the mount, and the end of its daemon."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT + textwrap.dedent(code), Path(slowvol.__file__).parents[1], backing],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        path, daemon = process.stdout.readline().split()
        yield process, Path(path), ended(int(daemon))
    finally:
        process.kill()
        process.communicate()


def test_it_is_gone_when_its_parent_was_killed(backing: Path) -> None:
    code = "print(volume.path, volume._daemon.pid, flush=True); signal.pause()"
    with parent(backing, code) as (process, path, end):
        fd = os.open(path / "current.pt", os.O_RDONLY)
        assert os.pread(fd, 1, 0) == DATA[:1]
        process.kill()
        wait_for_end(end)
        assert not mounted(path)
        with pytest.raises(OSError, match="not connected"):
            os.close(fd)


def test_it_is_gone_when_its_parent_was_killed_and_a_child_of_that_lives_on(backing: Path) -> None:
    # The child holds the daemon's standard input open, so the daemon does not see the parent's end there.
    code = """
    line = f"{volume.path} {volume._daemon.pid}"
    if os.fork() == 0:
        print(line, flush=True)
        sys.stdin.read()
        os._exit(0)
    signal.pause()
    """
    with parent(backing, code) as (process, path, end):
        process.kill()
        wait_for_end(end)
        assert not mounted(path)


def test_it_is_gone_when_its_process_ends_without_closing_it(backing: Path) -> None:
    code = "print(volume.path, volume._daemon.pid, flush=True); sys.stdin.read()"
    with parent(backing, code) as (process, path, end):
        process.communicate(timeout=60)
        assert process.returncode == 0
        wait_for_end(end)
        assert not mounted(path)
        assert not path.exists()


# --- where it cannot run ---


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slowvol, "BINARIES", tmp_path / "binaries")
    monkeypatch.setenv("PKG_CONFIG_LIBDIR", str(tmp_path))
    with pytest.raises(slowvol.UnavailableError, match="libfuse3-dev is not installed"):
        slowvol.build()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slowvol.UnavailableError, match="cc is not installed"):
        slowvol.build()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up what mounting needs")
def test_where_mounting_is_not_permitted_it_says_so(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import slowvol; print(slowvol.available())"
    told = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", code, Path(slowvol.__file__).parents[1]],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert "not permitted" in told.stdout
    assert list(tmp_path.glob("slowvol-*")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"block": 0},
        {"latency": -1.0},
        {"stream": 0.0},
        {"total": -1.0},
        {"total": math.nan},
        {"cache": "all"},
        {"readahead": 1000},
    ],
    ids=str,
)
def test_an_argument_out_of_its_range_is_refused(wrong: dict[str, Any], backing: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SlowVolume(backing, **wrong)
