"""Training beside open files: by the real client and the real container entrypoint, where a reload fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from grpclib import GRPCError, Status

from control_plane import ControlPlane
from control_plane_state import Container
from origin import Origin
from support import blob, one, sha256

pytestmark = pytest.mark.usefixtures("namespaces")

DATA = blob(50_000)

APP = """
import json, pathlib, sys
import modal
import weightcache

app = modal.App("training")
volume = modal.Volume.from_name("w")
image = modal.Image.debian_slim()

@app.function(image=image, volumes={{"/models": {mounted}}})
def train(versions: int):
    reported = []
    with open("/models/train.log", "w") as log:
        for number in range(versions):
            print("epoch", number, file=log, flush=True)
            pathlib.Path("/tmp/model.pt").write_bytes(bytes([number]) * 1000)
            try:
                checkpoint = weightcache.publish(
                    "/tmp/model.pt", name="tagger", root="/models{root}", volume={mounted}
                )
                reported.append([checkpoint.digest, str(checkpoint)])
            except weightcache.VolumeError as error:
                reported.append(["VolumeError", str(error)])
    return reported

@app.function(image=image, volumes={{"/models": {mounted}}})
def fill(manifest):
    with open("/models/train.log", "a") as log:
        report = weightcache.ensure(manifest, root="/models{root}", volume={mounted}, lease=None, progress=False).report
    return [report["sam2"].outcome, report.committed, list(report.warnings)]

@app.function(image=image, volumes={{"/models": {mounted}}})
def serve(entry: str):
    pathlib.Path("/tmp/weights.toml").write_text(entry)
    weights = weightcache.ensure("/tmp/weights.toml", root="/models{root}", volume={mounted}, offline=True)
    return [weights.report["tagger"].outcome, len(weights["tagger"].read_bytes())]
"""


def call(plane: ControlPlane, tmp_path: Path, work: str, *, mounted: str = "volume", root: str = "") -> Any:
    (tmp_path / "training.py").write_text(APP.format(mounted=mounted, root=root))
    code = f"import json, sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom training import app, fill, serve, train\n"
    code += f"with app.run():\n    print(json.dumps({work}))\n"
    done = plane.client("-c", code)
    assert done.returncode == 0, done.stderr + "".join(container.log for container in plane.containers)
    return json.loads(done.stdout)


@pytest.mark.parametrize("version", [1, 2])
def test_publish_while_a_log_is_open(version: int, plane: ControlPlane, tmp_path: Path) -> None:
    volume = plane.volume("w", version)
    committed: list[list[str]] = []  # what the Volume had when the container ended its work

    def on_call(name: str, container: Container | None) -> None:
        if name == "FunctionPutOutputs":
            committed.append(list(plane.volumes[volume].files))

    plane.on_call = on_call
    reported = call(plane, tmp_path, "train.remote(3)")
    assert [digest for digest, _ in reported] == [sha256(bytes([number]) * 1000) for number in range(3)]
    for digest, _ in reported:
        assert f"tagger/{digest[:16]}/model.pt" in committed[0]
        assert f".weightcache/receipts/tagger/{digest}.json" in committed[0]
    [container] = plane.containers
    # Each commit is one that raises and one that proves it: nothing waits and tries again.
    during = container.calls[: container.calls.index("FunctionPutOutputs")]
    assert during.count("VolumeCommit") == 3 * 2 * 2
    assert (
        container.log.count("the volume was committed, and cannot be reloaded: /models/train.log is open in process ")
        == 1
    )
    assert call(plane, tmp_path, f"serve.remote({reported[1][1]!r})") == ["hit", 1000]
    assert [path for path in plane.volumes[volume].files if "/commit-" in path] == []


def test_ensure_beside_an_open_file_says_that_it_is_committed(
    plane: ControlPlane, origin: Origin, tmp_path: Path
) -> None:
    plane.volume("w")
    origin.put("/a", DATA)
    outcome, committed, warnings = call(plane, tmp_path, f"fill.remote({one(DATA, origin.url('/a'))!r})")
    assert (outcome, committed) == ("downloaded", True)
    assert [each for each in warnings if each.startswith("the volume was committed")]


def test_a_commit_that_does_not_work_is_an_error_all_the_same(plane: ControlPlane, tmp_path: Path) -> None:
    volume = plane.volume("w")
    committed: list[list[str]] = []

    def on_call(name: str, container: Container | None) -> None:
        if name == "VolumeCommit" and not committed:
            raise GRPCError(Status.FAILED_PRECONDITION, "there are open files preventing the operation")
        if name == "FunctionPutOutputs":
            committed.append(list(plane.volumes[volume].files))

    plane.on_call = on_call
    [(kind, text)] = call(plane, tmp_path, "train.remote(1)")
    assert kind == "VolumeError"
    assert "perhaps only in this container" in text
    assert "(/models/train.log is open in process " in text
    assert committed == [[]]


@pytest.mark.parametrize(("mounted", "root"), [('volume.with_mount_options(sub_path="runs")', ""), ("volume", "/runs")])
def test_a_root_below_the_top_of_the_volume(mounted: str, root: str, plane: ControlPlane, tmp_path: Path) -> None:
    volume = plane.volume("w")
    [(digest, _)] = call(plane, tmp_path, "train.remote(1)", mounted=mounted, root=root)
    assert f"runs/tagger/{digest[:16]}/model.pt" in plane.volumes[volume].files
