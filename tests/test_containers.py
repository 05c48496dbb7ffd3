"""Many containers, one Volume, one Dict, one origin: real processes, the real client, the real entrypoint."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpclib import Status

from control_plane import Container, ControlPlane, needs_namespaces
from origin import Origin
from support import MB, blob, one, sha256
from volume_model import Switches

pytestmark = pytest.mark.crash

DATA = blob(6 * MB)
BOUND = 60.0  # seconds: EXPIRY (2 s in these processes), a poll, and a download, on a busy machine

PROCESS = """
import hashlib, json, sys
import modal
from weightcache import _lease, _schedule, _volume, ensure
_lease.EXPIRY, _lease.BEAT, _lease.POLL, _lease.LOOK = 2.0, 0.2, (0.05, 0.2), 1.0
_volume.BACKOFF = (0.05, 0.1)
_schedule.PROBATION = 60.0  # whatever this machine is busy with, each byte comes once
manifest, root, options = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
volume = modal.Volume.from_name("w")
weights = ensure(manifest, root=root, volume=volume, progress=False, **options)
report = weights.report
print(json.dumps({
    "sha256": hashlib.sha256(weights["sam2"].read_bytes()).hexdigest(),
    "outcome": report["sam2"].outcome, "bytes": report.bytes_fetched, "warnings": report.warnings,
    "waited_for": report.waited_for, "committed": report.committed,
}))
"""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path / "plane") as plane:
        yield plane


def start(plane: ControlPlane, container: Container, manifest: Any, **options: Any) -> subprocess.Popen[str]:
    """Start a process that is a container of its own: its view, its connection, its local disk."""
    [view] = container.views.values()
    local = view.root.parent / "local"
    local.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
    environment |= plane.env(container) | {"TMPDIR": str(local), "MODAL_TASK_ID": container.task}
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps(manifest), str(view.root), json.dumps(options)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    told: dict[str, Any] = json.loads(out)
    # A plain process has its view on no Volume by path, and is told so; one by the entrypoint is not.
    told["warnings"] = [each for each in told["warnings"] if "lies on no Modal Volume" not in each]
    assert told["sha256"] == sha256(DATA)
    return told


def downloaded(origin: Origin) -> float:
    """How often the origin sent the whole file."""
    return origin.sent() / len(DATA)


def test_sixteen_containers_make_one_download(plane: ControlPlane, origin: Origin) -> None:
    origin.put("/a", DATA)
    volume = plane.volume("w")
    manifest = one(DATA, origin.url("/a"))
    containers = [plane.plain_container(volume) for _ in range(16)]
    told = [finish(each) for each in [start(plane, container, manifest) for container in containers]]
    assert downloaded(origin) == 1.0
    assert sorted(each["outcome"] for each in told).count("downloaded") == 1
    assert all(each["warnings"] == [] for each in told)
    waiters = [each["waited_for"] for each in told if each["waited_for"]]
    assert waiters
    assert all(each.startswith("container ta-") for each in waiters)
    assert [path for path in plane.volumes[volume].files if "partial" in path] == []


SWITCHES = {
    "open files are committed": Switches(open_writers="include"),
    "a reload discards": Switches(reload_over="discard"),
    "a reload keeps": Switches(reload_over="keep"),
    "no times are kept": Switches(keeps_mtime=False),
    "maps do not block, any order": Switches(mmap_blocks=False, shuffle=random.Random(7)),
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_whatever_modal_does_not_document(switches: Switches, origin: Origin, tmp_path: Path) -> None:
    """With commits in the background at every moment, and a holder that is killed half-way."""
    with ControlPlane(tmp_path / "plane", switches) as plane:
        volume = plane.volume("w")
        manifest = one(DATA, origin.url("/a"))
        containers = [plane.plain_container(volume) for _ in range(5)]
        over, half, killed = threading.Event(), threading.Event(), threading.Event()

        def background() -> None:
            while not over.wait(0.02):
                for container in containers:
                    container.views[volume].push()

        def on_sent(sent: int) -> None:
            if sent >= 3 * MB and not killed.is_set():
                half.set()
                killed.wait(20)

        committer = threading.Thread(target=background)
        committer.start()
        try:
            origin.put("/a", DATA, on_sent=on_sent)
            holder = start(plane, containers[0], manifest)
            assert half.wait(30)
            holder.kill()
            holder.communicate()
            killed.set()
            told = [finish(each) for each in [start(plane, container, manifest) for container in containers[1:]]]
        finally:
            over.set()
            committer.join()
        assert downloaded(origin) <= 2.0
        assert {each["committed"] for each in told} <= {True, None}
        assert plane.volumes[volume].read(f"sam2/{sha256(DATA)[:16]}/weights.pt") == DATA


CLONES = """
import os, random, sys, json
import weightcache
random.seed(7)
children = []
for environment, root in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        os.environ.update(environment)
        sys.argv[1:] = [sys.argv[2], root, "{}"]
        exec(sys.stdin_code)
        sys.stdout.flush()
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_clones_of_one_memory_snapshot(plane: ControlPlane, origin: Origin) -> None:
    """They share what was in memory, random state included, and are told apart all the same."""
    origin.put("/a", DATA)
    volume = plane.volume("w")
    manifest = one(DATA, origin.url("/a"))
    given = []
    for container in [plane.plain_container(volume) for _ in range(4)]:
        root = container.views[volume].root
        local = root.parent / "local"
        local.mkdir()
        given.append([plane.env(container) | {"TMPDIR": str(local), "MODAL_TASK_ID": container.task}, str(root)])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CLONES.replace("sys.stdin_code", repr(PROCESS)),
            json.dumps(given),
            json.dumps(manifest),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["sha256"] for each in told] == [sha256(DATA)] * 4
    assert downloaded(origin) == 1.0


def test_without_a_lease_each_may_download_once(plane: ControlPlane, origin: Origin) -> None:
    origin.put("/a", DATA)
    volume = plane.volume("w")
    manifest = one(DATA, origin.url("/a"))
    containers = [plane.plain_container(volume) for _ in range(16)]
    for process in [start(plane, container, manifest, lease=None) for container in containers]:
        finish(process)
    assert 1.0 <= downloaded(origin) <= 16.0
    assert plane.requests("DictGetOrCreate") == []


STEPS = {
    "before the claim": ("DictUpdate", 0),
    "after the claim": ("DictGet", 2),
    "before the head": ("DictUpdate", 1),
    "before the first commit": ("VolumeCommit", 0),
    "in the reload of the first commit": ("VolumeReload", 1),
    "before the second commit": ("VolumeCommit", 1),
    "in the reload of the second commit": ("VolumeReload", 2),
    "before the release": ("DictUpdate", -1),
    "half-way": ("half", 0),
    "at the last byte": ("last", 0),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_holder_that_is_killed(step: tuple[str, int], plane: ControlPlane, origin: Origin) -> None:
    call, number = step
    volume = plane.volume("w")
    manifest = one(DATA, origin.url("/a"))
    first = plane.plain_container(volume)
    others = [plane.plain_container(volume) for _ in range(3)]
    holder: list[subprocess.Popen[str]] = []
    dead, started = threading.Event(), threading.Event()

    def kill() -> None:
        started.wait(10)
        holder[0].kill()
        holder[0].wait(10)
        dead.set()

    def on_call(name: str, container: Container | None) -> None:
        if container is not first or dead.is_set():
            return
        is_release = number < 0 and name == call and first.calls.count("VolumeCommit") == 2
        if is_release or (name == call and first.calls.count(name) == number + 1):
            kill()

    def on_sent(sent: int) -> None:
        if not dead.is_set() and ((call == "half" and sent >= 3 * MB) or (call == "last" and sent >= len(DATA) - 1)):
            kill()

    plane.on_call = on_call
    origin.put("/a", DATA, on_sent=on_sent)
    holder.append(start(plane, first, manifest))
    started.set()
    assert dead.wait(60)
    holder[0].communicate()
    began = time.monotonic()
    told = [finish(each) for each in [start(plane, container, manifest) for container in others]]
    assert time.monotonic() - began < BOUND
    assert downloaded(origin) <= 2.0
    assert all(each["committed"] is not False for each in told)


def test_a_dict_that_is_not_permitted_is_a_warning(plane: ControlPlane, origin: Origin) -> None:
    origin.put("/a", DATA)
    plane.fail("DictGetOrCreate", Status.PERMISSION_DENIED, "no Dict for you", times=9)
    told = finish(start(plane, plane.plain_container(plane.volume("w")), one(DATA, origin.url("/a"))))
    assert told["outcome"] == "downloaded"
    [warning] = told["warnings"]
    assert "no lease between containers" in warning
    assert "no Dict for you" in warning


def test_a_volume_that_was_deleted_is_a_warning(plane: ControlPlane, origin: Origin) -> None:
    volume = plane.volume("w")
    container = plane.plain_container(volume)
    origin.put("/a", DATA, on_sent=lambda sent: plane.volumes.pop(volume, None) and None)
    told = finish(start(plane, container, one(DATA, origin.url("/a"))))
    assert told["committed"] is False
    assert any("commit of the volume failed" in each and "not found" in each for each in told["warnings"])


APP = """
import hashlib, json
import modal
from weightcache import ensure

app = modal.App("many")
volume = modal.Volume.from_name("w")
MANIFEST = {manifest}

@app.function(image=modal.Image.debian_slim(), volumes={{"/root/data/weights": volume}})
def serve():
    weights = ensure(MANIFEST, root="/root/data/weights", volume=volume, progress=False, lease={lease})
    report = weights.report
    return [hashlib.sha256(weights["sam2"].read_bytes()).hexdigest(), report["sam2"].outcome, list(report.warnings)]
"""


@pytest.mark.parametrize("lease", ["auto", None])
def test_four_containers_by_the_real_entrypoint(
    lease: str | None, plane: ControlPlane, origin: Origin, tmp_path: Path
) -> None:
    needs_namespaces()
    origin.put("/a", DATA)
    plane.volume("w")
    app = tmp_path / "app.py"
    app.write_text(APP.format(manifest=repr(one(DATA, origin.url("/a"))), lease=repr(lease)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")} | plane.env()
    caller = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import json
from app import app, serve
with app.run():
    calls = [serve.spawn() for _ in range(4)]
    print(json.dumps([call.get() for call in calls]))
"""
    done = subprocess.run([sys.executable, "-c", caller], env=environment, capture_output=True, text=True, timeout=120)
    logs = "".join(container.log for container in plane.containers)
    assert done.returncode == 0, done.stderr + logs
    told = json.loads(done.stdout)
    assert [digest for digest, _, _ in told] == [sha256(DATA)] * 4
    assert [warnings for _, _, warnings in told] == [[]] * 4, logs
    assert downloaded(origin) <= (1.0 if lease else 4.0)
    started = [container for container in plane.containers if container.process]
    assert len(started) == 4
    for container in started:
        assert plane.finish(container) == 0
        assert container.calls[-1] in ("VolumeCommit", "VolumeReload", "TaskResult", "ContainerHeartbeat")
        assert "VolumeCommit" in container.calls  # the runtime's own, at the end
