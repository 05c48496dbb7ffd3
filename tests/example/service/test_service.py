"""What the service answers: crops, zip files, boxes, and errors of one shape, through a real server."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request

from fakes import FakeSegmenter, fake_backend
from fashion_crop.models.pipeline import GARMENTS
from fashion_crop.web.errors import ServiceError
from fashion_crop.web.negotiation import negotiate
from service_requests import Broken, crops, error, image
from serving import Client, photo, serving

# What is found.


def test_without_prompts_the_default_garments_are_looked_for(client: Client) -> None:
    for fields in ({}, {"prompts": ""}):
        found = [
            each["label"] for each in crops(client, box_threshold="0", text_threshold="0", **fields).json()["garments"]
        ]
        assert sorted(found) == sorted(GARMENTS)


def test_nothing_found_is_no_error(client: Client) -> None:
    response = crops(client, prompts="shirt", box_threshold="1")
    assert (response.status_code, response.json()["garments"]) == (200, [])


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


def test_of_a_crash_nothing_is_shown_and_all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with serving(fake_backend(Broken(RuntimeError("at /root/secret")))) as client:
        response = crops(client)
        assert (response.status_code, error(response)["code"]) == (500, "internal")
        assert "secret" not in response.text
        assert "at /root/secret" in caplog.text
        assert client.get("/readyz").status_code == 200
