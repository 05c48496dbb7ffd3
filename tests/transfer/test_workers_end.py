"""Many connections end: with a failed download, an interrupt, the interpreter, or too few threads."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import weightcache
from origin import Exchange, Origin, broken
from origin import status as answer
from schedule import answered, read, scheduler_of_a_file
from support import MB, PRELUDE, blob, child, finish, one, partials, quiet, until, visible
from weightcache import DownloadError
from weightcache._runtime.cancel import Cancel
from weightcache._store.partial_directory import BLOCK
from weightcache._transfer.shared_state import WorkerState
from weightcache._transfer.workers import Connection, Hasher

DATA = blob(40 * MB)
SLOW = 8e6  # bytes a second for each connection


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("weightcache")]


def test_the_end_of_a_failed_download_ends_its_threads(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", DATA, rate=SLOW)
    origin.put("/b", DATA, always=answer(404))
    manifest = one(DATA, origin.url("/a"))
    manifest["checkpoints"]["b"] = {**one(blob(5, 3), origin.url("/b"))["checkpoints"]["sam2"]}
    with pytest.raises(DownloadError, match="b: no mirror delivered"):
        quiet(manifest, root)
    assert threads() == []
    monkeypatch.setattr(
        "weightcache._store.partial_directory.os.pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space"))
    )
    with pytest.raises(weightcache.StorageError):
        quiet(one(DATA, origin.url("/a")), root / "b")
    assert threads() == []


def test_an_error_that_is_kept_keeps_no_connection(origin: Origin, root: Path) -> None:
    """Its traceback refers to the download, and so to its pool of connections."""
    origin.put("/a", b"other bytes", faults=[broken(at=5, reset=True)], length=False)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(DownloadError) as kept:
        quiet(one(b"right bytes", origin.url("/a"), size=False), root)
    until(lambda: set(os.listdir("/proc/self/fd")) <= before)
    assert kept.value.attempts


INTERRUPTED = """
import threading, time
try:
    ensure(json.loads(sys.argv[1]), root=sys.argv[2], progress=False)
except KeyboardInterrupt:
    ended = time.monotonic()
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    print(json.dumps([ended, [target for target in targets if target.startswith(sys.argv[2])]]))
"""


@pytest.mark.parametrize("where", ["in the body", "before the answer"])
def test_a_keyboard_interrupt_ends_it_within_a_second(where: str, origin: Origin, root: Path) -> None:
    import json

    reached = threading.Event()

    def watch(sent: int) -> None:
        if sent > (40 if where == "in the body" else 5) * MB and origin.busy() >= 16:
            resource.rate = 1e4  # it must not end before the interrupt comes, however busy this machine is
            reached.set()

    def silent(exchange: Exchange) -> None:
        exchange.origin.stopping.wait()

    data = blob(100 * MB)
    resource = origin.put("/a", data, rate=4e6, on_sent=watch)
    if where == "before the answer":
        resource.faults = [None, None, None, *[silent] * 30]
    process = child(INTERRUPTED, json.dumps(one(data, origin.url("/a"))), str(root))
    assert reached.wait(60)
    sent = time.monotonic()  # the same clock in both processes
    process.send_signal(signal.SIGINT)
    ended, still_open = json.loads(finish(process))
    assert ended - sent < 1.0
    assert still_open == []
    assert len(partials(root)) == 1
    resource.faults, resource.on_sent, resource.rate = [], None, 0.0
    weights = quiet(one(data, origin.url("/a")), root)
    assert weights.report["sam2"].outcome == "resumed"
    assert weights["sam2"].read_bytes() == data


@pytest.mark.parametrize("daemon", [True, False])
def test_the_end_of_the_interpreter(daemon: bool, origin: Origin, root: Path) -> None:
    """A download in a daemon thread is dropped; one in any other thread is waited for, as Python does."""
    import json

    reached, data = threading.Event(), DATA[: 20 * MB]
    origin.put("/a", data, rate=2e6, on_sent=lambda sent: sent > 3 * MB and reached.set())
    code = f"""
import threading
thread = threading.Thread(
    target=ensure, args=[json.loads(sys.argv[1])], kwargs=dict(root=sys.argv[2], progress=False), daemon={daemon}
)
thread.start()
sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, json.dumps(one(data, origin.url("/a"))), str(root)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reached.wait(60)
    _, err = process.communicate("\n", timeout=60)
    assert (process.returncode, err) == (0, "")
    assert visible(root) == ([] if daemon else [os.path.relpath(next(root.glob("sam2/*/weights.pt")), root)])
    assert (origin.sent() < len(data)) is daemon


def test_fewer_threads_than_wanted(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, [4]

    def limited(self: threading.Thread) -> None:
        if self.name.startswith("weightcache"):
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    data = DATA[: 20 * MB]
    origin.put("/a", data, rate=SLOW)
    assert quiet(one(data, origin.url("/a")), root)["sam2"].read_bytes() == data
    left[0] = 1
    with pytest.raises(DownloadError, match="can't start new thread"):
        quiet(one(data, origin.url("/a"), name="b"), root / "b")


def state_of(scheduler: Any) -> WorkerState:
    client: Any = None
    return WorkerState(scheduler, client, Cancel())


def test_the_end_of_a_task_wakes_the_hasher() -> None:
    """A block whose task was revoked meanwhile is hashed, too, and nothing else may follow."""
    blocks, hashed = list[Any](), list[Any]()

    class Scheduler:
        files = SimpleNamespace(next_verified=lambda: None)
        error = None

        @property
        def is_done(self) -> bool:
            return bool(hashed)

        def next_blocks(self) -> Any:
            return blocks.pop() if blocks else None

        def on_hashed(self, *arguments: Any) -> None:
            hashed.append(arguments)

    state = state_of(Scheduler())
    hasher = Hasher(state)
    waits = threading.Event()
    monitored = state.hash.wait
    state.hash.wait = lambda timeout=None: (waits.set(), monitored(timeout))[1]  # type: ignore[method-assign]
    hasher.start()
    assert waits.wait(30)
    with state.lock:  # it waits, since it has let go of the lock
        digest = hashlib.sha256()
        blocks.append((SimpleNamespace(digest=digest), [SimpleNamespace(data=b"x")]))
        state.wake()
    hasher.join(5)
    assert not hasher.is_alive()
    assert digest.digest() == hashlib.sha256(b"x").digest()


def test_a_connection_whose_segment_was_taken_while_it_wrote_goes_no_further() -> None:
    state = state_of(scheduler_of_a_file())
    task = answered(state.scheduler)
    read(state.scheduler, task, BLOCK, 1.0)
    task.transfer.claim(task)
    task.revoke()
    with state.lock:
        assert not Connection(state, 0)._may_go_on(task, None)
    assert [block.filled for block in task.transfer.buffered.values()] == [BLOCK]
