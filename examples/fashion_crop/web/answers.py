"""The answers of the service: models of their fields, and writing them as JSON or zip."""

from __future__ import annotations

import io
import re
import zipfile
from base64 import b64encode
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field
from pydantic_core import to_json

from fashion_crop.models.crops import crop_box, encode, file_name, render

from .errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request

    from fashion_crop.models.crops import Garment, Rendering
    from fashion_crop.models.detection import Box, Detection
    from fashion_crop.models.photo import Photo

JSON, ZIP = "application/json", "application/zip"

Corners = Annotated[list[float], Field(min_length=4, max_length=4, description="Left, top, right, bottom, in pixels.")]
WholeCorners = Annotated[list[int], Field(min_length=4, max_length=4, description="As box_xyxy, in whole pixels.")]
Score = Annotated[float, Field(ge=0, le=1)]


class ImageAnswer(BaseModel):
    """The photo, upright."""

    width: int = Field(description="Pixels; those in which boxes are given.")
    height: int
    sha256: str = Field(description="Of the file that was sent, lower-case hex.")


class ModelAnswer(BaseModel):
    """What found it."""

    stand_ins: bool = Field(description="Whether the weights are random numbers, and what they find means nothing.")
    weights: dict[str, str] = Field(description="The sha256 of each checkpoint.")


class Timings(BaseModel):
    """Milliseconds of each part."""

    waiting: float = Field(description="Until a worker was free.")
    decoding: float
    models: float = Field(description="Finding, cutting, and what comes between.")
    encoding: float = Field(default=0.0, description="The crops, as PNG.")


class DetectionAnswer(BaseModel):
    """Something that was found."""

    label: str = Field(description="One of the prompts.")
    score: Score
    box_xyxy: Corners


class Answer(BaseModel):
    """What every answer about a photo begins with."""

    image: ImageAnswer
    model: ModelAnswer
    timings_ms: Timings


class DetectAnswer(Answer):
    """Where the garments of a photo are, best first."""

    detections: list[DetectionAnswer]


class GarmentFacts(BaseModel):
    """A garment, without its picture."""

    id: int
    label: str = Field(description="One of the prompts.")
    score: Score = Field(description="How sure the detector is.")
    mask_score: Score = Field(description="How good the segmenter thinks its mask is.")
    person: int | None = Field(
        description="The person that wears it, numbered from the left; null if no person was found."
    )
    box_xyxy: Corners
    crop_box: WholeCorners = Field(description="What the picture shows: left, top, right, bottom, in whole pixels.")
    area_px: int = Field(description="Of the garment, in pixels of the photo.")


class GarmentAnswer(GarmentFacts):
    """A garment, cut out."""

    png: str = Field(description="The picture, a PNG in base64.", json_schema_extra={"contentEncoding": "base64"})


class CropsAnswer(Answer):
    """Every garment of a photo, by person from left to right, then from top to bottom."""

    garments: list[GarmentAnswer]


class GarmentFile(GarmentFacts):
    """A garment whose picture lies beside the manifest."""

    file: str


class Manifest(Answer):
    """``manifest.json`` in a zip."""

    garments: list[GarmentFile]


class Limits(BaseModel):
    """What a request may be at most."""

    max_bytes: int = Field(description="Of the photo.")
    max_pixels: int = Field(description="Of the photo; width by height.")
    max_prompts: int
    max_garments: int


class Defaults(BaseModel):
    """What holds for the fields that a form leaves out."""

    prompts: list[str]
    box_threshold: float
    text_threshold: float
    nms_threshold: float
    padding: float
    background: str


class InfoAnswer(ModelAnswer):
    """What this server is."""

    device: str
    versions: dict[str, str] = Field(description="Of the packages that decide what is found.")
    phases: dict[str, float] = Field(
        description="Seconds of each part of the cold start, or of the one that a snapshot was taken of; ready is all."
    )
    limits: Limits
    defaults: Defaults


class StateAnswer(BaseModel):
    """That all is well."""

    status: str


def of_photo(photo: Photo) -> ImageAnswer:
    """Describe a photo."""
    return ImageAnswer(width=photo.width, height=photo.height, sha256=photo.sha256)


def of_detection(found: Detection) -> DetectionAnswer:
    """Describe something that was found."""
    return DetectionAnswer(label=found.label, score=round(found.score, 4), box_xyxy=_rounded(found.box))


def of_garment(garment: Garment, photo: Photo, rendering: Rendering) -> GarmentFacts:
    """Describe a garment and its crop."""
    return GarmentFacts(
        id=garment.id,
        label=garment.label,
        score=round(garment.score, 4),
        mask_score=round(garment.mask_score, 4),
        person=garment.person,
        box_xyxy=_rounded(garment.box),
        crop_box=list(crop_box(garment.box, photo.width, photo.height, rendering)),
        area_px=garment.area,
    )


def pictures(
    garments: Sequence[Garment],
    photo: Photo,
    rendering: Rendering,
    *,
    max_bytes: int,
    check: Callable[[], None] = lambda: None,
) -> list[bytes]:
    """Render and encode the garments, one at a time: crops are large; ``check`` is called before each one.

    Raises:
        ServiceError: They are over ``max_bytes`` together.
        OptionsError: A crop would be too large.
    """
    made, size = [], 0
    for garment in garments:
        check()
        made.append(encode(render(garment, photo, rendering).image, rendering.format))
        size += len(made[-1])
        if size > max_bytes:
            raise ServiceError(
                422,
                "answer-too-large",
                f"the {len(garments)} crops are over {max_bytes:,} bytes: raise a threshold, or ask for fewer things",
            )
    return made


def crops_as_json(answer: Answer, garments: Sequence[GarmentFacts], pictures: Sequence[bytes]) -> bytes:
    """Write crops as JSON, each picture within its garment."""
    cut = [
        GarmentAnswer(**dict(garment), png=b64encode(picture).decode())
        for garment, picture in zip(garments, pictures, strict=True)
    ]
    return to_json(CropsAnswer(**dict(answer), garments=cut))


def crops_as_zip(answer: Answer, garments: Sequence[GarmentFacts], pictures: Sequence[bytes]) -> bytes:
    """Write crops as a zip: ``manifest.json``, and each picture as a file that the manifest names.

    PNGs do not become smaller, so they are stored as they are: that is the default of `ZipInfo`.
    """
    files = [
        GarmentFile(**dict(garment), file=file_name("", garment.id + 1, garment.label, "png")) for garment in garments
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("manifest.json"), to_json(Manifest(**dict(answer), garments=files), indent=2))
        for file, picture in zip(files, pictures, strict=True):
            archive.writestr(zipfile.ZipInfo(file.file), picture)
    return buffer.getvalue()


def _rounded(box: Box) -> list[float]:
    return [round(each, 2) for each in box]


def negotiate(request: Request, *offers: str) -> str:
    """Choose the media type that the client likes best (RFC 9110, 12.5.1); of equals the first one offered.

    Raises:
        ServiceError: It takes none of them.
    """
    accept = ",".join(request.headers.getlist("accept"))
    ranges = [_media_range(each) for each in accept.split(",") if each.strip()] or [("*/*", 1.0)]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(best, ranges) <= 0:
        raise ServiceError(406, "type-not-offered", f"the answer is {' or '.join(offers)}: let Accept have it")
    return best


def _media_range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        if match := re.fullmatch(r"q=([01](?:\.\d{0,3})?)", parameter):
            return name, min(float(match[1]), 1.0)
    return name, 1.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return how much an offer is liked: what names it counts more than what has a star."""
    for name in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for given, quality in ranges:
            if given == name:
                return quality
    return 0.0
