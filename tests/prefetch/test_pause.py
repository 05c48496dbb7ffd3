"""Prefetch: it has nothing open during a commit or a reload, and ends them no later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import volume_model
import weightcache
from origin import Origin
from prefetching import LARGE, Gate, a_large_one_and_another, descriptors, memfds, readers
from weightcache import ensure, prefetch, prefetch_files
from weightcache._coordination import background_readers as coordination_readers
from weightcache._prefetch import prefetcher as prefetch_reader
from weightcache._prefetch import reader_pool
from weightcache._prefetch.prefetched_file import PrefetchedFile


def test_ensure_commits_and_reloads_with_nothing_of_a_prefetch_open(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit and a miss in one call, while the hit is being read."""
    there, both = a_large_one_and_another(origin)
    path = ensure(there, root=root, progress=False)["sam2"]
    gate = Gate(monkeypatch, "weights.pt", until_pause=True)
    seen: list[list[str]] = []

    class Volume:
        def commit(self) -> None:
            seen.append(descriptors(root))

        reload = commit

    with prefetch(both, root=root, into="memory", threads=2) as handle:
        assert gate.reached.wait(60)
        assert descriptors(root) != []
        weights = ensure(both, root=root, volume=Volume(), lease=None, progress=False)
        assert (len(seen) >= 3, [opened for opened in seen if opened]) == (True, [])
        assert Path(handle.path(path)).read_bytes() == LARGE  # it went on
        assert handle.path(path) != str(path)
    assert weights["b"].read_bytes() == b"b"


@pytest.mark.parametrize("read", ["half", "whole"])
def test_a_reload_that_changes_times_costs_time_and_no_byte(
    read: str, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same size and another time may be another file: what was read of it is not used."""
    there, both = a_large_one_and_another(origin)
    path = ensure(there, root=root, progress=False)["sam2"]
    gate = Gate(monkeypatch, "weights.pt" if read == "half" else "none", until_pause=True)

    class Volume:
        def commit(self) -> None:
            for file in root.rglob("*.pt"):
                os.utime(file, ns=(1, 1))

        reload = commit

    with prefetch(both, root=root, into="memory", threads=1) as handle:
        if read == "half":
            assert gate.reached.wait(60)
        else:
            assert handle.wait(60)
            assert handle.path(path) != str(path)
        weights = ensure(both, root=root, volume=Volume(), lease=None, progress=False)
        assert weights.report["sam2"].outcome == "hit"
        assert handle.path(path) == str(weights["sam2"]) == str(path)
        assert path.read_bytes() == LARGE
        told = [f"{path}: it changed while it was read"] if read == "half" else []
        assert handle.stats.skipped == ("b: is not there", *told)


def test_another_process_that_reads_costs_a_receipt_and_no_byte(origin: Origin, tmp_path: Path) -> None:
    """It is not paused, and the reload in every commit fails; see decision 0015."""
    volume = volume_model.Volume(tmp_path / "server")

    class Mounted(volume_model.View):
        def commit(self) -> None:
            super().commit()
            self.reload()  # as Modal's client does

    there, both = a_large_one_and_another(origin)
    view = Mounted(volume, tmp_path / "mount")
    options: dict[str, Any] = {"lease": None, "progress": False}
    ensure(there, root=view.root, volume=view, **options)
    code = (
        "import json, os, sys, weightcache\n"
        "preadv = os.preadv\n"
        "def gated(*args):\n"
        "    print('reading', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    return preadv(*args)\n"
        "os.preadv = gated\n"
        "sys.exit(not weightcache.prefetch(json.loads(sys.argv[1]), root=sys.argv[2], threads=1).wait(60))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(there), str(view.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        weights = ensure(both, root=view.root, volume=view, **options)
        reader.communicate("\n" * 9, timeout=60)
    assert reader.returncode == 0
    assert weights["b"].read_bytes() == b"b"
    assert weights.report.committed is False
    assert all("there are open files preventing the operation" in warning for warning in weights.report.warnings)
    elsewhere = Mounted(volume, tmp_path / "elsewhere")
    again = ensure(both, root=elsewhere.root, volume=elsewhere, **options).report
    assert (again["b"].outcome, again.committed) == ("adopted", True)
    assert origin.gets("/b") == 1


def test_who_waits_does_not_look_at_all_files_whenever_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / str(number) for number in range(200)]
    for path in paths:
        path.write_bytes(b"x")
    looks, is_over, read = [], PrefetchedFile.is_over.fget, prefetch_reader.read_chunk

    def looked_at(file: PrefetchedFile) -> bool:
        looks.append(file)
        assert is_over is not None
        return is_over(file)

    def waited_for(*args: Any) -> int:
        assert not handle.wait(0)
        return read(*args)

    monkeypatch.setattr(PrefetchedFile, "is_over", property(looked_at))
    monkeypatch.setattr(prefetch_reader, "read_chunk", waited_for)
    with coordination_readers.pause_all():
        handle = prefetch_files(*paths, threads=1)
    assert handle.wait(60)
    assert len(looks) < 10 * len(paths)


def test_a_read_that_hangs_does_not_hold_a_commit_for_ever(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_pool, "PAUSE_TIMEOUT", 0.05)
    gate = Gate(monkeypatch)
    with prefetch_files(files[0], threads=1) as handle:
        assert gate.reached.wait(60)
        with coordination_readers.pause_all():
            assert descriptors(files[0].parent) != []
        gate.go_on.set()
        assert handle.wait(60)


def test_a_read_that_hung_lets_go_when_it_ends(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed is the handle by then, and nobody asks again."""
    monkeypatch.setattr(reader_pool, "PAUSE_TIMEOUT", 0.05)
    gate = Gate(monkeypatch)
    handle = prefetch_files(*files, into="memory", threads=1)
    assert gate.reached.wait(60)
    handle.close()
    assert descriptors(files[0].parent) == [str(files[0])]
    assert memfds() == []
    threads = [thread for thread in threading.enumerate() if thread.name in readers()]
    gate.go_on.set()
    for thread in threads:
        thread.join(60)
    assert descriptors(files[0].parent) == []


def test_what_begins_during_a_commit_waits_for_its_end(files: list[Path]) -> None:
    with coordination_readers.pause_all(), coordination_readers.pause_all():
        handle = prefetch_files(*files)
        assert not handle.wait(0.2)
        assert handle.stats.bytes == 0
        assert descriptors(files[0].parent) == []
    assert handle.wait(60)


def test_a_pause_that_is_interrupted_ends(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    first, second = (prefetch_files(files[0], threads=1) for _ in range(2))
    assert gate.reached.wait(60)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weightcache.Prefetch, "_close_idle", interrupted)
        with pytest.raises(KeyboardInterrupt), coordination_readers.pause_all():
            pass
    gate.go_on.set()
    assert first.wait(60)
    assert second.wait(60)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_pause_lets_the_child_go_on() -> None:
    """Another thread held the lock and was about to go on. It is not in the child."""
    with coordination_readers.pause_all(), coordination_readers._changing:
        process = os.fork()
        if not process:
            os._exit(coordination_readers._changing.locked() + 2 * bool(coordination_readers._pauses))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
