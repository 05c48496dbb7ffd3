"""What is written goes to the disk during the download; an error of that is one of the download."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from origin import Origin
from support import blob, in_gvisor, one, partials, quiet, sha256, until, visible
from weightcache import StorageError, aensure, publish
from weightcache._store import partial_file, writeback
from weightcache._store.partial_directory import BLOCK
from weightcache._store.writeback import WAIT_BEFORE, WRITE, WriteBack

DATA = blob(9 * BLOCK + 5)
STEP = 2 * BLOCK


class Calls:
    """Stands in the place of the system call: records each one, and what it is to answer instead of 0."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.answers: dict[int, int] = {}  # number of the call -> errno
        self.hold = self.held = None  # type: threading.Event | None
        self.file = ""

    def sync_file_range(self, descriptor: int, flags: int) -> int:
        self.file = os.readlink(f"/proc/self/fd/{descriptor}")
        self.made.append({WRITE: "write", WAIT_BEFORE | WRITE: "wait, write"}[flags])
        if self.hold and self.held:
            self.held.set()
            assert self.hold.wait(30)
        return self.answers.get(len(self.made), 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    recorded, fsync = Calls(), os.fsync

    def recording(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == recorded.file:
            recorded.made.append("fsync")
        fsync(descriptor)

    monkeypatch.setattr(writeback, "STEP", STEP)
    monkeypatch.setattr(writeback, "_sync_file_range", recorded.sync_file_range)
    monkeypatch.setattr(os, "fsync", recording)
    return recorded


def held_in(root: Path) -> list[str]:
    """Return the files below ``root`` that this process has open."""
    held = []
    for each in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink(f"/proc/self/fd/{each}"))
        except FileNotFoundError:
            continue  # that of the listing
    return [path for path in held if path.startswith(f"{root}/")]


def test_the_bytes_go_to_the_disk_while_the_rest_comes(origin: Origin, root: Path, calls: Calls) -> None:
    origin.put("/a", DATA)
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    # Each step is handed over, and waits for the one before; the last bytes are left to the fsync.
    assert calls.made == ["write", "wait, write", "wait, write", "wait, write", "fsync"]


def test_a_copy_goes_to_the_disk_while_the_rest_is_read(tmp_path: Path, root: Path, calls: Calls) -> None:
    (tmp_path / "made.bin").write_bytes(DATA)
    publish(tmp_path / "made.bin", name="made", root=root)
    assert calls.made == ["write", "wait, write", "wait, write", "wait, write", "fsync"]


def test_a_small_file_pays_for_its_fsync_alone(origin: Origin, root: Path, calls: Calls) -> None:
    small = DATA[: STEP - 1]
    origin.put("/a", small)
    quiet(one(small, origin.url("/a")), root)
    assert calls.made == []


@pytest.mark.parametrize(("number", "code"), [(1, errno.ENOSPC), (2, errno.EIO), (3, errno.EDQUOT), (2, errno.EINVAL)])
@pytest.mark.usefixtures("one_connection")
def test_an_error_of_the_disk_is_one_of_the_download(
    origin: Origin, root: Path, calls: Calls, number: int, code: int
) -> None:
    """It may be the only time that the kernel reports it: the fsync would succeed."""
    origin.put("/a", DATA)
    calls.answers[number] = code
    with pytest.raises(StorageError) as caught:
        quiet(one(DATA, origin.url("/a")), root)
    assert caught.value.errno == code
    assert str(root) in caught.value.path
    assert calls.made.count("fsync") == 0
    assert visible(root) == []
    assert held_in(root) == []
    calls.answers.clear()
    calls.made.clear()
    report = quiet(one(DATA, origin.url("/a")), root).report["sam2"]
    assert report.bytes_fetched == len(DATA)  # which blocks the disk has is not known: none of them is believed


@pytest.mark.usefixtures("one_connection")
def test_no_block_is_believed_either_where_the_journal_cannot_say_so(
    origin: Origin, root: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", DATA)
    calls.answers[2] = errno.EIO

    def full(sha256: str) -> bytes:
        raise OSError(errno.ENOSPC, "No space")

    with monkeypatch.context() as patch:
        patch.setattr(partial_file, "wiped_line", full)
        with pytest.raises(StorageError):
            quiet(one(DATA, origin.url("/a")), root)
    assert [path.stat().st_size for path in partials(root)[0].iterdir() if path.name == sha256(DATA)] == [0]
    calls.answers.clear()
    assert quiet(one(DATA, origin.url("/a")), root).report["sam2"].bytes_fetched == len(DATA)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_no_block_is_believed_after_an_fsync_that_failed(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Linux calls the pages clean then: they would pass every checksum, and the next fsync would succeed."""
    small = DATA[: STEP - 1]
    origin.put("/a", small)
    real, failures = os.fsync, [code]

    def fsync(descriptor: int) -> None:
        if failures and sha256(small) in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(failures.pop(), "the disk failed")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError) as caught:
        quiet(one(small, origin.url("/a")), root)
    assert caught.value.errno == code
    assert visible(root) == []
    assert quiet(one(small, origin.url("/a")), root).report["sam2"].bytes_fetched == len(small)


@pytest.mark.parametrize(
    ("number", "code"),
    [(1, errno.ENOSYS), (1, errno.EINVAL), (1, errno.EOPNOTSUPP), (1, errno.EPERM), (2, errno.ENOSYS)],
)
def test_where_the_system_cannot_do_it_the_fsync_does(
    origin: Origin, root: Path, calls: Calls, number: int, code: int
) -> None:
    """The second call is where gVisor says so: it does not know how to wait."""
    origin.put("/a", DATA)
    calls.answers[number] = code
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert calls.made == [*["write", "wait, write"][:number], "fsync"]


def test_a_python_without_ctypes_or_a_library_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (None, type("ctypes", (), {"CDLL": lambda *_, **__: object()})):
        monkeypatch.setitem(__import__("sys").modules, "ctypes", module)
        writeback._system_call.cache_clear()
        assert writeback._sync_file_range(0, WRITE) == errno.ENOSYS
    monkeypatch.undo()
    writeback._system_call.cache_clear()


def test_the_call_is_the_systems_own(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as stream:
        stream.write(b"a")
        stream.flush()
        assert writeback._sync_file_range(stream.fileno(), WRITE) == 0
        waited = writeback._sync_file_range(stream.fileno(), WAIT_BEFORE | WRITE)
        assert waited == (errno.ENOSYS if in_gvisor() else 0)
        assert writeback._sync_file_range(stream.fileno(), 64) == errno.EINVAL
    assert writeback._sync_file_range(-1, WRITE) == errno.EBADF


def started(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_nobody_runs_further_ahead_of_a_slow_disk(tmp_path: Path, calls: Calls) -> None:
    calls.held, calls.hold = threading.Event(), threading.Event()
    with open(tmp_path / "a", "wb") as stream:
        behind = WriteBack()
        threads = [started(lambda: behind.wrote(stream.fileno(), STEP)) for _ in range(3)]
        assert calls.held.wait(30)
        threads[2].join(0.1)
        assert all(thread.is_alive() for thread in threads)
        assert len(calls.made) == 1
        calls.hold.set()
        for thread in threads:
            thread.join(30)
    assert calls.made == ["write", "wait, write", "wait, write"]


def test_a_cancel_in_the_middle_ends_it_and_nothing_goes_on(origin: Origin, root: Path, calls: Calls) -> None:
    origin.put("/a", DATA)
    calls.held, calls.hold = threading.Event(), threading.Event()

    async def cancelled() -> None:
        task = asyncio.create_task(aensure(one(DATA, origin.url("/a")), root=root, progress=False))
        assert await asyncio.to_thread(calls.held.wait, 30)  # type: ignore[union-attr]
        task.cancel()
        calls.hold.set()  # type: ignore[union-attr]
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    made = list(calls.made)
    assert held_in(root) == []
    assert not made.count("fsync")
    assert len(partials(root)) == 1
    quiet(one(DATA, origin.url("/a")), root)
    assert calls.made[: len(made)] == made


def test_a_child_that_is_forked_meanwhile_does_not_wait(origin: Origin, root: Path, calls: Calls) -> None:
    origin.put("/a", DATA)
    calls.held, calls.hold = threading.Event(), threading.Event()
    thread = started(lambda: quiet(one(DATA, origin.url("/a")), root))
    assert calls.held.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads is dangerous is the point
        child = os.fork()
    if not child:
        calls.hold = calls.held = None
        with open(root.parent / "child", "wb") as stream:
            WriteBack().wrote(stream.fileno(), STEP)
        os._exit(0)
    until(lambda: os.waitpid(child, os.WNOHANG)[0] == child)
    calls.hold.set()
    thread.join(30)
    assert visible(root)
