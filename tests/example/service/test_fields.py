"""What is said about each field that is wrong, in each way that it can be wrong."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from fashion_crop.web.forms import WANTED, CropForm
from service_requests import crops, error, image
from serving import Client, photo

SHARES = ("box_threshold", "text_threshold", "nms_threshold", "padding")
NO_SHARES = ("1.01", "-0.1", "nan", "inf", "-inf", "1e400", "much", "0,5", "50%", "0x1", " ", "[1]", "true")
NO_BACKGROUNDS = ("#12345", "#1234567", "#ggg000", "url(x)", "White", "red", "#fff\n", " ", "white|")
NO_NAMES = ("x", "PNG", "jpg", "1x1", " ", "4/5")


def problems(response: httpx.Response) -> dict[str, str]:
    """Each wrong field of an answer, and the message about it."""
    assert response.status_code == 422, response.text
    told = error(response)
    assert told["code"] == "fields-invalid"
    for foreign in ("Input should", "pydantic", "pattern", "regular expression", "[0-9", "UploadFile", "Literal"):
        assert foreign not in response.text
    for each in told["fields"]:
        assert f"{each['field']}: {each['message']}" in told["message"]
    return {each["field"]: each["message"] for each in told["fields"]}


WRONG = [
    *((field, value) for field in SHARES for value in NO_SHARES),
    *(("background", value) for value in NO_BACKGROUNDS),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_value_is_told_with_what_is_wanted_and_what_was_sent(client: Client, field: str, value: str) -> None:
    assert problems(crops(client, **{field: value})) == {field: f"{WANTED[field]}, got {value!r}"}


@pytest.mark.parametrize("field", [name for name in CropForm.model_fields if name != "image"])
def test_a_file_in_the_place_of_text(client: Client, field: str) -> None:
    sent = {**image(), field: ("a.txt", b"text")}
    assert problems(client.post("/v1/crops", files=sent)) == {field: f"{WANTED[field]}, got a file"}


@pytest.mark.parametrize("field", list(CropForm.model_fields))
def test_a_field_that_is_there_twice(client: Client, field: str) -> None:
    sent = [("image", ("a.png", photo())), (field, (None, "x")), *([] if field == "image" else [(field, (None, "y"))])]
    assert problems(client.post("/v1/crops", files=sent)) == {field: "must be given once, got it 2 times"}


def test_every_field_has_its_own_words() -> None:
    assert set(WANTED) >= set(CropForm.model_fields)


def test_all_fields_that_are_wrong_are_named_at_once(client: Client) -> None:
    told = problems(crops(client, box_threshold="2", padding="-1", background="?", colour="red"))
    assert list(told) == ["box_threshold", "padding", "background", "colour"]


def test_a_long_value_is_not_repeated_whole(client: Client) -> None:
    (message,) = problems(crops(client, padding="9" * 5000)).values()
    assert message == f"{WANTED['padding']}, got '{'9' * 40}…'"


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ({"data": {"image": "text"}, "files": {"prompts": (None, "shirt")}}, "'text'"),
        ({"files": {"prompts": (None, "shirt")}}, "nothing"),
        ({"data": {"image": ""}, "files": {"prompts": (None, "shirt")}}, "nothing"),
        ({"files": {"image": (None, b"text")}}, "'text'"),
    ],
)
def test_one_photo_must_be_there_as_a_file(client: Client, sent: dict[str, Any], got: str) -> None:
    assert problems(client.post("/v1/crops", **sent)) == {"image": f"must be one photo, sent as a file, got {got}"}


def test_a_misspelt_field_is_refused_and_the_right_one_named(client: Client) -> None:
    told = problems(crops(client, box_treshold="0.5"))
    assert list(told) == ["box_treshold"]
    assert told["box_treshold"].startswith("is not a field here: did you mean box_threshold? The fields are image, ")
    (message,) = problems(crops(client, **{"x" * 500: "1"})).values()
    assert message.startswith("is not a field here: The fields are image, prompts, ")


def test_a_field_of_crops_is_none_of_boxes(client: Client) -> None:
    told = problems(client.post("/v1/detect", files=image(), data={"padding": "0.1"}))
    assert told["padding"].endswith("The fields are image, prompts, box_threshold, text_threshold, nms_threshold")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (" , ,", "must be text: what to look for, separated by commas, got ' , ,'"),
        (",".join(["shirt"] * 51), "must be at most 50 prompts, got 51"),
        (f"shirt,{'x' * 201}", "must have at most 200 characters each, got 201"),
        (
            ",".join(f"{'long ' * 30}{number}" for number in range(10)),
            "the prompts are 323 tokens long, and the model reads 256 at once",
        ),
    ],
)
def test_prompts_that_cannot_be_looked_for(client: Client, prompts: str, message: str) -> None:
    assert problems(crops(client, prompts=prompts)) == {"prompts": message}


def test_a_prompt_may_be_long(client: Client) -> None:
    assert crops(client, prompts=f"shirt,{'x' * 200}").status_code == 200
