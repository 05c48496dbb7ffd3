"""Waiting: which process holds the lock, its progress, when waiting ends, and that correctness never needs the lock."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

import weightcache
from origin import Origin, gate, stalled
from support import blob, change_settings, child, one, partials, quiet, visible
from weightcache import DownloadError, LockTimeoutError, StorageError, aensure, ensure, status
from weightcache._coordination import lock as coordination_lock
from weightcache._engine.stale_lock_files import remove_old_notes
from weightcache._runtime.link_count_check import link_counts_are_right
from weightcache._runtime.writer_identity import container_id, local_directory, note_path, process_start
from weightcache._store import partial_directory as store_partials
from weightcache._store.partial_directory import BLOCK

DATA = blob(3 * BLOCK)


@pytest.fixture(autouse=True)
def no_relief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no other connection fetch the block of a held one, however long another process takes to start."""
    change_settings(monkeypatch, stalled_after=600.0)


class Filling:
    """A thread that fills the root and is held in the middle of its download."""

    def __init__(self, origin: Origin, root: Path) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        origin.put("/a", DATA, faults=[gate(2 * BLOCK, self.reached, self.go_on)])
        self.manifest = one(DATA, origin.url("/a"))
        self._thread = threading.Thread(target=lambda: quiet(self.manifest, root))

    def __enter__(self) -> Filling:
        self._thread.start()
        assert self.reached.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._thread.join()


def test_a_hit_and_a_status_do_not_wait(origin: Origin, root: Path) -> None:
    origin.put("/small", b"small")
    small = one(b"small", origin.url("/small"), name="small")
    quiet(small, root)
    with Filling(origin, root) as filling:
        assert quiet(small, root).report["small"].outcome == "hit"
        assert status(filling.manifest, root=root)[0].state == "partial"


def test_waiting_ends_without_progress(
    origin: Origin, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(monkeypatch, lock_beat=0.0)
    with Filling(origin, root) as filling:
        with pytest.raises(LockTimeoutError) as caught:
            ensure(filling.manifest, root=root, wait=0.2)
        error = caught.value
        assert error.waited >= 0.2
        assert error.holder.startswith(f"process {os.getpid()} (downloading ")  # so much as it wrote down by then
        assert "MB of 3.1 MB" in error.holder
        assert Path(error.lock_path).name.endswith(".lock")
        assert root not in Path(error.lock_path).parents
        assert "wait=" in error.hint
    line = capsys.readouterr().err  # of the first poll, when less may have been downloaded
    assert re.fullmatch(
        rf"weightcache: waiting for process {os.getpid()} \(downloading.* to fill {root} \(.*\)\n", line
    )
    assert quiet(filling.manifest, root).report["sam2"].outcome == "hit"


def test_progress_of_the_holder_makes_waiting_go_on(root: Path) -> None:
    holder = coordination_lock.Holder(str(root))
    lines: list[str] = []
    waiting = coordination_lock.LockWait(str(root), 10.0, lines.append, lambda: None)
    for step in range(5):
        holder.phase("downloading", 100)
        waiting._moved -= 9  # nine seconds later
        holder.advance(step)
        holder._write()
        waiting.poll()
    waiting._moved -= 11
    with pytest.raises(LockTimeoutError):
        waiting.poll()
    assert len(lines) == 1
    waiting._moved += 100
    waiting._next_line -= 11
    waiting.poll()
    assert len(lines) == 2
    holder.clear()


@pytest.mark.parametrize("note", [b"\xff\xfe", b'{"pid":1,"doing":"' + b"a" * 100_000, b"", b"[" * 5000])
def test_a_note_that_is_damaged_names_no_process(note: bytes, root: Path) -> None:
    lines: list[str] = []
    waiting = coordination_lock.LockWait(str(root), 10.0, lines.append, lambda: None)
    path = Path(coordination_lock._note(str(root), "holder"))
    path.write_bytes(note)
    waiting.poll()
    assert waiting.holder == "another process"
    assert len(waiting._seen) <= 4096
    path.unlink()


def test_what_a_killed_holder_left_goes_with_the_next_note(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    holder = coordination_lock.Holder(str(root))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(SystemExit):
            holder.phase("looking")
    notes = Path(coordination_lock._note(str(root), "holder")).parent
    assert [path.suffix for path in notes.glob("*.holder*")] == [".new"]
    coordination_lock.Holder(str(root)).phase("looking")
    assert [path.suffix for path in notes.glob("*.holder*")] == [".holder"]
    holder.clear()


def test_who_is_waited_for_is_said_with_a_name(root: Path) -> None:
    """A holder is a moment away from its note when it has just taken the lock, or can write none."""
    lines: list[str] = []
    waiting = coordination_lock.LockWait(str(root), 10.0, lines.append, lambda: None)
    waiting.poll()
    assert (lines, waiting.holder) == ([], "another process")
    holder = coordination_lock.Holder(str(root))
    holder.phase("looking")
    waiting.poll()
    assert waiting.holder == f"process {os.getpid()} (looking)"
    assert [line.partition(" to fill")[0] for line in lines] == [f"waiting for {waiting.holder}"]
    holder.clear()
    waiting = coordination_lock.LockWait(str(root), 10.0, lines.append, lambda: None)
    waiting._began -= 2  # two seconds later
    waiting.poll()
    assert lines[1].startswith("waiting for another process to fill")


def test_notes_that_are_noise(root: Path) -> None:
    assert coordination_lock._in_words("{") == ""
    assert coordination_lock._in_words("[]") == ""
    assert coordination_lock._in_words("[" * 100_000) == ""
    assert coordination_lock._in_words('{"pid": 1, "doing": "x", "done": Infinity, "total": 0}') == ""
    assert (
        coordination_lock._in_words(json.dumps({"pid": 1, "doing": "looking", "done": 0, "total": 0}))
        == "process 1 (looking)"
    )
    hashing = {"pid": 1, "doing": "hashing", "done": 10**6, "total": 0}
    assert coordination_lock._in_words(json.dumps(hashing)) == "process 1 (hashing 1.0 MB)"
    hashing["total"] = 3 * 10**6
    assert coordination_lock._in_words(json.dumps(hashing)) == "process 1 (hashing 1.0 MB of 3.0 MB)"


@pytest.mark.parametrize("failure", [OSError(38, "Function not implemented"), NotImplementedError("no flock")])
def test_no_locks_at_all(
    failure: Exception, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    origin.put("/a", DATA)
    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert "going on without" in caplog.text


def test_no_directory_for_locks(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    def lstat(path: Any, **options: Any) -> os.stat_result:
        return fail() if Path(path).name == f"weightcache-{os.geteuid()}" else real(path, **options)  # type: ignore[func-returns-value]

    real = os.lstat
    origin.put("/a", DATA)
    origin.put("/b", b"other")
    quiet(one(DATA, origin.url("/a")), root)
    monkeypatch.setattr("weightcache._runtime.writer_identity.os.lstat", lstat)
    monkeypatch.setattr("weightcache._runtime.writer_identity.tempfile.gettempdir", fail)
    with pytest.raises(StorageError, match="no container-local directory"):
        local_directory(str(root))
    assert len(container_id(str(root))) == 12
    assert status(one(DATA, name="new"), root=root)[0].state == "missing"
    assert quiet(one(b"other", origin.url("/b"), name="b"), root)["b"].read_bytes() == b"other"
    assert "going on without" in caplog.text


def test_somebody_elses_directory_is_not_used(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path(os.environ["TMPDIR"], f"weightcache-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="belongs to somebody else"):
        local_directory(str(root))


@pytest.fixture
def made_by_another(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for locks, as another user makes it before this one does."""
    path = Path(os.environ["TMPDIR"], f"weightcache-{os.geteuid()}").resolve()
    path.mkdir()
    lstat = os.lstat

    def lstat_of_another(each: Any, **options: Any) -> os.stat_result:
        found = lstat(each, **options)
        is_it = os.fspath(each) == str(path)
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:])) if is_it else found

    try:
        os.chown(path, os.geteuid() + 1, -1)
    except OSError:  # only root may give a directory away, and not in every sandbox
        monkeypatch.setattr(os, "lstat", lstat_of_another)
    return path


def test_a_directory_that_another_user_made_first_is_not_used(
    made_by_another: Path, origin: Origin, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StorageError, match="belongs to somebody else"):
        local_directory(str(root))
    origin.put("/a", DATA)
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert list(made_by_another.iterdir()) == []
    assert "going on without" in caplog.text


def test_no_other_user_may_enter_the_directory(root: Path) -> None:
    before = os.umask(0)
    try:
        made = local_directory(str(root))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(made).st_mode) == 0o700


def test_locks_are_never_in_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "tmp").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(root / "tmp"))
    assert root not in Path(local_directory(str(root))).parents
    with pytest.raises(StorageError, match="no container-local directory"):
        local_directory("/")


def test_the_start_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_start(os.getpid())
    assert process_start(2**22 + 1) is None


@pytest.mark.parametrize("wait", [-1, float("nan"), "5", True, None])
def test_wait_is_a_number_of_seconds(wait: Any, root: Path) -> None:
    with pytest.raises(ValueError, match="wait must be a number of seconds"):
        quiet(one(DATA), root, wait=wait)


# aensure ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_connection")
def test_aensure(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))

    async def work() -> list[weightcache.Weights]:
        return await asyncio.gather(*(aensure(manifest, root=root, progress=False) for _ in range(4)))

    found = asyncio.run(work())
    assert {weights["sam2"].read_bytes() for weights in found} == {DATA}
    assert origin.gets() == 1
    assert asyncio.run(aensure(manifest, root=root)).report["sam2"].outcome == "hit"


def test_aensure_raises_what_ensure_raises(origin: Origin, root: Path) -> None:
    with pytest.raises(DownloadError):
        asyncio.run(aensure(one(DATA, origin.url("/404")), root=root, progress=False))


def test_a_cancelled_aensure_ends_in_the_middle_of_a_read(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(monkeypatch, stall_timeout=600.0)  # longer than a test may take
    reached = threading.Event()
    origin.put("/a", DATA, faults=[stalled(2 * BLOCK + 5)], on_sent=lambda sent: sent > 2 * BLOCK and reached.set())
    manifest = one(DATA, origin.url("/a"))

    async def work() -> None:
        task = asyncio.create_task(aensure(manifest, root=root, progress=False))
        await asyncio.to_thread(reached.wait, 60)
        while not (partials(root) and (partials(root)[0] / "journal").read_text().count("\n") >= 4):
            await asyncio.sleep(0)  # until the client has read what was sent
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    for thread in threading.enumerate():
        if thread.name.startswith("weightcache"):
            thread.join(60)
            assert not thread.is_alive(), thread.name  # its read must not go on until the timeout
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    assert not [path for path in held if path.startswith(str(root))]
    assert visible(root) == []
    assert quiet(manifest, root).report["sam2"].outcome == "resumed"


def test_a_cancelled_aensure_ends_while_it_waits(origin: Origin, root: Path) -> None:
    async def work(manifest: Any) -> None:
        task = asyncio.create_task(aensure(manifest, root=root, progress=False))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Filling(origin, root) as filling:
        asyncio.run(work(filling.manifest))


def test_a_waiter_in_another_process_says_who_it_waits_for(origin: Origin, root: Path) -> None:
    with Filling(origin, root) as filling:
        code = "ensure(json.loads(sys.argv[1]), root=sys.argv[2])"
        process = child(code, json.dumps(filling.manifest), str(root))
        line = process.stderr.readline()
        filling.go_on.set()
        process.communicate(timeout=60)
    assert line.startswith(f"weightcache: waiting for process {os.getpid()} (downloading")
    assert process.returncode == 0


@pytest.mark.parametrize("right", [True, False])
def test_the_file_of_a_lock_is_removed_only_where_a_lock_without_a_name_is_noticed(
    right: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordination_lock, "link_counts_are_right", lambda folder: right)
    with coordination_lock.root_lock(str(root), wait=1.0, say=print, check=lambda: None):
        pass
    assert bool(list(Path(local_directory(str(root))).glob("*.lock"))) is not right


def test_a_thread_that_no_lock_keeps_out_leaves_the_others_partial_alone(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two mounts of one disk are two roots to every lock: the writer at work must still be seen as alive."""
    from contextlib import contextmanager

    @contextmanager
    def no_lock(root: str, **options: Any) -> Any:
        yield (
            coordination_lock.Holder(root),
            coordination_lock.LockWait(root, options["wait"], options["say"], options["check"]),
        )

    journaled, append = threading.Event(), store_partials.Partial.append

    def appending(self: store_partials.Partial, line: str) -> None:
        append(self, line)
        if not line.startswith("opened"):
            journaled.set()

    monkeypatch.setattr("weightcache._engine.run_miss.root_lock", no_lock)
    monkeypatch.setattr(store_partials.Partial, "append", appending)
    with Filling(origin, root) as filling:
        assert journaled.wait(60)
        [theirs] = partials(root)
        weights = quiet(filling.manifest, root)
        assert weights.report["sam2"].outcome == "resumed"  # their journaled blocks were copied
        assert partials(root) == [theirs]
    assert partials(root) == []
    assert weights["sam2"].read_bytes() == DATA


def test_hashing_is_progress_to_who_waits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple[str, int]] = []
    change_settings(monkeypatch, lock_beat=0.0)
    monkeypatch.setattr(coordination_lock.Holder, "_write", lambda self: noted.append((self._doing, self._done)))
    path = Path(weightcache.status(one(DATA), root=root)[0].path)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    quiet(one(DATA), root)
    assert noted.count(("hashing what is there", 0)) == 1
    assert ("hashing what is there", 3 * BLOCK) in noted


def test_locks_leave_no_file(root: Path, tmp_path: Path) -> None:
    with coordination_lock.reload_lock(str(root)):
        with coordination_lock.try_lock(note_path(str(root), "gate")) as is_free:
            assert not is_free
        assert [path.suffix for path in Path(local_directory(str(root))).iterdir()] == [".gate"]
    path = str(tmp_path / "lock")
    with coordination_lock.try_lock(path) as first, coordination_lock.try_lock(path) as second:
        assert (first, second) == (True, False)
    stay = not link_counts_are_right(str(tmp_path))  # as in some sandboxes: then no file is removed
    assert os.path.exists(path) is stay
    assert bool(list(Path(local_directory(str(root))).iterdir())) is stay


def test_notes_of_processes_that_ended_are_removed_and_marks_of_roots_that_exist_stay(
    root: Path, tmp_path: Path
) -> None:
    notes = {
        (here, kind): Path(note_path(str(here), kind))
        for here in (root, tmp_path / "other", tmp_path / "gone")
        for kind in ("holder", "unpushed")
    }
    for (here, _), note in notes.items():
        note.write_text(str(here))
    (tmp_path / "other").mkdir()
    remove_old_notes(str(root))
    left = [key for key, note in notes.items() if note.exists()]
    assert left == [(root, "holder"), (root, "unpushed"), (tmp_path / "other", "unpushed")]


@pytest.fixture
def path_of_another(tmp_path: Path) -> Iterator[tuple[str, FileLock]]:
    """The path of a lock that somebody else holds, and that lock."""
    path = str(tmp_path / "held")
    other = FileLock(path)
    other.acquire()
    yield path, other
    other.release(force=True)


def test_a_lock_that_is_let_go_after_some_polls_is_acquired(path_of_another: tuple[str, FileLock]) -> None:
    path, other = path_of_another
    polls = iter([lambda: None, lambda: None, other.release])

    def tick() -> None:
        next(polls)()

    lock = coordination_lock._kernel_lock(path, tick, 0.001)
    assert lock is not None
    assert lock.is_locked
    assert next(polls, None) is None
    lock.release()


def test_a_try_does_not_wait(path_of_another: tuple[str, FileLock], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: pytest.fail(f"it waits {seconds} s"))
        with coordination_lock.try_lock(path_of_another[0]) as is_free:
            assert not is_free


def test_a_commit_that_does_not_end_is_waited_for_for_a_minute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1000.0, 1059.0, 1060.0, 1061.0])
    monkeypatch.setattr(coordination_lock, "time", SimpleNamespace(monotonic=lambda: next(times)))
    change_settings(monkeypatch, lock_poll=0.001)
    with FileLock(note_path(str(root), "gate")), coordination_lock.reload_lock(str(root)):
        assert list(times) == []
