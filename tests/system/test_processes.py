"""Many at once: eight processes and sixteen threads on one root, with locks and with locks that do nothing (G3, G7)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from origin import Origin, gate
from support import blob, child, finish, one, partials, sha256, start_together, until
from weightcache import CheckpointReport, ensure
from weightcache._store.partial_directory import BLOCK

DATA = blob(24 * BLOCK + 99)

ENSURE = """
if os.environ.get("NO_FLOCK"):
    import fcntl
    fcntl.flock = lambda *_: None
    settings.DEFAULT = replace(settings.DEFAULT, slow_after=60.0)  # one connection each
weights = ensure(json.loads(sys.argv[1]), root=sys.argv[2])
import hashlib
digest = hashlib.sha256(weights["sam2"].read_bytes()).hexdigest()
report = weights.report
print(json.dumps([digest, report["sam2"].outcome, report["sam2"].bytes_fetched, report.waited_for]))
"""


def results(processes: list) -> list:
    return [json.loads(finish(process)) for process in processes]


def test_eight_processes_together(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, rate=20e6)
    manifest = json.dumps(one(DATA, origin.url("/a")))
    found = results([child(ENSURE, manifest, str(root)) for _ in range(8)])
    assert {digest for digest, *_ in found} == {sha256(DATA)}
    assert sum(fetched for _, _, fetched, _ in found) == len(DATA)
    outcomes = sorted(outcome for _, outcome, _, _ in found)
    assert outcomes.count("downloaded") == 1
    assert set(outcomes) <= {"downloaded", "waited", "hit"}
    # One that waited only between the lock and its holder's note has no name to report.
    named = r"process \d+ \(.*\)|another process"
    assert all(re.fullmatch(named, waited_for) for _, outcome, _, waited_for in found if outcome == "waited")


def test_eight_processes_one_after_the_other(origin: Origin, root: Path) -> None:
    """Started 0.4 s apart, as containers' workers are: the late ones find a download under way."""
    origin.put("/a", DATA, rate=7e6)
    manifest = json.dumps(one(DATA, origin.url("/a")))
    processes = []
    for _ in range(8):
        processes.append(child(ENSURE, manifest, str(root)))
        time.sleep(0.4)  # the stimulus itself; nothing below rests on it
    found = results(processes)
    assert {digest for digest, *_ in found} == {sha256(DATA)}
    assert sum(fetched for _, _, fetched, _ in found) == len(DATA)


def test_locks_that_do_nothing(origin: Origin, root: Path) -> None:
    # The first one goes on when a second one has asked too, however far apart they start.
    origin.put("/a", DATA, rate=40e6, on_sent=lambda sent: until(lambda: origin.gets() > 1))
    manifest = json.dumps(one(DATA, origin.url("/a")))
    found = results([child(ENSURE, manifest, str(root), env={"NO_FLOCK": "1"}) for _ in range(8)])
    assert {digest for digest, *_ in found} == {sha256(DATA)}
    assert sum(fetched > 0 for _, _, fetched, _ in found) > 1  # else the locks did something
    assert partials(root) == []


LOCKING = """
from weightcache._coordination.lock import root_lock
settings.DEFAULT = replace(settings.DEFAULT, lock_poll=0.002)
print("ready", flush=True)
sys.stdin.readline()
together = 0
for _ in range(int(sys.argv[2])):
    with root_lock(sys.argv[1] + "/root", wait=60.0, say=lambda line: None, check=lambda: None):
        try:
            os.close(os.open(sys.argv[1] + "/held", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            together += 1
        os.listdir(sys.argv[1])
        try:
            os.unlink(sys.argv[1] + "/held")
        except FileNotFoundError:
            together += 1
print(together)
"""


def test_no_two_processes_hold_the_lock_though_its_file_is_removed_each_time(tmp_path: Path) -> None:
    """In gVisor a lock counted that was on a removed file, since its count of links was still one."""
    processes = [child(LOCKING, str(tmp_path), "100", stdin=subprocess.PIPE) for _ in range(4)]
    start_together(processes)
    assert [int(finish(process)) for process in processes] == [0, 0, 0, 0]


def test_sixteen_threads(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, rate=100e6)
    manifest, together = one(DATA, origin.url("/a")), threading.Barrier(16)

    def work(_: int) -> CheckpointReport:
        together.wait()
        return ensure(manifest, root=root, progress=False).report["sam2"]

    with ThreadPoolExecutor(16) as pool:
        reports = list(pool.map(work, range(16)))
    outcomes = [report.outcome for report in reports]
    assert outcomes.count("downloaded") == 1
    assert set(outcomes) <= {"downloaded", "waited", "hit"}
    assert sum(report.bytes_fetched for report in reports) == len(DATA)


def test_two_spellings_of_a_root_are_one_lock(origin: Origin, root: Path, tmp_path: Path) -> None:
    root.mkdir()
    (tmp_path / "mount").symlink_to(root)
    origin.put("/a", DATA, rate=100e6)
    manifest = one(DATA, origin.url("/a"))
    spellings = [root, tmp_path / "mount", f"{root}/../root", f"{tmp_path}//mount/"]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: ensure(manifest, root=path, progress=False), spellings))
    assert sum(weights.report.bytes_fetched for weights in found) == len(DATA)
    assert {weights["sam2"].read_bytes() for weights in found} == {DATA}


WATCHED = """
settings.DEFAULT = replace(settings.DEFAULT, slow_after=60.0)  # the connection that is held is not called slow
print("ready", flush=True)
sys.stdin.readline()
root = os.path.realpath(sys.argv[2])
def everyone():
    return open(sys.argv[2] + "-pids").read().split()
def inside(pids):
    held = []
    for pid in pids:
        if not os.path.isdir(f"/proc/{pid}/fd"):
            continue
        links = [f"/proc/{pid}/cwd"] + [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
        for link in links:
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith(root + "/") or target == root:
                held.append(f"{link} -> {target}")
        held += [line for line in open(f"/proc/{pid}/maps") if root + "/" in line]
    return held
class Volume:
    calls = []
    def commit(self):
        self.calls.append(["commit", inside(everyone())])
    def reload(self):
        self.calls.append(["reload", inside(everyone())])
weights = ensure(json.loads(sys.argv[1]), root=sys.argv[2], volume=Volume())
print(json.dumps([Volume.calls, inside([os.getpid()]), weights.report["sam2"].outcome]))
"""


def test_nothing_is_open_in_the_root_at_commit_reload_or_return(origin: Origin, root: Path) -> None:
    """G7, seen through /proc: at a call in all of eight processes, while seven wait for the eighth.

    At return in that process alone: another may have just begun to read a receipt (docs/decisions/0015).
    """
    reached, go_on = threading.Event(), threading.Event()
    origin.put("/a", DATA, faults=[gate(3 * BLOCK, reached, go_on)])
    manifest = json.dumps(one(DATA, origin.url("/a")))
    processes = [child(WATCHED, manifest, str(root), stdin=subprocess.PIPE) for _ in range(8)]
    Path(f"{root}-pids").write_text(" ".join(str(process.pid) for process in processes))
    start_together(processes)
    assert reached.wait(60)
    waiting = 0
    lines: dict[int, str] = {}

    def read_first_line(index: int) -> None:
        lines[index] = processes[index].stderr.readline()

    readers = [threading.Thread(target=read_first_line, args=(index,), daemon=True) for index in range(8)]
    for reader in readers:
        reader.start()
    while waiting < 7:  # each says at once that it waits; the eighth says nothing before it is done
        waiting = sum("waiting for process" in line for line in list(lines.values()))
        assert all(process.poll() is None for process in processes)
    go_on.set()
    found = results(processes)
    for reader in readers:
        reader.join()
    outcomes = sorted(outcome for _, _, outcome in found)
    assert outcomes == ["downloaded"] + ["waited"] * 7
    [calls] = [calls for calls, _, outcome in found if outcome == "downloaded"]
    assert [name for name, _ in calls] == ["reload", "commit", "commit"]
    assert [held for calls, at_return, _ in found for held in [*[held for _, held in calls], at_return]] == [[]] * 11


def test_the_watch_sees_what_is_open(root: Path, origin: Origin) -> None:
    """The check above can fail: a file of the root that is open at commit is seen."""
    origin.put("/a", DATA)
    (root / "x").mkdir(parents=True)
    code = WATCHED.replace("weights = ensure", "held = open(os.path.join(root, 'x', 'y'), 'w'); weights = ensure")
    process = child(code, json.dumps(one(DATA, origin.url("/a"))), str(root), stdin=subprocess.PIPE)
    Path(f"{root}-pids").write_text(str(process.pid))
    start_together([process])
    calls, at_return, _ = json.loads(finish(process))
    assert all(held for _, held in calls)
    assert at_return


@pytest.mark.usefixtures("one_connection")
def test_a_fork_while_a_thread_holds_the_gate(origin: Origin, root: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()
    origin.put("/a", DATA, faults=[gate(BLOCK, reached, go_on)])
    origin.put("/b", b"small")
    thread = threading.Thread(
        target=lambda: ensure(one(DATA, origin.url("/a")), root=root, progress=False), name="filler"
    )
    thread.start()
    assert reached.wait(60)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads is dangerous is the point
        pid = os.fork()
    if pid == 0:
        other = root.with_name("other")
        try:
            ensure(one(b"small", origin.url("/b")), root=other, progress=False)
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    go_on.set()
    thread.join()
    assert status == 0


@pytest.mark.parametrize("task", ["", "ta-1"])
def test_writers_are_told_apart(task: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightcache._runtime.writer_identity import Writer, process_start

    if task:
        monkeypatch.setenv("MODAL_TASK_ID", task)
    writer = Writer.new(str(root))
    assert Writer.parse(str(writer)) == writer
    assert Writer.parse("somebody") is None
    assert writer.is_here(str(root))
    assert writer.is_dead_here(str(root))  # it is not at work
    with writer:
        assert not writer.is_dead_here(str(root))
    process = child("input()")
    living = Writer(writer.container, process.pid, process_start(process.pid) or 0, "0" * 8)
    reused = Writer(writer.container, process.pid, 1, "0" * 8)
    assert not living.is_dead_here(str(root))
    assert reused.is_dead_here(str(root))  # another process has its pid
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert living.is_dead_here(str(root))  # a zombie writes nothing
    process.communicate()
    assert living.is_dead_here(str(root))
    monkeypatch.setenv("MODAL_TASK_ID", "another container, or a clone of a snapshot")
    assert not living.is_here(str(root))
    assert not living.is_dead_here(str(root))
