"""What the service answers before it has a model, and which requests it accepts."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI

from fakes import DIGEST, fake_backend
from fashion_crop.models.pipeline import GARMENTS
from fashion_crop.web.backend import Backend
from fashion_crop.web.service import Settings, create_app
from service_requests import KEY, Broken, begun, crops, error, image
from serving import Client, serving
from support import until
from weightcache import Manifest

# Before the model is loaded, and after its load failed.


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
    assert info["weights"] == {"groundingdino": DIGEST, "sam2-large": DIGEST}
    assert (info["stand_ins"], info["device"], info["versions"]) == (True, "cpu", {"weightcache": "0"})
    assert set(info["phases"]) == {"inspect", "import", "build", "load", "other", "prefetch", "ready"}
    assert info["limits"] == {
        "max_bytes": 20_000_000,
        "max_pixels": 40_000_000,
        "max_prompts": 50,
        "max_garments": 50,
    }
    assert info["defaults"]["prompts"] == list(GARMENTS)
    assert info["defaults"]["box_threshold"] == 0.35


# Which requests are accepted.


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
