"""The app on Modal: the real client deploys it, the real entrypoint runs it, requests come over Modal's wire.

The weights are the stand-ins; everything else is what is deployed.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from modal._serialization import serialize
from modal_proto import api_pb2 as pb
from PIL import Image

from control_plane import ControlPlane, needs_namespaces
from control_plane_functions import WEB_PART
from control_plane_state import Container
from deployment import EXAMPLE, copy_example, serve_stand_ins
from origin import Origin

if TYPE_CHECKING:
    from conftest import StandIns

KEY = {"X-API-Key": "let me in"}
NOTHING_GIVEN = pb.FunctionGetInputsItem(
    input_id="in-0", input=pb.FunctionInput(args=serialize(((), {})), data_format=pb.DATA_FORMAT_PICKLE)
)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    needs_namespaces()
    with ControlPlane(tmp_path / "plane") as plane:
        plane.secret("fashion-api-keys", FASHION_API_KEY="let me in")
        yield plane


@pytest.fixture
def app(stand_ins: StandIns, origin: Origin, tmp_path: Path) -> Path:
    return copy_example(tmp_path / "fashion_crop", stand_ins, origin)


def deploy(plane: ControlPlane, app: Path, **options: str) -> dict[str, Any]:
    """Return each function's id by its name."""
    done = plane.client("-m", "modal", "deploy", str(app), **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(plane.requests("AppPublish")[-1].function_ids)


def web_of(plane: ControlPlane, function: str) -> httpx.Client:
    """Return a client of the URL that the deployment printed; the first request starts a container."""
    return httpx.Client(base_url=plane.web_url(function), timeout=120)


def photo(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((width, height), 80).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def crops(web: httpx.Client, data: bytes) -> list[dict[str, Any]]:
    answer = web.post("/v1/crops", files={"image": data}, data={"box_threshold": "0.1"}, headers=KEY)
    assert answer.status_code == 200, answer.text
    garments: list[dict[str, Any]] = answer.json()["garments"]
    return garments


def test_from_an_empty_volume_to_crops(plane: ControlPlane, app: Path, origin: Origin) -> None:
    function = deploy(plane, app)["FashionCrop.*"]
    data = photo(900, 600)
    assert len(data) > WEB_PART  # it comes in several messages
    with web_of(plane, function) as web:
        assert web.get("/healthz").status_code == 200, plane.containers[0].log
        assert "<html" in web.get("/").text
        told = web.get("/v1/info").json()
        assert (told["stand_ins"], told["device"], told["phases"]["download"] > 0) == (True, "cpu", True)
        refused = web.post("/v1/crops", files={"image": data})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "key-missing")
        garments = crops(web, data)
        assert garments
        crop = Image.open(io.BytesIO(base64.b64decode(garments[0]["picture"])))
        left, top, right, bottom = garments[0]["crop_box"]
        assert (crop.mode, crop.size) == ("RGBA", (right - left, bottom - top))
    [first] = plane.containers
    assert plane.stop(first) == 0
    assert "VolumeCommit" in first.calls
    sent = origin.sent()
    assert sent > 30_000_000

    with web_of(plane, function) as web:
        phases = web.get("/v1/info").json()["phases"]
    [_, second] = plane.containers
    assert plane.stop(second) == 0
    assert origin.sent() == sent  # what the first has committed, the second finds
    assert ("download" in phases, phases["inspect"] > 0) == (False, True)


def test_a_snapshot_has_the_weights_inside(plane: ControlPlane, app: Path, origin: Origin) -> None:
    sent_before: list[int] = []

    def on_call(name: str, container: Container | None) -> None:
        if name == "ContainerCheckpoint":
            [view] = container.views.values()
            view.reload()  # which fails if a file is open there
            for each in view.root.iterdir():  # what is restored must do without them
                shutil.rmtree(each)
            sent_before.append(origin.sent())

    plane.on_call = on_call
    with web_of(plane, deploy(plane, app, FASHION_OPTION="D")["FashionCrop.*"]) as web:
        assert crops(web, photo(64, 64)), plane.containers[0].log
    assert sent_before == [origin.sent()]
    assert sent_before[0] > 30_000_000
    [container] = plane.containers
    assert plane.stop(container) == 0
    assert container.calls.index("ContainerCheckpoint") < container.calls.index("FunctionGetInputs")


def test_a_gpu_is_used_after_the_snapshot(plane: ControlPlane, app: Path, origin: Origin) -> None:
    """This machine has no GPU, so a move is a request here, which shows when it happens."""
    origin.put("/moved-to-cuda-collecting-True", b"")
    module = app.with_name("models") / "pipeline.py"
    text = module.read_text()
    moved = "self._detector.to(device)"
    assert moved in text
    url = origin.url("/moved-to-")
    code = f"import gc, urllib.request as r; r.urlopen(f'{url}{{device}}-collecting-{{gc.isenabled()}}'); return"
    module.write_text(text.replace(moved, code))
    order: list[str] = []

    def on_call(name: str, container: Container | None) -> None:
        if name == "ContainerCheckpoint":
            order.extend(each.path for each in origin.requests if each.path.startswith("/moved"))
            order.append(name)

    plane.on_call = on_call
    with web_of(plane, deploy(plane, app, FASHION_OPTION="D", FASHION_GPU="L4")["FashionCrop.*"]) as web:
        told = web.get("/v1/info").json()
    order += [each.path for each in origin.requests if each.path.startswith("/moved")]
    assert order == ["ContainerCheckpoint", "/moved-to-cuda-collecting-True"], plane.containers[0].log
    assert (told["device"], told["phases"]["to device"] > 0) == ("cuda", True)
    assert plane.stop(plane.containers[0]) == 0


def test_a_ping_wakes_option_c(plane: ControlPlane, app: Path) -> None:
    url = plane.web_url(deploy(plane, app, FASHION_OPTION="C")["FashionCrop.*"])
    ping = deploy(plane, app.with_name("ping.py"), FASHION_URL=url)["ping"]
    pinging = plane.start_container(ping, plane.requests("AppPublish")[-1].app_id, [NOTHING_GIVEN])
    assert plane.finish(pinging) == 0, pinging.log
    assert [each.result.status for each in pinging.outputs] == [pb.GenericResult.GENERIC_STATUS_SUCCESS], pinging.log
    assert '200 {"status":"alive"}' in pinging.log
    [_, woken] = plane.containers
    assert plane.stop(woken) == 0


# Copied: the app and its models, without the service.


@pytest.fixture
def copied(stand_ins: StandIns, origin: Origin, tmp_path: Path) -> Path:
    """The files that the README says are enough, with what it says to delete deleted."""
    folder = tmp_path / "mine"
    shutil.copytree(EXAMPLE / "models", folder / "models", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (EXAMPLE / "app.py", EXAMPLE / "weights.toml", *EXAMPLE.glob("requirements*.txt")):
        shutil.copy(path, folder)
    serve_stand_ins(folder, stand_ins, origin)
    text = (folder / "app.py").read_text()
    for part in (
        r"    from fashion_crop\.web import .*\n",
        r"KEY = .*\n",
        r"secrets=\[KEY\], ",
        r"    @modal\.asgi_app\(\)\n    def web\(.*\n(        .*\n)+",
    ):
        text, times = re.subn(part, "", text)
        assert times == 1, part
    (folder / "app.py").write_text(text)
    return folder / "app.py"


def run(plane: ControlPlane, app: Path, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    return plane.client("-m", "modal", "run", str(app), *arguments, directory=app.parent, **options)


def test_the_app_and_its_models_are_enough(tmp_path: Path, copied: Path, origin: Origin) -> None:
    needs_namespaces()
    with ControlPlane(tmp_path / "plane") as plane:  # without a Secret
        assert list(deploy(plane, copied)) == ["FashionCrop.*"]
        (copied.parent / "my photo.png").write_bytes(photo(300, 200))
        arguments = ("--photo", "my photo.png", "--strictness", "0.1")
        done = run(plane, copied, *arguments, FASHION_SEGMENTER="tiny")
        assert done.returncode == 0, done.stdout + done.stderr
        made = sorted((copied.parent / "crops").iterdir())
        assert made
        assert re.fullmatch(r"my_photo_01_[\w-]+\.png", made[0].name)
        assert all(f"crops/{path.name}" in done.stdout for path in made)
        assert {Image.open(io.BytesIO(path.read_bytes())).mode for path in made} == {"RGBA"}
    asked = {each.path.rpartition("/")[2] for each in origin.requests}
    assert [name for name in asked if name.startswith("sam2")] == ["sam2_tiny_stand_in.pt"]


def test_what_is_no_photo_is_said(plane: ControlPlane, app: Path) -> None:
    (app.parent / "notes.txt").write_text("Dear diary")
    done = run(plane, app, "--photo", "notes.txt")
    assert done.returncode == 1
    assert "ValueError: the file is no JPEG, PNG or WebP" in done.stderr
    assert "deserialize" not in done.stderr
