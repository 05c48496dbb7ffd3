"""The app on Modal: the real client deploys it, the real entrypoint runs it, requests come over Modal's wire.

The weights are the stand-ins; everything else is what is deployed.
"""

from __future__ import annotations

import base64
import io
import shutil
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
from deployment import copy_example
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


def test_the_ping_of_option_c_wakes_it(plane: ControlPlane, app: Path) -> None:
    ping = deploy(plane, app, FASHION_OPTION="C")["ping"]
    pinging = plane.start_container(ping, plane.requests("AppPublish")[-1].app_id, [NOTHING_GIVEN])
    assert plane.finish(pinging) == 0, pinging.log
    assert [each.result.status for each in pinging.outputs] == [pb.GenericResult.GENERIC_STATUS_SUCCESS], pinging.log
    assert '200 {"status":"alive"}' in pinging.log
    [_, woken] = plane.containers
    assert plane.stop(woken) == 0
