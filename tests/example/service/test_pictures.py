"""The masks and crops of an answer: what they show, how they are written, and how large they may be."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import zipfile
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fakes import DIGEST, FakeDetector, fake_backend
from fashion_crop.models.crops import Garment
from fashion_crop.models.detection import Box, CancelledError, Detection
from fashion_crop.web import bodies
from fashion_crop.web.bodies import Pictures
from service_requests import crops, error, image
from serving import Client, noise, photo, serving

STAGES = ["waiting", "decoding", "detection", "segmentation", "encoding"]
SHIRT = Detection("shirt", 0.9, Box(10, 10, 40, 30))


def masks(client: Client, data: bytes | None = None, /, **fields: Any) -> httpx.Response:
    return client.post("/v1/masks", files=image(data), data=fields)


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def zipped(client: Client, name: str, **fields: Any) -> zipfile.ZipFile:
    sent = {"image": (name, photo())}
    response = client.post("/v1/crops", files=sent, data=fields, headers={"Accept": "application/zip"})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/zip")
    assert response.headers["content-disposition"] == 'attachment; filename="garments.zip"'
    return zipfile.ZipFile(io.BytesIO(response.content))


# Masks.


def test_masks_are_grey_pngs_that_cover_their_box(client: Client) -> None:
    response = masks(client, prompts="shirt, red dress")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert answer["image"] == {"width": 60, "height": 40, "sha256": hashlib.sha256(photo()).hexdigest()}
    assert answer["model"] == {"stand_ins": True, "weights": {"groundingdino": DIGEST, "sam2-large": DIGEST}}
    assert list(answer["timings_ms"]) == STAGES
    assert [each["label"] for each in answer["garments"]] == ["shirt", "red dress"]
    shirt = answer["garments"][0]
    assert shirt.pop("area_px") == pytest.approx(math.pi / 4 * 30 * 20, rel=0.05)  # an ellipse
    with opened(shirt.pop("mask")) as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (32, 22))
        opacity = np.asarray(mask)
    assert (opacity[0, 0], opacity[10, 15], opacity[21, 31]) == (0, 255, 0)
    assert shirt == {
        "id": 0,
        "label": "shirt",
        "score": 0.95,
        "mask_score": 0.9,
        "person": 0,
        "box_xyxy": [0, 0, 30, 20],
        "mask_box": [0, 0, 32, 22],
    }


def test_a_crop_can_be_made_from_a_mask_and_the_photo(client: Client) -> None:
    """What the page does, in few lines: the result is that of the server."""
    (garment,) = masks(client, prompts="shirt").json()["garments"]
    (expected,) = crops(client, prompts="shirt").json()["garments"]
    assert garment["mask_box"] == expected["crop_box"]  # with the default padding
    with opened(garment["mask"]) as mask, opened(expected["picture"]) as picture:
        assert mask.tobytes() == picture.getchannel("A").tobytes()


def test_a_mask_of_a_large_photo_is_smaller_than_what_it_covers() -> None:
    large = photo(4096, 1024, "JPEG")
    with serving(fake_backend(FakeDetector([SHIRT]))) as client:
        (garment,) = masks(client, large).json()["garments"]
    left, top, right, bottom = garment["mask_box"]
    with opened(garment["mask"]) as mask:
        assert (right - left, bottom - top) == (2 * mask.width, 2 * mask.height)
    assert garment["box_xyxy"] == [20, 20, 80, 60]


def test_masks_take_no_fields_of_crops(client: Client) -> None:
    for field in ("padding", "background", "aspect", "format"):
        response = masks(client, **{field: "0"})
        assert response.status_code == 422
        assert [each["field"] for each in error(response)["fields"]] == [field]


def test_masks_are_only_json(client: Client) -> None:
    response = client.post("/v1/masks", files=image(), headers={"Accept": "application/zip"})
    assert (response.status_code, error(response)["code"]) == (406, "type-not-offered")


# Crops.


def test_crops_are_json_with_the_pictures_in_it(client: Client) -> None:
    response = crops(client, prompts="shirt, red dress")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert (list(answer["timings_ms"]), answer["media_type"]) == (STAGES, "image/png")
    shirt = answer["garments"][0]
    assert shirt["crop_box"] == [0, 0, 32, 22]
    assert "mask" not in shirt
    with opened(shirt["picture"]) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (32, 22))


def test_a_crop_has_the_original_pixels_of_the_photo() -> None:
    large = noise(3000, 1500)
    with serving(fake_backend(FakeDetector([SHIRT]))) as client:
        (garment,) = crops(client, large, background="original", padding="0").json()["garments"]
    left, top, right, bottom = garment["crop_box"]
    with opened(garment["picture"]) as picture, Image.open(io.BytesIO(large)) as sent:
        assert picture.size == (right - left, bottom - top)
        assert picture.tobytes() == sent.crop((left, top, right, bottom)).tobytes()


@pytest.mark.parametrize(
    ("aspect", "padding", "box"),
    [
        ("original", "0", [10, 10, 40, 30]),
        ("original", "0.5", [0, 0, 55, 40]),
        ("1:1", "0", [10, 5, 40, 35]),
        ("1:1", "0.5", [-5, -10, 55, 50]),
        ("4:5", "0", [10, 1, 40, 39]),
    ],
)
def test_padding_and_aspect_ratio_make_the_box(aspect: str, padding: str, box: list[int]) -> None:
    with serving(fake_backend(FakeDetector([SHIRT]))) as client:
        (garment,) = crops(client, aspect=aspect, padding=padding).json()["garments"]
    assert garment["crop_box"] == box
    with opened(garment["picture"]) as picture:
        assert picture.size == (box[2] - box[0], box[3] - box[1])


@pytest.mark.parametrize(
    ("kind", "background", "expected"),
    [
        ("png", "transparent", ("PNG", "RGBA")),
        ("png", "white", ("PNG", "RGB")),
        ("webp", "transparent", ("WEBP", "RGBA")),
        ("webp", "#102030", ("WEBP", "RGB")),
        ("jpeg", "original", ("JPEG", "RGB")),
        ("jpeg", "#FFEEDD", ("JPEG", "RGB")),
    ],
)
def test_formats_and_backgrounds(client: Client, kind: str, background: str, expected: tuple[str, str]) -> None:
    answer = crops(client, prompts="shirt,dress", box_threshold="0.95", format=kind, background=background).json()
    assert answer["media_type"] == f"image/{kind}"
    (garment,) = answer["garments"]
    with opened(garment["picture"]) as picture:
        assert (picture.format, picture.mode) == expected


def test_a_jpeg_cannot_be_transparent(client: Client) -> None:
    response = crops(client, format="jpeg")
    assert response.status_code == 422
    (problem,) = error(response)["fields"]
    assert problem["field"] == "format"
    assert "JPEG has no transparency: choose a background, or PNG or WebP" in problem["message"]


def test_a_zip_has_a_manifest_and_the_pictures_as_they_are(client: Client) -> None:
    prompts = "shirt,../Würde/ü,-"
    with zipped(client, "photo.png", prompts=prompts) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", "photo_01_shirt.png", "photo_02_Würde_ü.png", "photo_03_-.png"]
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
        manifest = json.loads(archive.read("manifest.json"))
        pictures = [archive.read(each["file"]) for each in manifest["garments"]]
    as_json = crops(client, prompts=prompts).json()
    assert [base64.b64decode(each.pop("picture")) for each in as_json["garments"]] == pictures
    for garment in manifest["garments"]:
        del garment["file"]
    assert manifest["garments"] == as_json["garments"]
    assert (manifest["image"], manifest["media_type"]) == (as_json["image"], "image/png")


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("Holiday 2026.JPG", {}, "Holiday_2026_01_shirt.png"),
        ("IMG_1.jpeg", {"format": "webp"}, "IMG_1_01_shirt.webp"),
        ("a.png", {"format": "jpeg", "background": "white"}, "a_01_shirt.jpg"),
        ("../../etc/passwd", {}, "passwd_01_shirt.png"),
        ("C:\\photos\\été.png", {}, "été_01_shirt.png"),
        ("a\x00b\r\n.png", {}, None),
        ("x" * 300 + ".png", {}, "x" * 40 + "_01_shirt.png"),
        ("...", {}, "photo_01_shirt.png"),
    ],
)
def test_a_file_is_named_by_the_photo(client: Client, name: str, fields: dict[str, str], expected: str | None) -> None:
    with zipped(client, name, prompts="shirt", **fields) as archive:
        manifest, file = archive.namelist()
    assert manifest == "manifest.json"
    assert re.fullmatch(r"[\w-]{1,40}_01_shirt\.(png|webp|jpg)", file)
    assert expected in (None, file)


# How large they may be.


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_crops_that_are_too_large_are_not_sent(kind: str) -> None:
    with serving(fake_backend(), max_answer=3_000) as client:
        fields = {"prompts": "shirt", "format": kind, "background": "original"}
        response = crops(client, noise(200, 200), **fields)
        assert (response.status_code, error(response)["code"]) == (422, "answer-too-large")
        assert "3,000 bytes" in error(response)["message"]
        assert crops(client, photo(10, 10), **fields).status_code == 200


def test_crops_with_too_many_pixels_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain pictures have few bytes, and each takes seconds of the worker."""
    monkeypatch.setattr(bodies, "MAX_PIXELS", 5_000)
    with serving(fake_backend()) as client:
        fields = {"prompts": "shirt, pants", "background": "white"}
        response = crops(client, photo(400, 400), **fields)
        assert (response.status_code, error(response)["code"]) == (422, "answer-too-large")
        assert "have over 5,000 pixels" in error(response)["message"]
        assert crops(client, photo(40, 40), **fields).status_code == 200


def test_masks_that_are_too_large_are_not_sent() -> None:
    with serving(fake_backend(), max_answer=400) as client:
        response = masks(client, photo(1000, 1000), prompts="shirt")
        assert (response.status_code, error(response)["code"]) == (422, "answer-too-large")
        assert "the 1 masks" in error(response)["message"]
        assert masks(client, prompts="shirt").status_code == 200


@pytest.mark.parametrize(("path", "picture"), [("/v1/crops", "picture"), ("/v1/masks", "mask")])
def test_the_limit_is_for_all_pictures_of_an_answer(client: Client, path: str, picture: str) -> None:
    sent = {"files": image(), "data": {"prompts": "shirt,dress,hat"}}
    garments = client.post(path, **sent).json()["garments"]
    size = sum(len(base64.b64decode(each[picture])) for each in garments)
    assert len(garments) == 3
    for most, status in ((size, 200), (size - 1, 422)):
        with serving(fake_backend(), max_answer=most) as limited:
            assert limited.post(path, **sent).status_code == status


def test_no_picture_is_made_for_a_client_that_has_left() -> None:
    def left() -> None:
        raise CancelledError

    garment = Garment(0, "shirt", 0.9, 0.9, None, Box(0, 0, 1, 1), 1, np.zeros((1, 1), np.uint8), (0, 0, 1, 1))
    with pytest.raises(CancelledError):
        Pictures(1000, left).masks([garment])


def test_a_crop_with_more_pixels_than_any_photo_is_not_made() -> None:
    with serving(fake_backend(FakeDetector([Detection("shirt", 0.9, Box(0, 0, 2048, 1))]))) as client:
        response = crops(client, photo(20_000, 10), aspect="1:1")
    assert response.status_code == 422
    (problem,) = error(response)["fields"]
    assert problem["field"] == "padding"
    assert "80,000,000" in problem["message"]


@pytest.mark.parametrize(("kind", "most", "size"), [("webp", "16,383", 20_000), ("jpeg", "65,500", 66_000)])
def test_a_crop_that_is_too_long_for_its_format_is_refused(kind: str, most: str, size: int) -> None:
    with serving(fake_backend(FakeDetector([Detection("shirt", 0.9, Box(0, 0, 2048, 1))]))) as client:
        data = photo(size, 10)
        response = crops(client, data, format=kind, background="original")
        assert response.status_code == 422
        (problem,) = error(response)["fields"]
        assert problem["field"] == "format"
        assert most in problem["message"]
        assert crops(client, data, format="png", background="original").status_code == 200


# How long it took.


@pytest.mark.parametrize(("path", "stages"), [("crops", STAGES), ("masks", STAGES), ("detect", STAGES[:3])])
def test_the_time_of_each_stage_is_in_the_answer_the_header_and_the_metrics(path: str, stages: list[str]) -> None:
    with serving(fake_backend()) as client:
        response = client.post(f"/v1/{path}", files=image())
        measured = client.get("/metrics").text
    timing = response.headers["server-timing"]
    # The grammar of https://www.w3.org/TR/server-timing/, of which only names and durations are used.
    metric = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+;dur=\d+(\.\d+)?"
    assert re.fullmatch(rf"{metric}(, {metric})*", timing)
    named = dict(re.findall(r"(\w+);dur=([\d.]+)", timing))
    assert list(named) == stages
    for stage in STAGES:
        assert response.json()["timings_ms"][stage] == float(named.get(stage, 0))
        assert f'fashion_crop_stage_seconds_count{{stage="{stage}"}} {float(stage in stages)}' in measured
