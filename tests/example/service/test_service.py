"""What the service answers: crops, zip files, boxes, and errors of one shape, through a real server."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import zipfile
from typing import Any

import pytest
from PIL import Image
from starlette.requests import Request

from fakes import DIGEST, FakeSegmenter, fake_backend
from fashion_crop.models.pipeline import GARMENTS
from fashion_crop.web.answers import negotiate
from fashion_crop.web.errors import ServiceError
from service_requests import Broken, crops, error, image
from serving import Client, noise, photo, serving

# What is found.


def test_crops_are_json_with_the_pictures_in_it(client: Client) -> None:
    response = crops(client, prompts="shirt, red dress")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert answer["image"] == {"width": 60, "height": 40, "sha256": hashlib.sha256(photo()).hexdigest()}
    assert answer["model"] == {"stand_ins": True, "weights": {"groundingdino": DIGEST, "sam2-large": DIGEST}}
    assert set(answer["timings_ms"]) == {"waiting", "decoding", "models", "encoding"}
    assert [each["label"] for each in answer["garments"]] == ["shirt", "red dress"]
    shirt = answer["garments"][0]
    assert shirt.pop("area_px") == pytest.approx(math.pi / 4 * 30 * 20, rel=0.05)  # an ellipse
    assert {name: value for name, value in shirt.items() if name != "png"} == {
        "id": 0,
        "label": "shirt",
        "score": 0.95,
        "mask_score": 0.9,
        "person": 0,
        "box_xyxy": [0, 0, 30, 20],
        "crop_box": [0, 0, 32, 22],
    }
    with Image.open(io.BytesIO(base64.b64decode(shirt["png"]))) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (32, 22))


def test_without_prompts_the_default_garments_are_looked_for(client: Client) -> None:
    for fields in ({}, {"prompts": ""}):
        found = [
            each["label"] for each in crops(client, box_threshold="0", text_threshold="0", **fields).json()["garments"]
        ]
        assert sorted(found) == sorted(GARMENTS)


def test_thresholds_padding_and_background_are_used(client: Client) -> None:
    response = crops(client, prompts="shirt,dress", box_threshold="0.95", padding="0", background="#102030")
    (shirt,) = response.json()["garments"]
    assert shirt["crop_box"] == [0, 0, 30, 20]
    with Image.open(io.BytesIO(base64.b64decode(shirt["png"]))) as picture:
        assert picture.mode == "RGB"


def test_nothing_found_is_no_error(client: Client) -> None:
    response = crops(client, prompts="shirt", box_threshold="1")
    assert (response.status_code, response.json()["garments"]) == (200, [])


def test_a_zip_has_a_manifest_and_the_pictures_as_they_are(client: Client) -> None:
    response = client.post(
        "/v1/crops", files=image(), data={"prompts": "shirt,../Würde/ü,-"}, headers={"Accept": "application/zip"}
    )
    assert (response.status_code, response.headers["content-type"]) == (200, "application/zip")
    assert response.headers["content-disposition"] == 'attachment; filename="garments.zip"'
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", "photo_01_shirt.png", "photo_02_Würde_ü.png", "photo_03_-.png"]
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
        manifest = json.loads(archive.read("manifest.json"))
        pictures = [Image.open(io.BytesIO(archive.read(each["file"]))).size for each in manifest["garments"]]
    as_json = crops(client, prompts="shirt,../Würde/ü,-").json()
    for garment in as_json["garments"]:
        assert Image.open(io.BytesIO(base64.b64decode(garment.pop("png")))).size == pictures[garment["id"]]
    for garment in manifest["garments"]:
        del garment["file"]
    assert (manifest["garments"], manifest["image"]) == (as_json["garments"], as_json["image"])


def test_detect_has_boxes_and_no_pictures() -> None:
    segmenter = FakeSegmenter()
    with serving(fake_backend(segmenter=segmenter)) as client:
        answer = client.post("/v1/detect", files=image(), data={"prompts": "shirt,dress"}).json()
    assert answer["detections"] == [
        {"label": "shirt", "score": 0.95, "box_xyxy": [0, 0, 30, 20]},
        {"label": "dress", "score": 0.949, "box_xyxy": [30, 0, 60, 20]},
    ]
    assert segmenter.calls == []
    assert answer["image"]["width"] == 60


# What is asked for.


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "json"),
        ("", "json"),
        ("*/*", "json"),
        ("application/zip", "zip"),
        ("application/*", "json"),
        ("application/json;q=0.5, application/zip", "zip"),
        ("application/zip;q=0.5, */*;q=0.1", "zip"),
        ("application/json;q=0, */*", "zip"),
        ("APPLICATION/ZIP ; Q=1.0 , text/html", "zip"),
        ("application/json, application/zip", "json"),
        ("application/zip;q=0.001", "zip"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "json"),
        ("application/zip;q=nonsense", "zip"),
        ("text/html", None),
        ("application/zip;q=0, application/json;q=0.000", None),
        ("zip", None),
        (";q=1,,,", None),
    ],
)
def test_accept_is_heeded(accept: str | None, chosen: str | None) -> None:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    request = Request({"type": "http", "headers": headers})
    offers = ("application/json", "application/zip")
    if chosen is None:
        with pytest.raises(ServiceError) as caught:
            negotiate(request, *offers)
        assert caught.value.status_code == 406
    else:
        assert negotiate(request, *offers) == f"application/{chosen}"


def test_a_type_that_is_not_made_is_refused(client: Client) -> None:
    for path, accept in (("/v1/crops", "image/png"), ("/v1/detect", "application/zip")):
        response = client.post(path, files=image(), headers={"Accept": accept})
        assert (response.status_code, error(response)["code"]) == (406, "type-not-offered")


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("POST", "/v1/crops", {"json": {"image": "x"}}, 415, "form-expected"),
        ("POST", "/v1/crops", {"content": photo(), "headers": {"Content-Type": "image/png"}}, 415, "form-expected"),
        ("POST", "/v1/crops", {"data": {"image": "x"}}, 415, "form-expected"),
        ("POST", "/v1/crops", {}, 415, "form-expected"),
        ("POST", "/v1/crops", {"headers": {"Content-Type": "multipart/form-data"}}, 400, "request-malformed"),
        ("POST", "/v1/crops", {"files": {"image": ("a.png", b"")}}, 400, "image-undecodable"),
        ("POST", "/v1/crops", {"files": {"image": ("a.png", b"some text")}}, 415, "image-unsupported"),
        ("POST", "/v1/crops", {"files": {"image": ("a.png", photo()[:-80])}}, 400, "image-undecodable"),
        ("POST", "/v1/nothing", {}, 404, "not-found"),
        ("POST", "/v1/crops/", {}, 404, "not-found"),
        ("GET", "/../etc/passwd", {}, 404, "not-found"),
        ("GET", "/docs", {}, 404, "not-found"),
        ("GET", "/v1/crops", {}, 405, "method-not-allowed"),
        ("PUT", "/v1/crops", {"files": {"image": ("a.png", b"x")}}, 405, "method-not-allowed"),
        ("DELETE", "/", {}, 405, "method-not-allowed"),
    ],
)
def test_errors_have_one_shape(
    client: Client, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    response = client.request(method, path, **options)
    assert (response.status_code, error(response)["code"]) == (status, code)
    assert ("allow" in response.headers) == (status == 405)


def test_too_many_pixels_are_refused() -> None:
    with serving(fake_backend(), max_pixels=1000) as client:
        response = crops(client)
    assert (response.status_code, error(response)["code"]) == (413, "image-too-large")


def test_an_answer_that_is_too_large_is_not_sent() -> None:
    with serving(fake_backend(), max_answer=50_000) as client:
        response = crops(client, noise(200, 200), prompts="shirt")
        assert (response.status_code, error(response)["code"]) == (422, "answer-too-large")
        assert crops(client).status_code == 200


def test_of_a_crash_nothing_is_shown_and_all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with serving(fake_backend(Broken(RuntimeError("at /root/secret")))) as client:
        response = crops(client)
        assert (response.status_code, error(response)["code"]) == (500, "internal")
        assert "secret" not in response.text
        assert "at /root/secret" in caplog.text
        assert client.get("/readyz").status_code == 200
