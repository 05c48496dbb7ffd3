"""The control plane of the tests, driven by the real client and the real container entrypoint."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from grpclib import Status

from control_plane import ControlPlane, needs_namespaces


def client(plane: ControlPlane, *command: str, directory: str | Path = "/") -> subprocess.CompletedProcess[str]:
    return plane.client(*command, directory=directory)


def said(plane: ControlPlane, code: str) -> str:
    done = client(plane, "-c", "import modal\n" + code)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_a_volume(version: int, plane: ControlPlane) -> None:
    out = said(
        plane,
        f"""
import hashlib, io, os
data = os.urandom((8 << 20) - 5) + bytes(5) + os.urandom((12 << 20) - 3) + bytes(3)  # two blocks end in zeros
volume = modal.Volume.from_name("w", create_if_missing=True, version={version})
with volume.batch_upload() as batch:
    batch.put_file(io.BytesIO(data), "/d/f")
    batch.put_file(io.BytesIO(b"small"), "/g")
print([each.path for each in volume.listdir("/", recursive=True)])
print(hashlib.sha256(b"".join(volume.read_file("d/f"))).digest() == hashlib.sha256(data).digest())
try:
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"again"), "/g")
except FileExistsError as error:
    print(type(error).__name__)
volume.remove_file("d", recursive=True)
print([each.path for each in volume.listdir("/", recursive=True)])
try:
    list(volume.read_file("d/f"))
except FileNotFoundError as error:
    print(type(error).__name__)
""",
    )
    assert out.splitlines() == ["['d/f', 'g']", "True", "FileExistsError", "['g']", "FileNotFoundError"]


def test_volumes_that_cannot_be_had(plane: ControlPlane) -> None:
    plane.volume("one", 1)
    out = said(
        plane,
        """
for options in ({"name": "absent"}, {"name": "one", "version": 2}):
    try:
        modal.Volume.from_name(**options).hydrate()
    except modal.exception.Error as error:
        print(type(error).__name__, error)
""",
    )
    first, second = out.splitlines()
    assert first.startswith("NotFoundError")
    assert "exists but has version v1, not v2 as requested" in second


def test_of_many_puts_one_wins(plane: ControlPlane) -> None:
    out = said(
        plane,
        """
from concurrent.futures import ThreadPoolExecutor
found = modal.Dict.from_name("d", create_if_missing=True)
with ThreadPoolExecutor(16) as pool:
    made = list(pool.map(lambda number: found.put("k", number, skip_if_exists=True), range(64)))
print(sum(made), made[found.get("k")])
print(found.pop("k") is not None, found.get("k"))
try:
    found.pop("k")
except KeyError:
    print("KeyError")
""",
    )
    assert out.splitlines() == ["1 True", "True None", "KeyError"]


def test_what_is_not_played_says_its_name(plane: ControlPlane) -> None:
    done = client(plane, "-c", "import modal; modal.Queue.from_name('q', create_if_missing=True).hydrate()")
    assert "does not play QueueGetOrCreate" in done.stderr


def test_faults(plane: ControlPlane) -> None:
    plane.fail("DictGetOrCreate", Status.PERMISSION_DENIED, "not you")
    done = client(plane, "-c", "import modal; modal.Dict.from_name('d', create_if_missing=True).hydrate()")
    assert "PermissionDeniedError: not you" in done.stderr


MANIFEST = """
[checkpoints.sam2]
urls = ["https://example.invalid/sam2.pt"]
sha256 = "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"
"""

APP = """
import os
import modal

app = modal.App("small")
volume = modal.Volume.from_name("w", create_if_missing=True)


@app.cls(
    image=modal.Image.debian_slim(),
    volumes={"/root/data/weights": volume},
    cpu=2,
    memory=4096,
    timeout=600,
    min_containers=1,
    secrets=[modal.Secret.from_dict({"TOKEN": "x"})],
)
class Small:
    @modal.enter()
    def load(self):
        with open("/root/data/weights/f", "w") as stream:
            stream.write("from the container")
        volume.commit()
        volume.reload()

    @modal.method()
    def doubled(self, number):
        print("said in the log", flush=True)
        here = os.path.realpath("/root/data/weights")
        return [number, os.environ["TOKEN"], here, open("/root/data/weights/f").read(), modal.is_local()]

    @modal.exit()
    def bye(self):
        print("left", flush=True)


@app.local_entrypoint()
def main():
    print(Small().doubled.remote(7))
"""


def test_what_a_deployment_asks_for(plane: ControlPlane, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(APP)
    done = client(plane, "-m", "modal", "deploy", str(tmp_path / "small.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    function = plane.requests("FunctionCreate")[-1].function
    [mount] = function.volume_mounts
    assert (mount.mount_path, plane.volumes[mount.volume_id].name) == ("/root/data/weights", "w")
    assert (function.resources.milli_cpu, function.resources.memory_mb, function.timeout_secs) == (2000, 4096, 600)
    assert (function.autoscaler_settings.min_containers, len(function.secret_ids)) == (1, 1)


def test_the_how_to_can_be_deployed(plane: ControlPlane, tmp_path: Path) -> None:
    pages = Path(__file__).parents[2] / "docs/how-to"
    (tmp_path / "weights.toml").write_text(MANIFEST)
    in_an_app = ("use-it-in-your-modal-app", "a-memory-snapshot", "servers-that-only-read")
    for page in (*in_an_app, "fill-a-volume-before-the-first-request"):
        blocks = re.findall(r"```python\n(.*?)```", (pages / f"{page}.md").read_text(), re.DOTALL)
        (tmp_path / "app.py").write_text("\n".join(blocks))
        done = client(plane, "-m", "modal", "deploy", "app.py", directory=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    functions = {each.function.function_name: each.function for each in plane.requests("FunctionCreate")}
    assert {"FashionCrop.*", "crop", "web", "AsyncCrop.*", "Snapshotted.*", "fill", "Server.*"} <= set(functions)
    assert {each.volume_mounts[0].mount_path for each in functions.values()} == {"/root/data/weights"}
    assert functions["Snapshotted.*"].checkpointing_enabled
    assert [name for name, each in functions.items() if each.volume_mounts[0].read_only] == ["Server.*"]


def test_a_container_starts_serves_and_ends(plane: ControlPlane, tmp_path: Path) -> None:
    needs_namespaces()
    (tmp_path / "small.py").write_text(APP)
    done = client(plane, "-m", "modal", "run", str(tmp_path / "small.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    [container] = plane.containers
    [volume] = plane.volumes
    expected = [7, "x", f"/__modal/volumes/{volume}", "from the container", False]
    assert str(expected) in done.stdout
    assert "said in the log" in done.stdout + done.stderr
    assert plane.finish(container) == 0
    assert plane.volumes[volume].read("f") == b"from the container"
    order = [name for name in container.calls if name.startswith(("Volume", "FunctionPut", "ContainerHello"))]
    assert order[:4] == ["ContainerHello", "VolumeCommit", "VolumeReload", "VolumeReload"]
    assert order[4:6] == ["FunctionPutOutputs", "VolumeCommit"]  # the runtime's own, at the end
    assert not Path("/__modal").exists()  # its root was its own
