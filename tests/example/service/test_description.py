"""The description of the service for programs (OpenAPI)."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import validate

from fakes import fake_backend
from fashion_crop.web.service import Settings, create_app
from service_requests import image
from serving import Client, photo, serving


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


def test_every_field_is_described(client: Client) -> None:
    for name, described in schema(client)["components"]["schemas"].items():
        assert described["description"], name
        for field, facts in described["properties"].items():
            assert "$ref" in facts or facts["description"], (name, field)


def test_the_description_says_what_is_done_to_a_crop(client: Client) -> None:
    schemas = schema(client)["components"]["schemas"]
    crop = schemas["CropAnswer"]["properties"]
    assert "at least 10% of the area of the largest part" in crop["area_px"]["description"]
    assert "original pixels" in crop["picture"]["description"]
    assert "2048 pixels" in schemas["MaskAnswer"]["properties"]["mask"]["description"]
    assert schemas["CropForm"]["properties"]["aspect"]["enum"] == ["original", "1:1", "4:5"]
    assert schemas["CropForm"]["properties"]["format"]["enum"] == ["png", "webp", "jpeg"]
    info = client.get("/v1/info").json()
    assert info["crops"] == {"part_share": 0.1, "original_pixels": True, "longest_side": 2048}
    assert info["rendering"] == {"padding": 0.05, "background": "transparent", "aspect": "original", "format": "png"}
    assert info["segmenter"] == "large"


@pytest.mark.parametrize("path", ["/v1/crops", "/v1/masks", "/v1/detect"])
def test_the_headers_of_an_answer_are_described(client: Client, path: str) -> None:
    responses = schema(client)["paths"][path]["post"]["responses"]
    assert set(responses["200"]["headers"]) == {"Server-Timing", "X-Request-ID"}
    assert all("X-Request-ID" in answer["headers"] for answer in responses.values())


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
        ("post", "/v1/masks", {"files": image()}),
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
    # The schemas allow more properties; here an answer may have only those that they name.
    for each in described["components"]["schemas"].values():
        each["additionalProperties"] = each.get("additionalProperties", False)
    jsonschema.validate(response.json(), {**answer["schema"], "components": described["components"]})
