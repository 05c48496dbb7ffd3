"""What the service answers, and to whom: through a real server, with models that find one thing for each prompt."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import validate
from PIL import Image
from starlette.requests import Request

from fakes import DIGEST, FakeDetector, FakeSegmenter, Gate, fake_backend
from fashion_crop import service
from fashion_crop.answers import negotiate, safe_name
from fashion_crop.detection import CancelledError
from fashion_crop.errors import ServiceError
from fashion_crop.pipeline import GARMENTS
from fashion_crop.service import Settings, create_app
from fashion_crop.startup import Backend
from serving import Client, noise, photo, serving
from support import until
from weightcache import Manifest

KEY = "s3cret-clé"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(fake_backend()) as client:
        yield client


def image(data: bytes | None = None) -> dict[str, Any]:
    return {"image": ("photo.png", photo() if data is None else data)}


def crops(client: Client, data: bytes | None = None, /, **fields: Any) -> httpx.Response:
    return client.post("/v1/crops", files=image(data), data=fields)


def error(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has the one shape."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert {"code", "message"} <= set(body["error"]) <= {"code", "message", "fields"}
    assert body["error"]["message"]
    return body["error"]


# What is found.


def test_crops_are_json_with_the_pictures_in_it(client: Client) -> None:
    response = crops(client, prompts="shirt, red dress")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert answer["image"] == {"width": 60, "height": 40, "sha256": hashlib.sha256(photo()).hexdigest()}
    assert answer["model"] == {"stand_ins": True, "weights": {"groundingdino": DIGEST, "sam2": DIGEST}}
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
        assert archive.namelist() == ["manifest.json", "00_shirt.png", "01_Würde_ü.png", "02_-.png"]
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


@given(st.text())
def test_a_label_is_a_safe_name(label: str) -> None:
    name = safe_name(label)
    assert 0 < len(name) <= 40
    assert not set(name) & set('/\\.:*?"<>| \0\n\r')


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
    ("fields", "wrong"),
    [
        ({"box_threshold": "1.01"}, "box_threshold"),
        ({"text_threshold": "-0.1"}, "text_threshold"),
        ({"nms_threshold": "nan"}, "nms_threshold"),
        ({"padding": "inf"}, "padding"),
        ({"box_threshold": "much"}, "box_threshold"),
        ({"background": "#12345"}, "background"),
        ({"background": "url(x)"}, "background"),
        ({"prompts": " , ,"}, "prompts"),
        ({"prompts": ",".join(["shirt"] * 51)}, "prompts"),
        ({"box_treshold": "0.5"}, "box_treshold"),
        ({"prompts": ["shirt", "dress"]}, "prompts"),
    ],
)
def test_fields_that_are_wrong_are_named(client: Client, fields: dict[str, Any], wrong: str) -> None:
    response = crops(client, **fields)
    assert response.status_code == 422
    told = error(response)
    assert told["code"] == "fields-invalid"
    assert [each["field"] for each in told["fields"]] == [wrong]
    assert told["fields"][0]["message"]


def test_all_fields_that_are_wrong_are_named_at_once(client: Client) -> None:
    told = error(crops(client, box_threshold="2", padding="-1", background="?"))
    assert [each["field"] for each in told["fields"]] == ["box_threshold", "padding", "background"]


def test_one_photo_must_be_there_as_a_file(client: Client) -> None:
    for sent in (
        {"data": {"image": "text"}, "files": {"prompts": (None, "shirt")}},
        {"files": {"prompts": (None, "shirt")}},
        {"files": [("image", ("a.png", photo())), ("image", ("b.png", photo()))]},
    ):
        response = client.post("/v1/crops", **sent)
        assert response.status_code == 422
        (problem,) = error(response)["fields"]
        assert problem["field"] == "image"
        assert re.fullmatch("must be one photo, sent as a file|must be given once, got 2", problem["message"])


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


class Broken(FakeDetector):
    """A detector that fails in its own way."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def detect(self, *_: Any, **__: Any) -> Any:
        raise self.error


def test_of_a_crash_nothing_is_shown_and_all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with serving(fake_backend(Broken(RuntimeError("at /root/secret")))) as client:
        response = crops(client)
        assert (response.status_code, error(response)["code"]) == (500, "internal")
        assert "secret" not in response.text
        assert "at /root/secret" in caplog.text
        assert client.get("/readyz").status_code == 200


def test_a_crash_of_a_route_has_the_same_shape(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(service, "PAGE", Path("/nowhere/page.html"))
    with serving(fake_backend()) as client:
        response = client.get("/")
    assert (response.status_code, error(response)["code"]) == (500, "internal")
    assert "nowhere" not in response.text
    assert "/nowhere/page.html" in caplog.text


def test_prompts_that_the_model_cannot_read_are_a_wrong_field(client: Client) -> None:
    response = crops(client, prompts=",".join(f"{'long ' * 30}{number}" for number in range(10)))
    assert response.status_code == 422
    (problem,) = error(response)["fields"]
    assert problem["field"] == "prompts"
    assert "256" in problem["message"]


def test_a_prompt_is_no_essay(client: Client) -> None:
    assert crops(client, prompts=f"shirt,{'x' * 200}").status_code == 200
    response = crops(client, prompts=f"shirt,{'x' * 201}")
    assert response.status_code == 422
    wrong = {"field": "prompts", "message": "must have 200 characters at most each, got 201"}
    assert error(response)["fields"] == [wrong]


# Before there is a model, and when there will be none.


def test_while_it_loads_it_says_so_and_takes_no_photo() -> None:
    go_on = threading.Event()

    def load() -> Backend:
        assert go_on.wait(60)
        return fake_backend()

    with serving(load) as client:
        for response in (client.get("/readyz"), client.get("/v1/info"), crops(client)):
            assert (response.status_code, error(response)["code"]) == (503, "loading")
            assert int(response.headers["retry-after"]) > 0
        with begun(client, "Content-Length: 1000") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 503 ")  # and no photo is sent for nothing
        assert client.get("/healthz").status_code == 200
        go_on.set()
        until(lambda: client.get("/readyz").status_code == 200)
        assert crops(client).status_code == 200


def test_why_it_cannot_load_is_told_and_nobody_is_asked_to_try_again(caplog: pytest.LogCaptureFixture) -> None:
    with serving(lambda: Manifest.load("/nowhere/weights.toml")) as client:
        until(lambda: "loading-failed" in client.get("/readyz").text)
        for response in (client.get("/readyz"), client.get("/v1/info"), crops(client)):
            assert response.status_code == 503
            assert "retry-after" not in response.headers
            assert "/nowhere/weights.toml" in error(response)["message"]
        assert client.get("/healthz").status_code == 200
    assert "/nowhere/weights.toml" in caplog.text


def test_of_another_failure_only_the_kind_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Any:
        raise RuntimeError("token hf_1234")

    with serving(load) as client:
        until(lambda: "loading-failed" in client.get("/readyz").text)
        assert "RuntimeError" in client.get("/readyz").text
        assert "hf_1234" not in client.get("/readyz").text
    assert "hf_1234" in caplog.text


def test_info_tells_what_the_server_is(client: Client) -> None:
    info = client.get("/v1/info").json()
    assert info["weights"] == {"groundingdino": DIGEST, "sam2": DIGEST}
    assert (info["stand_ins"], info["device"], info["versions"]) == (True, "cpu", {"weightcache": "0"})
    assert set(info["phases"]) == {"look", "download", "prefetch", "imports", "build", "load", "ready"}
    assert info["limits"] == {
        "max_bytes": 20_000_000,
        "max_pixels": 40_000_000,
        "max_prompts": 50,
        "max_garments": 50,
    }
    assert info["defaults"]["prompts"] == list(GARMENTS)
    assert info["defaults"]["box_threshold"] == 0.35


# Who gets in.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": KEY + "x"}, 401),
        ({"X-API-Key": KEY[:-1]}, 401),
        ({"X-API-Key": KEY}, 200),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer  {KEY}"}, 200),
        ({"Authorization": "Basic dTpw", "X-API-Key": KEY}, 200),
    ],
)
def test_a_key_opens_what_needs_one(keyed: Client, headers: dict[str, str], status: int) -> None:
    sent = {name: value.encode() for name, value in headers.items()}
    for path in ("/v1/crops", "/v1/detect"):
        response = keyed.post(path, files=image(), headers=sent)
        assert response.status_code == status
        if status == 401:
            assert error(response)["code"] in ("key-missing", "key-wrong")
            assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.fixture(scope="module")
def keyed() -> Iterator[Client]:
    with serving(fake_backend(), api_key=f" {KEY}\n") as client:  # as out of a file
        yield client


def posted(app: FastAPI, path: str, **request: Any) -> httpx.Response:
    """Ask an app itself, without the server that would look at the request before."""

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.post(path, **request)

    return anyio.run(ask)


@pytest.mark.parametrize("path", ["/fashion/v1/crops", "/fashion/v1/detect"])
def test_the_key_is_needed_where_the_app_is_mounted_in_another_one(path: str) -> None:
    outer = FastAPI()
    outer.mount("/fashion", create_app(fake_backend(), settings=Settings(api_key=KEY)))
    assert posted(outer, path, files=image()).status_code == 401
    assert posted(outer, path, files=image(), headers={"X-API-Key": KEY.encode()}).status_code == 200


@pytest.mark.parametrize("length", ["-1", "1e3", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_a_length_that_is_none(length: str) -> None:
    """A server such as uvicorn refuses it before; another one may not."""
    headers = {"Content-Length": length.encode("latin-1"), "Content-Type": "multipart/form-data; boundary=b"}
    response = posted(create_app(fake_backend()), "/v1/crops", content=b"--b--", headers=headers)
    assert response.status_code == (413 if length.startswith("9") else 400)


def test_what_only_tells_needs_no_key(keyed: Client) -> None:
    assert [keyed.get(path).status_code for path in ("/healthz", "/readyz", "/v1/info", "/openapi.json")] == [200] * 4


def test_the_key_is_nowhere_to_be_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(fake_backend(Broken(RuntimeError("broken"))), api_key=KEY) as client:
        told = [
            client.post("/v1/crops", files=image(), headers={"X-API-Key": value}).text
            for value in (KEY.encode(), KEY.encode() + b"x", b"")
        ]
        told += [client.get(path).text for path in ("/v1/info", "/openapi.json")]
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert KEY not in "".join([*told, *ours, repr(Settings(api_key=KEY))])


def test_an_empty_key_is_a_mistake() -> None:
    for key in ("", "  "):
        with pytest.raises(ValueError, match="api_key is empty"):
            Settings(api_key=key)


def test_without_the_key_the_photo_is_not_even_read(keyed: Client) -> None:
    with begun(keyed, "Content-Length: 1000") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")  # and not first 100 Continue


# The page, and the description for programs.


def test_the_page_may_run_its_own_script_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, style = "\n  let x = '</b>' // ü\n", "body { color: red }"
    page = tmp_path / "page.html"
    page.write_text(f"<html><style>{style}</style><script type=module>{script}</script>", encoding="utf-8")
    monkeypatch.setattr(service, "PAGE", page)
    with serving(fake_backend()) as client:
        response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text == page.read_text(encoding="utf-8")
    policy = dict(each.split(" ", 1) for each in response.headers["content-security-policy"].split("; "))

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert policy["default-src"] == "'none'"
    assert (policy["script-src"], policy["style-src"]) == (digest(script), digest(style))
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]


def schema(client: Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def test_the_description_is_valid_openapi(client: Client, keyed: Client) -> None:
    for each in (client, keyed):
        validate(schema(each))


def test_the_description_has_both_types_every_error_and_the_limits_of_fields(client: Client) -> None:
    described = schema(client)
    operation = described["paths"]["/v1/crops"]["post"]
    assert operation["operationId"] == "crop"
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "application/zip"}
    assert set(operation["responses"]) == {"200", "400", "406", "408", "413", "415", "422", "500", "503"}
    for status, answer in operation["responses"].items():
        if status != "200":
            assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    assert list(operation["requestBody"]["content"]) == ["multipart/form-data"]
    form = described["components"]["schemas"]["CropForm"]
    assert form["required"] == ["image"]
    assert (form["properties"]["padding"]["minimum"], form["properties"]["padding"]["maximum"]) == (0, 1)
    assert re.fullmatch(form["properties"]["background"]["pattern"], "#a0B1c2")
    assert "HTTPValidationError" not in described["components"]["schemas"]


def test_a_generated_client_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(fake_backend(), settings=Settings(api_key="key"))
    (tmp_path / "openapi.json").write_text(json.dumps(app.openapi()), encoding="utf-8")
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    command = [programs / "openapi-python-client", "generate", "--path", "openapi.json", "--meta", "none"]
    command += ["--output-path", "fashion_client", "--fail-on-warning"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    generated = importlib.import_module("fashion_client")
    models, types = (importlib.import_module(f"fashion_client.{name}") for name in ("models", "types"))
    crop = importlib.import_module("fashion_client.api.photos.crop")

    def ask(url: httpx.URL, key: str) -> Any:
        form = models.CropForm(image=types.File(io.BytesIO(photo()), "a.png"), prompts="shirt", padding=0.0)
        with generated.AuthenticatedClient(base_url=str(url), token=key) as client:
            return crop.sync(client=client, body=form)

    with serving(fake_backend(), api_key="key") as client:
        refused, answer = ask(client.base_url, "wrong"), ask(client.base_url, "key")
    assert isinstance(refused, models.ErrorAnswer)
    assert refused.error.code == "key-wrong"
    assert isinstance(answer, models.CropsAnswer)
    assert [(each.label, each.box_xyxy, each.person) for each in answer.garments] == [("shirt", [0, 0, 30, 40], 0)]


def test_the_key_is_described_where_one_is_needed(client: Client, keyed: Client) -> None:
    assert "security" not in schema(client)["paths"]["/v1/crops"]["post"]
    described = schema(keyed)
    operation = described["paths"]["/v1/crops"]["post"]
    assert operation["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    assert "401" in operation["responses"]
    assert "security" not in described["paths"]["/v1/info"]["get"]


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("post", "/v1/crops", {"files": image()}),
        ("post", "/v1/detect", {"files": image()}),
        ("get", "/v1/info", {}),
        ("get", "/healthz", {}),
        ("get", "/readyz", {}),
        ("post", "/v1/crops", {}),
        ("post", "/v1/crops", {"files": image(), "data": {"padding": "7"}}),
        ("post", "/v1/detect", {"files": image(b"text")}),
    ],
)
def test_answers_are_as_described(client: Client, method: str, path: str, options: dict[str, Any]) -> None:
    response = getattr(client, method)(path, **options)
    described = schema(client)
    answer = described["paths"][path][method]["responses"][str(response.status_code)]["content"]["application/json"]
    # The description is not closed; here nothing may be there that it does not tell.
    for each in described["components"]["schemas"].values():
        each["additionalProperties"] = each.get("additionalProperties", False)
    jsonschema.validate(response.json(), {**answer["schema"], "components": described["components"]})


# How much, how fast, how many.


def begun(client: Client, *headers: str) -> socket.socket:
    """Send the head of a request for crops, which promises a body."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)
    head = ["POST /v1/crops HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=b", *headers]
    connection.sendall("\r\n".join([*head, "Expect: 100-continue", "", ""]).encode())
    return connection


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(client: Client) -> None:
    with begun(client, "Content-Length: 21000000") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_a_length_is_counted_as_it_comes() -> None:
    with serving(fake_backend(), max_bytes=100_000) as client:
        with begun(client, "Transfer-Encoding: chunked") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            begin = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            connection.sendall(b"%x\r\n%b\r\n" % (len(begin), begin))
            for _ in range(17):  # 170,000 bytes, and no end of it
                connection.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        assert crops(client).status_code == 200


def test_a_photo_that_is_larger_by_less_than_a_form_has_is_refused_too() -> None:
    data = photo()
    with serving(fake_backend(), max_bytes=len(data)) as client:
        assert crops(client, data).status_code == 200
        response = crops(client, data + b"x")
    assert (response.status_code, error(response)["code"]) == (413, "image-too-large")


def test_a_photo_is_not_written_to_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # what a spooled file becomes
    with serving(fake_backend()) as client, serving(fake_backend(), max_bytes=1000):
        assert crops(client, noise(1000, 1000), prompts="shirt").status_code == 200  # 3 MB
        assert crops(client, bytes(20_000_100)).status_code == 413


def test_a_client_that_sends_nothing_is_sent_away() -> None:
    with serving(fake_backend(), grace=0.2, max_queue=0) as client:
        with begun(client, "Content-Length: 1000") as connection:
            answer = b""
            while b"}" not in answer:
                received = connection.recv(1000)
                assert received
                answer += received
        assert b"HTTP/1.1 408 " in answer
        assert b"too-slow" in answer
        until(lambda: client.post("/v1/detect", files=image()).status_code == 200)


def test_a_client_that_does_not_read_its_answer_loses_its_place(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fashion_crop")
    fields = {"prompts": ",".join(map(str, range(40))), "padding": "1", "background": "original"}
    with serving(fake_backend(), grace=3.0, slowest=1_000_000, max_queue=0) as client:
        buffer = io.BytesIO()
        Image.effect_noise((600, 600), 80).save(buffer, "JPEG", quality=5)
        data = buffer.getvalue()  # 30 kB, which are there at once, for an answer of many MB
        request = client.build_request("POST", "/v1/crops", files=image(data), data=fields)
        with begun_whole(client, request):
            until(lambda: "too slow" in caplog.text)
            until(lambda: client.post("/v1/detect", files=image()).status_code == 200)


def begun_whole(client: Client, request: httpx.Request) -> socket.socket:
    """Send a request, and leave it at that."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the answer does not fit into it
    connection.connect((client.base_url.host, client.base_url.port))
    head = f"{request.method} {request.url.raw_path.decode()} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection.sendall(head.encode() + b"\r\n" + request.read())
    return connection


@contextmanager
def in_background(
    held: FakeDetector, count: int, work: Callable[[], httpx.Response]
) -> Iterator[list[Future[httpx.Response]]]:
    with ThreadPoolExecutor(count) as pool:
        try:
            yield [pool.submit(work) for _ in range(count)]
        finally:
            held.gate.opened.set()  # else a test that fails never ends


def test_photos_queue_and_one_too_many_is_refused_at_once() -> None:
    held = FakeDetector(gate=Gate())
    with serving(fake_backend(held), workers=1, max_queue=2) as client:
        with in_background(held, 5, lambda: crops(client, prompts="shirt")) as answers:
            assert held.gate.entered.acquire(timeout=60)
            until(lambda: sum(each.done() for each in answers) == 2)
            assert len(held.calls) == 1  # two wait
            for path in ("/healthz", "/readyz", "/v1/info"):
                assert client.get(path).status_code == 200
            response = crops(client)
            assert (response.status_code, error(response)["code"]) == (503, "busy")
            assert int(response.headers["retry-after"]) > 0
            held.gate.opened.set()
        assert sorted(each.result().status_code for each in answers) == [200, 200, 200, 503, 503]
        assert crops(client).status_code == 200


def test_two_workers_work_at_once() -> None:
    held = FakeDetector(gate=Gate())
    with serving(fake_backend(held), workers=2, max_queue=1) as client:
        with in_background(held, 3, lambda: crops(client)) as answers:
            assert held.gate.entered.acquire(timeout=60)
            assert held.gate.entered.acquire(timeout=60)
            held.gate.opened.set()
        assert [each.result().status_code for each in answers] == [200, 200, 200]


def test_who_hangs_up_while_waiting_leaves_the_queue() -> None:
    held = FakeDetector(gate=Gate())
    with serving(fake_backend(held), workers=1, max_queue=1) as client:
        with in_background(held, 1, lambda: crops(client)) as at_work:
            assert held.gate.entered.acquire(timeout=60)
            with begun_whole(client, client.build_request("POST", "/v1/crops", files=image())):
                until(lambda: client.waiting() == 1)
                assert crops(client).status_code == 503
            until(lambda: client.waiting() == 0)
            with in_background(held, 1, lambda: crops(client)) as next_one:
                until(lambda: client.waiting() == 1)
        assert [each.result().status_code for each in (*at_work, *next_one)] == [200, 200]
    assert len(held.calls) == 2  # nothing was done for the one who left


class UntilCancelled:
    """A pipeline that ends when nobody waits any more."""

    def __init__(self) -> None:
        self.began, self.ended = threading.Event(), threading.Event()

    def crop(self, _photo: Any, _options: Any, *, cancelled: Callable[[], bool]) -> Any:
        self.began.set()
        until(cancelled)
        self.ended.set()
        raise CancelledError


def test_who_hangs_up_ends_the_work() -> None:
    endless = UntilCancelled()
    with serving(Backend(endless), workers=1, max_queue=0) as client:
        with begun_whole(client, client.build_request("POST", "/v1/crops", files=image())):
            assert endless.began.wait(60)
            assert not endless.ended.is_set()
        assert endless.ended.wait(60)
        until(lambda: crops(client, b"text").status_code == 415)  # the place is free


def test_who_hangs_up_while_sending_leaves_its_place() -> None:
    with serving(fake_backend(), workers=1, max_queue=0) as client:
        with begun(client, "Content-Length: 1000") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            assert crops(client).status_code == 503
        until(lambda: crops(client).status_code == 200)
