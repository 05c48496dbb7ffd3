"""A process is forked while the library is at work in another thread: multiprocessing's way on Linux up to 3.13."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import blob, child, finish, one, sha256, until
from weightcache import ensure, prune, publish, verify
from weightcache._coordination import lock as coordination_lock
from weightcache._runtime import owned_descriptors
from weightcache._runtime.owned_descriptors import Descriptor, opened

DATA = blob((3 << 20) + 7)

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@contextmanager
def forked(work: Callable[[], int | None] | None = None) -> Iterator[int]:
    """Fork a child that lives until the block ends, after it has done ``work``."""
    told, tell = os.pipe()
    process = os.fork()
    if not process:
        os.close(told)
        code = 1
        try:
            signal.alarm(60)
            code = (work() if work else 0) or 0
        finally:
            os.write(tell, bytes([code]))
            signal.pause()
            os._exit(0)
    os.close(tell)
    try:
        assert os.read(told, 1) == b"\0"
        yield process
    finally:
        os.close(told)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def open_below(process: int | str, *folders: Path | str) -> list[str]:
    """What a process has open below some folders."""
    found = []
    for number in os.listdir(f"/proc/{process}/fd"):
        try:
            target = os.readlink(f"/proc/{process}/fd/{number}")
        except OSError:
            continue
        if any(target.startswith(f"{folder}/") for folder in folders):
            found.append(target)
    return found


class Stops:
    """Lets one call of ``os`` stop in another thread, for each path that it is about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, matches: Callable[[Any], bool]) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        real = getattr(os, name)

        def call(first: Any, *rest: Any, **more: Any) -> Any:
            if matches(first) and not self.reached.is_set():
                self.reached.set()
                assert self.go_on.wait(60)
            return real(first, *rest, **more)

        monkeypatch.setattr(os, name, call)


def is_open_as(ending: str) -> Callable[[Any], bool]:
    return lambda number: os.readlink(f"/proc/self/fd/{number}").endswith(ending)


class InThread:
    """Runs something in another thread, and gives what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: list[Any] = []
        self.thread = threading.Thread(target=lambda: self.result.append(work()))
        self.thread.start()

    def end(self) -> Any:
        self.thread.join(60)
        return self.result[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize(
    ("call", "where"),
    [
        ("pwrite", "data"),  # the partial, its journal, the source of a file: URL
        ("fsync", "data"),
        ("readv", "source"),
    ],
)
def test_a_child_keeps_nothing_of_a_download(
    call: str, where: str, source: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = Stops(monkeypatch, call, is_open_as(sha256(DATA) if where == "data" else "/source"))
    manifest = one(DATA, f"file://{source}")
    filling = InThread(lambda: ensure(manifest, root=root, progress=False))
    assert stops.reached.wait(60)
    assert open_below("self", root)
    assert [path for path in open_below("self", tmp_path / "local") if path.endswith(".lock")]
    with forked() as process:
        assert open_below(process, root, tmp_path) == []
        stops.go_on.set()
        assert filling.end()["sam2"].read_bytes() == DATA


@pytest.mark.parametrize("what", ["verify", "publish", "adopt"])
def test_a_child_keeps_nothing_that_is_hashed(
    what: str, source: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = one(DATA, f"file://{source}")
    ensure(manifest, root=root, progress=False)
    work: dict[str, Callable[[], object]] = {
        "verify": lambda: verify(manifest, root=root),
        "publish": lambda: publish(source, name="made", root=root),
        "adopt": lambda: ensure(manifest, root=root, progress=False, rehash=True),
    }
    stops = Stops(monkeypatch, "readv", lambda _: True)
    hashing = InThread(work[what])
    assert stops.reached.wait(60)
    assert open_below("self", tmp_path)
    with forked() as process:
        assert open_below(process, root, tmp_path) == []
        stops.go_on.set()
        assert hashing.end()


def test_a_child_does_not_hold_the_lock_of_its_parent(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's lock belongs to the open file, which a child that keeps it shares."""
    stops = Stops(monkeypatch, "pwrite", lambda _: True)
    filling = InThread(lambda: ensure(one(DATA, f"file://{source}"), root=root, progress=False))
    assert stops.reached.wait(60)
    with forked():
        stops.go_on.set()
        filling.end()
        code = "print(ensure(json.loads(sys.argv[1]), root=sys.argv[2], rehash=True, wait=5).report['sam2'].outcome)"
        assert finish(child(code, json.dumps(one(DATA)), str(root))) == "hit\n"


def test_a_child_works_while_its_parent_is_at_work(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock of a thread that is not there is waited for; the lock between processes is."""
    stops = Stops(monkeypatch, "pwrite", lambda _: True)
    manifest = one(DATA, f"file://{source}")
    filling = InThread(lambda: ensure(manifest, root=root, progress=False))
    assert stops.reached.wait(60)

    def work() -> int:
        other = root.parent / "other"
        cold = ensure(manifest, root=other, progress=False)["sam2"].read_bytes() == DATA
        prune(manifest, root=other, dry_run=False)
        return 0 if cold and [each.state for each in verify(manifest, root=other)] == ["ready"] else 2

    with forked(work):
        stops.go_on.set()
        assert filling.end()["sam2"].read_bytes() == DATA


def test_a_child_waits_for_its_parent(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = Stops(monkeypatch, "pwrite", lambda _: True)
    manifest = one(DATA, f"file://{source}")
    filling = InThread(lambda: ensure(manifest, root=root, progress=False))
    assert stops.reached.wait(60)
    told, tell = os.pipe()
    process = os.fork()
    if not process:
        code = 1
        try:
            signal.alarm(60)
            tick = coordination_lock.LockWait.poll
            monkeypatch.setattr(
                coordination_lock.LockWait, "poll", lambda waiting: (os.write(tell, b"."), tick(waiting))
            )
            code = 0 if ensure(manifest, root=root, progress=False).report["sam2"].outcome == "waited" else 2
        finally:
            os._exit(code)
    assert os.read(told, 1) == b"."  # it has come to the lock
    os.close(told)
    os.close(tell)
    stops.go_on.set()
    filling.end()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_a_fork_waits_until_a_file_is_open_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the system call and Python's return nobody knows the number, but a child would have it."""
    real, inside = os.open, threading.Event()

    def slow(path: str, *rest: Any, **more: Any) -> int:
        number = real(path, *rest, **more)
        if path == str(tmp_path / "file"):
            inside.set()
            for _ in range(50):
                threading.Event().wait(0.001)  # lets the other thread fork, if it does not wait
        return number

    monkeypatch.setattr(os, "open", slow)
    held = list[Descriptor]()
    thread = threading.Thread(target=lambda: held.append(opened(str(tmp_path / "file"), os.O_CREAT)))
    thread.start()
    assert inside.wait(60)
    with forked() as process:
        assert open_below(process, tmp_path) == []
    thread.join(60)
    assert open_below("self", tmp_path) == [str(tmp_path / "file")]
    held[0].close()


def test_a_fork_does_not_wait_for_a_volume_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owned_descriptors, "FORK_TIMEOUT", 0.01)
    hanging = Descriptor()
    hanging.busy = -1  # a thread that is inside a call
    with forked():
        hanging.busy = 0


def test_a_child_of_a_hit_keeps_no_receipt(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = one(DATA, f"file://{source}")
    ensure(manifest, root=root, progress=False)
    code = """
    import os, signal, threading, weightcache._store.inspect as look, warnings
    warnings.simplefilter("ignore")
    class Slow(set):
        def add(self, stream):
            super().add(stream)
            if stream.name.endswith(".json"):
                inside.set(); go_on.wait(60)
    look._reading, inside, go_on = Slow(), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: ensure(json.loads(sys.argv[1]), root=sys.argv[2]))
    thread.start()
    inside.wait(60)
    child = os.fork()
    if not child:
        numbers = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
        os._exit(any(os.path.realpath(number).startswith(sys.argv[2]) for number in numbers))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go_on.set(); thread.join(60)
    print(code)
    """
    assert finish(child(code, json.dumps(manifest), str(root))) == "0\n"


def test_a_descriptor_closes_only_what_it_opened(tmp_path: Path) -> None:
    file = opened(str(tmp_path / "file"), os.O_CREAT | os.O_WRONLY)
    number = file.number
    file.write(b"abc")
    file.close()
    other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, number) if other != number else None
    file.close()
    file.close_quietly()
    del file
    os.fstat(number)
    os.close(number)
    if other != number:
        os.close(other)
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_a_download_over_http_leaves_no_file_in_a_child(origin: Origin, root: Path) -> None:
    """As `multiprocessing` does it, in the middle of a download that is paused by its server."""
    reached, go_on = threading.Event(), threading.Event()
    resource = origin.put("/a", DATA)

    def pause(sent: int) -> None:
        if sent > 1 << 20:
            reached.set()
            go_on.wait(60)

    resource.on_sent = pause
    filling = InThread(lambda: ensure(one(DATA, origin.url("/a")), root=root, progress=False))
    assert reached.wait(60)
    until(lambda: bool(open_below("self", root)))
    with forked() as process:
        assert open_below(process, root, root.parent / "local") == []
        go_on.set()
        assert filling.end()["sam2"].read_bytes() == DATA
