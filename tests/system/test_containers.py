"""Many containers, one Volume, one Dict, one origin: real processes, the real client, the real entrypoint."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from grpclib import Status

from control_plane import ControlPlane, needs_namespaces
from control_plane_state import Container
from origin import Origin
from support import MB, blob, one, sha256, until
from volume_model import Switches

pytestmark = pytest.mark.crash

DATA = blob(6 * MB)
BOUND = 60.0  # seconds: EXPIRY (2 s in these processes), a poll, and a download, on a busy machine
# Seconds that one of them waits for others: EXPIRY and two polls for a dead one, and a download of another one that
# then goes on. One that takes a dead one for alive waits for EXPIRY as it is shipped, 30 s, at least.
WAITED = 15.0

PROCESS = """
import hashlib, json, os, sys
from dataclasses import replace
import modal
from volume_model import play_links
from dataclasses import replace
from weightcache._runtime import tuning_constants as settings
from weightcache import ensure
from weightcache._coordination import mount_check
waits = dict(lease_expiry=2.0, lease_beat=0.2, lease_poll=(0.05, 0.2), reload_interval=1.0, volume_backoff=(0.05, 0.1))
settings.DEFAULT = replace(settings.DEFAULT, slow_after=60.0, **waits)  # even on a busy machine, each byte comes once
manifest, root, options = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
links = play_links(root, int(os.environ["VOLUME_VERSION"]))
mount_check.MODAL_VOLUMES = os.path.dirname(os.path.realpath(root)) + "/"  # a view is named after its Volume's id
volume = modal.Volume.from_name("w")
weights = ensure(manifest, root=root, volume=volume, progress=False, **options)
report, [(name, path)] = weights.report, weights.items()
result = json.dumps({
    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    "outcome": report[name].outcome, "bytes": report.bytes_fetched, "warnings": report.warnings,
    "waited_for": report.waited_for, "waited": report.waited, "committed": report.committed, "links": links,
})
sys.stdout.write(result + "\\n")  # at once: clones share what they write to
"""


def environment(plane: ControlPlane, container: Container) -> dict[str, str]:
    """What makes a process a container of its own: its connection, its local disk, and what its Volume can do."""
    [view] = container.views.values()
    local = view.root.parent / "local"
    local.mkdir(exist_ok=True)
    own = {"TMPDIR": str(local), "MODAL_TASK_ID": container.task, "VOLUME_VERSION": str(view.volume.version)}
    return plane.env(container) | own


def outside(plane: ControlPlane) -> dict[str, str]:
    """Return the environment of a process that finds the modules of the tests, and no Modal but the plane."""
    return plane.outside() | {
        "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[1] / name) for name in ("shared", "fakes"))
    }


def start(plane: ControlPlane, container: Container, manifest: Any, **options: Any) -> subprocess.Popen[str]:
    """Start a process that stands for a container, on its view."""
    [view] = container.views.values()
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps(manifest), str(view.root), json.dumps(options)],
        env=outside(plane) | environment(plane, container),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out)
    assert result["sha256"] == sha256(DATA)
    return result


def downloaded(origin: Origin) -> float:
    """How often the origin sent the whole file."""
    return origin.sent() / len(DATA)


@pytest.mark.parametrize("version", [1, 2])
def test_sixteen_containers_make_one_download(version: int, plane: ControlPlane, origin: Origin) -> None:
    volume = plane.volume("w", version)
    containers = [plane.plain_container(volume) for _ in range(16)]
    before: list[int] = []  # how often each had read the Dict when the first bytes were sent

    def reads() -> list[int]:
        return [container.calls.count("DictGet") for container in containers]

    def on_sent(sent: int) -> None:
        if not before:
            before.extend(reads())
        # After three reads and two answers a container knows the holder of the lease: the holder, and one more.
        until(lambda: sum(now >= then + 3 for now, then in zip(reads(), before, strict=True)) > 1)

    origin.put("/a", DATA, on_sent=on_sent)
    manifest = one(DATA, origin.url("/a"))
    told = [finish(each) for each in [start(plane, container, manifest) for container in containers]]
    assert downloaded(origin) == 1.0
    assert sorted(each["outcome"] for each in told).count("downloaded") == 1
    assert all(each["warnings"] == [] for each in told)
    waiters = [each["waited_for"] for each in told if each["waited_for"]]
    assert waiters
    assert all(each.startswith("container ta-") for each in waiters)
    assert [path for path in plane.volumes[volume].files if "partial" in path] == []


@pytest.mark.parametrize(("version", "links"), [(1, ["refused"]), (2, ["made"])])
def test_a_second_name_for_the_same_bytes(version: int, links: list[str], plane: ControlPlane, origin: Origin) -> None:
    origin.put("/a", DATA)
    volume = plane.volume("w", version)
    for name, outcome, came in (("sam2", "downloaded", []), ("again", "copied", links)):
        told = finish(start(plane, plane.plain_container(volume), one(DATA, origin.url("/a"), name=name)))
        assert (told["outcome"], told["links"], told["warnings"]) == (outcome, came, [])
    assert downloaded(origin) == 1.0
    assert plane.volumes[volume].read(f"again/{sha256(DATA)[:16]}/weights.pt") == DATA


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
        assert 0 < max(each["waited"] for each in told) < WAITED
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
    """They share what was in memory, random state included, and still count as different containers."""
    origin.put("/a", DATA)
    volume = plane.volume("w")
    manifest = one(DATA, origin.url("/a"))
    containers = [plane.plain_container(volume) for _ in range(4)]
    given = [[environment(plane, container), str(container.views[volume].root)] for container in containers]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CLONES.replace("sys.stdin_code", repr(PROCESS)),
            json.dumps(given),
            json.dumps(manifest),
        ],
        env=outside(plane),
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
    assert max(each["waited"] for each in told) < WAITED
    assert downloaded(origin) <= 2.0
    assert all(each["committed"] is not False for each in told)


def test_a_dict_that_is_not_permitted_is_a_warning(plane: ControlPlane, origin: Origin) -> None:
    origin.put("/a", DATA)
    plane.fail("DictGetOrCreate", Status.PERMISSION_DENIED, "no Dict for you", times=9)
    told = finish(start(plane, plane.plain_container(plane.volume("w")), one(DATA, origin.url("/a"))))
    assert told["outcome"] == "downloaded"
    [warning] = told["warnings"]
    assert warning == (
        "no lease between containers (PermissionDeniedError: no Dict for you): each that starts at the same time may "
        "download for itself. Permit this token to use Dicts, or pass lease=None"
    )


def test_a_volume_that_was_deleted_is_a_warning(plane: ControlPlane, origin: Origin) -> None:
    volume = plane.volume("w")
    container = plane.plain_container(volume)
    origin.put("/a", DATA, on_sent=lambda sent: plane.volumes.pop(volume, None) and None)
    told = finish(start(plane, container, one(DATA, origin.url("/a"))))
    assert told["committed"] is False
    advice = "If the Volume was deleted, deploy the app again: a new Volume has another id"
    assert f"commit of the volume failed: RuntimeError: Volume {volume} not found. {advice}" in told["warnings"]


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
    caller = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import json
from app import app, serve
with app.run():
    calls = [serve.spawn() for _ in range(4)]
    print(json.dumps([call.get() for call in calls]))
"""
    done = subprocess.run(
        [sys.executable, "-c", caller], env=outside(plane), capture_output=True, text=True, timeout=120
    )
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


BESIDE = """
import errno, hashlib
from dataclasses import replace
import modal
from dataclasses import replace
from weightcache._runtime import tuning_constants as settings
from weightcache import ensure

settings.DEFAULT = replace(settings.DEFAULT, lease_poll=(0.05, 0.2), slow_after=60.0)  # the origin holds its bytes back
ROOT = "/root/data/weights"
app = modal.App("beside")
volume = modal.Volume.from_name("w")
image = modal.Image.debian_slim()

def summary():
    weights = ensure({manifest}, root=ROOT, volume=volume, progress=False)
    report = weights.report
    digest = hashlib.sha256(weights["sam2"].read_bytes()).hexdigest()
    return [digest, report["sam2"].outcome, report.waited_for, list(report.warnings)]

@app.function(image=image, volumes={{ROOT: volume}})
def fill():
    return summary()

@app.function(image=image, volumes={{ROOT: volume.with_mount_options(read_only=True)}})
def serve():
    try:
        open(ROOT + "/new", "w")
    except OSError as error:
        assert error.errno == errno.EROFS
    else:
        raise AssertionError("it can be written to")
    return summary()
"""

CALLER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from beside import app, fill, serve
from weightcache import NotCachedError

said = []
with app.run():
    try:
        serve.remote()
    except NotCachedError as error:
        said.append([str(error), error.hint])
    filling = fill.spawn()
    print("fills", flush=True)
    input()
    said += [serve.remote(), filling.get(), serve.remote()]
print(json.dumps(said))
"""


def test_a_server_that_only_reads_beside_one_that_fills(plane: ControlPlane, origin: Origin, tmp_path: Path) -> None:
    """Nobody fills the Volume; then somebody does, and it waits; then it is filled."""
    needs_namespaces()
    begun = threading.Event()

    def on_sent(sent: int) -> None:
        begun.set()
        # The first read of the Dict shows whether it works, the second the holder of the lease; then it has waited.
        until(lambda: len(plane.containers) > 2 and plane.containers[2].calls.count("DictGet") > 2)

    origin.put("/a", DATA, on_sent=on_sent)
    plane.volume("w")
    (tmp_path / "beside.py").write_text(BESIDE.format(manifest=repr(one(DATA, origin.url("/a")))))
    command = [sys.executable, "-c", CALLER, str(tmp_path)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=outside(plane), text=True, **pipes) as caller:
        while not begun.wait(0.05) and caller.poll() is None:
            pass
        out, err = caller.communicate("\n", timeout=120)
    assert caller.returncode == 0, err + "".join(container.log for container in plane.containers)
    missed, waited, filled, hit = json.loads(out.partition("\n")[2])
    filler = plane.containers[1].task
    assert missed[0].startswith("not in /root/data/weights, and the root is read-only here: sam2 is not there")
    assert missed[1].startswith("run `weightcache ensure sam2 --volume w` with this manifest")
    assert (waited[0], waited[1], waited[3]) == (sha256(DATA), "waited", [])
    assert waited[2].startswith(f"container {filler} (process ")
    assert filled == [sha256(DATA), "downloaded", "", []]
    assert hit == [sha256(DATA), "hit", "", []]
    assert downloaded(origin) == 1.0
