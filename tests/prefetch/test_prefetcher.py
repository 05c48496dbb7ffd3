"""Prefetch: what it reads, in what order, and when it lets go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import weightcache
from origin import Origin
from prefetching import LARGE, Gate, descriptors, memfds
from support import directory, one, sha256
from weightcache import Manifest, ensure, prefetch, prefetch_files
from weightcache._coordination import background_readers as coordination_readers
from weightcache._prefetch import reader_pool
from weightcache._prefetch.prefetched_file import READ_CHUNK, ChangedMeanwhileError, PrefetchedFile


@pytest.mark.parametrize("threads", [1, 8])
def test_into_memory_holds_the_files_bytes(threads: int, files: list[Path]) -> None:
    with prefetch_files(*files, into="memory", threads=threads) as handle:
        for path in files:
            found = handle.path(path)
            assert found.startswith("/proc/self/fd/")
            assert Path(found).read_bytes() == path.read_bytes()
        assert handle.wait()
        stats = handle.stats
        assert (stats.files, stats.bytes, stats.total, stats.skipped) == (3, len(LARGE) + 5, len(LARGE) + 5, ())
        assert stats.rate > 0
        assert not descriptors(files[0].parent)  # nothing stays open on the volume
    assert handle.path(files[0]) == str(files[0])  # closed: the file itself


def test_into_cache_reads_everything_and_keeps_nothing(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "none")
    handle = prefetch_files(*files, threads=2)
    assert handle.wait(60)
    assert sorted(gate.reads) == [("large", 0), ("large", READ_CHUNK), ("large", 2 * READ_CHUNK), ("small", 0)]
    assert handle.path(files[0]) == str(files[0])
    assert handle.stats.bytes == len(LARGE) + 5
    assert repr(handle) == "<Prefetch of 3 files: 16.8 MB of 16.8 MB>"


def test_files_are_read_in_order(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "none")
    prefetch_files(files[1], files[0], files[1], threads=1).wait()
    assert gate.reads == [("small", 0), ("large", 0), ("large", READ_CHUNK), ("large", 2 * READ_CHUNK)]


def test_a_manifest_is_read_in_its_order_and_what_is_not_there_is_skipped(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", LARGE)
    origin.put("/d/x", b"x")
    manifest = {
        "checkpoints": {
            **directory({"x": b"x"}, origin.url("/d"), name="d")["checkpoints"],
            **one(LARGE, origin.url("/a"))["checkpoints"],
            **one(b"none", name="gone")["checkpoints"],
        }
    }
    weights = ensure(manifest, root=root, only=["d", "sam2"], progress=False)
    gate = Gate(monkeypatch, "none")
    with prefetch(manifest, root=root, into="memory", threads=1) as handle:
        assert Path(handle.path(weights["sam2"])).read_bytes() == LARGE
        assert Path(handle.path(weights["d"] / "x")).read_bytes() == b"x"
        assert handle.stats.skipped == ("gone: is not there",)
    assert [name for name, _ in gate.reads] == ["x", *["weights.pt"] * 3]
    with prefetch(manifest, root=root, only=["d"]) as handle:
        assert handle.stats.total == 1


@pytest.mark.parametrize("manifest", ["nowhere.toml", {"checkpoints": {"a b": {}}}, one(b"x")])
def test_where_nothing_is_it_does_nothing(manifest: Any, root: Path) -> None:
    """As on the machine that deploys."""
    handle = prefetch(manifest, root=root)
    assert handle.wait()
    assert handle.stats[:3] == (0, 0, 0)
    assert len(handle.stats.skipped) == 1
    assert not root.exists()
    assert prefetch(one(b"x"), root=root, only=["none"]).stats.skipped[0].startswith("no checkpoint is called 'none'")


def test_a_programmers_mistake(root: Path) -> None:
    for wrong in ({"into": "gpu"}, {"threads": 0}, {"threads": True}, {"threads": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            prefetch_files(**wrong)
    with pytest.raises(TypeError):
        prefetch_files(3)  # type: ignore[arg-type]
    handle = prefetch_files(root, root.parent, "a\0b")
    absent, directory, null = (text.partition(": ")[2] for text in handle.stats.skipped)
    assert (absent, directory) == ("No such file or directory", "is no regular file")
    assert "embedded null" in null  # Pythons word it differently


@pytest.mark.parametrize("into", ["cache", "memory"])
@pytest.mark.parametrize(
    ("size", "said"),
    [(7, f"it ends after 7 of {len(LARGE)} bytes"), (READ_CHUNK + 7, "it changed while it was read")],
)
def test_a_file_that_shrinks(
    size: int, said: str, into: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with prefetch_files(*files, into=into, threads=1) as handle:
        assert gate.reached.wait(60)
        os.truncate(files[0], size)
        gate.go_on.set()
        assert not handle.wait(60)
        assert handle.path(files[0]) == str(files[0])
        assert said in handle.stats.skipped[0]
        assert handle.stats.files == 2


def test_a_file_that_is_replaced_while_it_is_paused(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first half would be that of another file."""
    gate = Gate(monkeypatch)
    with prefetch_files(*files, into="memory", threads=1) as handle:
        assert gate.reached.wait(60)
        pausing = threading.Thread(target=handle.pause)
        pausing.start()
        gate.go_on.set()
        pausing.join(60)
        assert not descriptors(files[0].parent)
        files[0].with_suffix(".new").write_bytes(bytes(len(LARGE)))
        os.utime(files[0].with_suffix(".new"), ns=(1, 1))
        os.replace(files[0].with_suffix(".new"), files[0])
        handle.resume()
        assert not handle.wait(60)
        assert handle.path(files[0]) == str(files[0])


def test_a_file_that_is_given_up_gives_its_memory_back(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with prefetch_files(*files, into="memory", threads=1) as handle:
        assert gate.reached.wait(60)
        os.truncate(files[0], 7)
        gate.go_on.set()
        assert not handle.wait(60)
        assert len(memfds()) == 2


def test_a_wrong_file_is_not_handed_out_after_ensure_replaced_it(origin: Origin, root: Path) -> None:
    """It had the right size and no receipt, so it was read ahead."""
    origin.put("/a", LARGE)
    manifest = one(LARGE, origin.url("/a"))
    path = root / "sam2" / sha256(LARGE)[:16] / "weights.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(len(LARGE)))
    with prefetch(manifest, root=root, into="memory") as handle:
        assert handle.wait(60)
        weights = ensure(manifest, root=root, progress=False)
        assert Path(handle.path(weights["sam2"])).read_bytes() == LARGE


def test_a_file_that_was_written_to_is_not_handed_out(files: list[Path]) -> None:
    os.utime(files[0], ns=(1, 1))
    with prefetch_files(*files, into="memory") as handle:
        assert handle.wait(60)
        with files[0].open("r+b") as file:
            file.write(b"other")
        assert handle.path(files[0]) == str(files[0])
        assert handle.path(files[1]) != str(files[1])


def test_a_file_under_two_names_is_read_once(files: list[Path]) -> None:
    link = files[0].with_name("link")
    link.symlink_to(files[0])
    with prefetch_files(files[0], link, into="memory") as handle:
        assert handle.wait(60)
        assert handle.stats.total == len(LARGE)
        assert handle.path(link) == handle.path(files[0]) != str(files[0])


def test_a_relative_path_is_where_it_was(
    files: list[Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files[0].parent)
    with coordination_readers.pause_all():
        handle = prefetch_files("large", into="memory")
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with handle:
        assert handle.wait(60)
        assert handle.path(files[0]) != str(files[0])


def test_a_long_name_in_another_script(tmp_path: Path) -> None:
    path = tmp_path / ("\N{SNOWMAN}" * 84)
    path.write_bytes(b"snow")
    with prefetch_files(path, into="memory") as handle:
        assert handle.path(path) != str(path)


def test_where_no_thread_starts_nobody_waits(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with prefetch_files(*files, into="memory") as handle:
        assert not handle.wait(10)
        assert [text.partition(": ")[2] for text in handle.stats.skipped] == ["can't start new thread"] * 2
        assert handle.path(files[0]) == str(files[0])
        assert handle.path(files[2]) != str(files[2])  # empty: there is nothing to read


@pytest.mark.parametrize(
    ("module", "function", "error", "said"),
    [
        ("mmap", "mmap", OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
        ("os", "preadv", MemoryError(), "MemoryError"),
        ("os", "preadv", AttributeError("no preadv here"), "no preadv here"),
        ("os", "pwrite", OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_whatever_fails_in_a_thread_nobody_waits(
    module: str, function: str, error: Exception, said: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(f"{module}.{function}", fail)
    with prefetch_files(*files, into="memory") as handle:
        assert not handle.wait(10)
        assert [text.partition(": ")[2] for text in handle.stats.skipped] == [said] * 2
        assert handle.path(files[0]) == str(files[0])
    assert not descriptors(files[0].parent)  # closed: other threads may have been reading on until now


def test_a_file_that_is_removed_is_read_to_its_end(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with prefetch_files(*files, into="memory", threads=1) as handle:
        assert gate.reached.wait(60)
        files[0].unlink()
        gate.go_on.set()
        assert Path(handle.path(files[0])).read_bytes() == LARGE


def test_closing_ends_it(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, until_pause=True)
    handle = prefetch_files(*files, into="memory", threads=1)
    assert gate.reached.wait(60)
    handle.close()
    handle.close()
    assert gate.reads == [("large", 0)]
    assert not handle.wait(0)
    assert handle.path(files[0]) == str(files[0])


def test_a_handle_that_is_dropped_gives_its_memory_back(files: list[Path]) -> None:
    handle = prefetch_files(*files, into="memory")
    handle.wait()
    assert len(memfds()) == 3
    for thread in threading.enumerate():
        if thread.name.startswith("weightcache-prefetch"):
            thread.join()
    del handle
    assert memfds() == []


def test_after_a_fork_what_is_whole_is_there_and_nothing_waits(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    handle = prefetch_files(files[1], files[0], into="memory", threads=1)
    assert gate.reached.wait(60)
    assert handle.path(files[1]).startswith("/proc/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads is dangerous is the point
        child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(30)
            whole = Path(handle.path(files[1])).read_bytes() == b"small" and len(memfds()) == 1
            code = 0 if whole and handle.path(files[0]) == str(files[0]) and not handle.wait() else 2
            handle.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.go_on.set()
    with handle:
        assert Path(handle.path(files[0])).read_bytes() == LARGE


@pytest.mark.parametrize("into", ["cache", "memory"])
def test_a_child_that_was_forked_while_a_file_was_closed_closes_nobody_elses(
    into: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing lets other threads run: its number can be another file's before the prefetch has forgotten it."""
    close, codes, null = os.close, [], os.open(os.devnull, os.O_RDONLY)

    def closing(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        close(descriptor)
        if "large" not in target or os.close is close:
            return
        monkeypatch.setattr(os, "close", close)
        os.dup2(null, descriptor)  # what another thread opens now
        child = os.fork()
        if not child:
            os._exit(0 if os.path.exists(f"/proc/self/fd/{descriptor}") else 3)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        close(descriptor)

    monkeypatch.setattr(reader_pool, "PAUSE_TIMEOUT", 0.05)
    gate = Gate(monkeypatch)
    handle = prefetch_files(files[0], into=into, threads=1)
    assert gate.reached.wait(60)
    monkeypatch.setattr(os, "close", closing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if into == "memory":
            handle.close()  # the read hangs: memory is closed first, and the file later
        gate.go_on.set()
        assert handle.wait(60) == (into == "cache")
    close(null)
    assert codes == [0]


def test_a_child_that_was_forked_during_a_commit_reads(files: list[Path]) -> None:
    with coordination_readers.pause_all(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if not child:
            code = 1
            try:
                signal.alarm(30)
                code = 0 if prefetch_files(*files).wait(20) else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_interpreter_that_ends_does_not_wait(tmp_path: Path) -> None:
    """The read waits in the kernel for a pipe's writer, as it would for a volume that hangs."""
    code = (
        "import os, sys, threading, time, weightcache\n"
        "reached, (pipe, _) = threading.Event(), os.pipe()\n"
        "os.preadv = lambda *_: reached.set() or os.read(pipe, 1)\n"
        "handle = weightcache.prefetch_files(sys.argv[1], into='memory')\n"
        "assert reached.wait(60)\n"
        "print(time.monotonic())\n"
    )
    (tmp_path / "f").write_bytes(b"x" * 100)
    command = [sys.executable, "-c", code, tmp_path / "f"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    ended = time.monotonic()  # one clock for all processes of the machine
    assert (done.returncode, done.stderr) == (0, "")
    assert ended - float(done.stdout) < 1.0  # 0.01 s; 0.16 beside four busy processes, with coverage measured


def test_eight_processes_each_with_a_handle_of_its_own(files: list[Path]) -> None:
    code = (
        "import hashlib, sys, weightcache\n"
        "with weightcache.prefetch_files(sys.argv[1], into='memory') as handle:\n"
        "    path = handle.path(sys.argv[1])\n"
        "    print(path.startswith('/proc/'), hashlib.sha256(open(path, 'rb').read()).hexdigest())\n"
    )
    command = [sys.executable, "-c", code, files[0]]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert said == {f"True {sha256(LARGE)}\n"}


def test_it_imports_neither_torch_nor_modal_nor_what_a_download_needs(origin: Origin, root: Path) -> None:
    origin.put("/a", b"a")
    manifest = one(b"a", origin.url("/a"))
    ensure(manifest, root=root, progress=False)
    code = (
        "import json, sys, weightcache\n"
        "weightcache.prefetch(json.loads(sys.argv[1]), root=sys.argv[2]).wait()\n"
        "print([name for name in ('torch', 'modal', 'requests', 'filelock', 'tqdm', 'numpy') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, json.dumps(manifest), root]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_is_exported() -> None:
    assert {weightcache.Prefetch.__name__, prefetch.__name__, prefetch_files.__name__} <= set(weightcache.__all__)
    assert isinstance(prefetch(Manifest(()), root="/nowhere"), weightcache.Prefetch)


@pytest.mark.timeout(10)
def test_a_pipe_that_takes_the_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"")
    found = path.stat()
    path.unlink()
    os.mkfifo(path)
    file = PrefetchedFile(str(path), found.st_size, found.st_mtime_ns)
    with pytest.raises(ChangedMeanwhileError):
        file.open()
    assert file.descriptor.number == -1
