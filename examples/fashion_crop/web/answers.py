"""The answers of the service: models of their fields. `bodies` writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from fashion_crop.models.masks import PART
from fashion_crop.models.photo import LONGEST

if TYPE_CHECKING:
    from fashion_crop.models import crops
    from fashion_crop.models.detection import Box, Detection
    from fashion_crop.models.photo import Photo

JSON, ZIP = "application/json", "application/zip"

Corners = Annotated[
    list[float],
    Field(min_length=4, max_length=4, description="Left, top, right, bottom, in pixels of the upright photo."),
]
Score = Annotated[float, Field(ge=0, le=1)]


class ImageAnswer(BaseModel):
    """The photo, upright."""

    width: int = Field(description="Pixels; those in which boxes are given.")
    height: int = Field(description="The same.")
    sha256: str = Field(description="Of the file that was sent, lower-case hex.")


class ModelAnswer(BaseModel):
    """What found it."""

    stand_ins: bool = Field(description="Whether the weights are random numbers, and what they find means nothing.")
    weights: dict[str, str] = Field(description="The sha256 of each checkpoint.")


class Timings(BaseModel):
    """Milliseconds of each stage; 0 for one that the route does not need. The header Server-Timing has them too."""

    waiting: float = Field(default=0.0, description="Until a worker was free.")
    decoding: float = Field(default=0.0, description="From the bytes of the file to pixels.")
    detection: float = Field(default=0.0, description="Finding boxes.")
    segmentation: float = Field(default=0.0, description="Finding the pixels of the garment in each box.")
    encoding: float = Field(default=0.0, description="Making the pictures or masks, and writing them in their format.")


class DetectionAnswer(BaseModel):
    """Something that was found."""

    label: str = Field(description="One of the prompts.")
    score: Score = Field(description="How sure the detector is.")
    box_xyxy: Corners


class Answer(BaseModel):
    """What every answer about a photo begins with."""

    image: ImageAnswer
    model: ModelAnswer
    timings_ms: Timings


class DetectAnswer(Answer):
    """Where the garments of a photo are, best first."""

    detections: list[DetectionAnswer] = Field(description="At most as many as GET /v1/info says.")


class GarmentFacts(BaseModel):
    """A garment, without its picture."""

    id: int = Field(description="Its place in the answer, from 0.")
    label: str = Field(description="One of the prompts.")
    score: Score = Field(description="How sure the detector is.")
    mask_score: Score = Field(description="How good the segmenter thinks its mask is.")
    person: int | None = Field(
        description="The person that wears it, numbered from the left; null if no person was found."
    )
    box_xyxy: Corners
    area_px: int = Field(
        description="Of its mask, in pixels of the photo. The mask has every part that has at least "
        f"{PART:.0%} of the area of the largest part, so that a pair of shoes keeps both; its small holes are filled."
    )


class MaskAnswer(GarmentFacts):
    """A garment, and which pixels belong to it."""

    mask_box: list[int] = Field(
        min_length=4,
        max_length=4,
        description="What the mask covers: left, top, right, bottom, in whole pixels of the upright photo. "
        "Outside of it everything is background.",
    )
    mask: str = Field(
        description="A PNG in base64 with one channel of 8 bits: 0 is background, 255 is garment, and the edge is "
        "between. Scale it to the size of mask_box, and use it as the opacity of the photo's pixels there. "
        f"It has the resolution that the models work with: {LONGEST} pixels for the longest side of the photo.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"},
    )


class MasksAnswer(Answer):
    """The masks of the garments of a photo, by person from left to right, then from top to bottom."""

    garments: list[MaskAnswer] = Field(description="With the order and the ids that crops have.")


class CropFacts(GarmentFacts):
    """A garment and its crop, without the picture."""

    crop_box: list[int] = Field(
        min_length=4,
        max_length=4,
        description="What the picture shows: left, top, right, bottom, in whole pixels of the upright photo. The "
        "picture has as many pixels. With an aspect ratio the box may go beyond the photo.",
    )


class CropAnswer(CropFacts):
    """A garment, cut out."""

    picture: str = Field(
        description="The picture in base64: the garment in the original pixels of the photo, not made smaller.",
        json_schema_extra={"contentEncoding": "base64"},
    )


class CropsAnswer(Answer):
    """Every garment of a photo, cut out, by person from left to right, then from top to bottom."""

    media_type: str = Field(description="Of the pictures.", examples=["image/png", "image/webp", "image/jpeg"])
    garments: list[CropAnswer] = Field(description="With the order and the ids that masks have.")


class CropFile(CropFacts):
    """A garment whose picture lies beside the manifest."""

    file: str


class Manifest(Answer):
    """``manifest.json`` in a zip."""

    media_type: str
    garments: list[CropFile]


class Limits(BaseModel):
    """What a request may be at most."""

    max_bytes: int = Field(description="Of the photo.")
    max_pixels: int = Field(description="Of the photo; width by height.")
    max_prompts: int = Field(description="Of a request.")
    max_garments: int = Field(description="Of an answer: those with the best scores.")


class Defaults(BaseModel):
    """What is looked for, where a form leaves out the fields."""

    prompts: list[str] = Field(description="What to look for.")
    box_threshold: float = Field(description="The least score of a box.")
    text_threshold: float = Field(description="The least score of its label.")
    nms_threshold: float = Field(description="How much boxes of a label may overlap.")


class RenderingDefaults(BaseModel):
    """How a crop is made, where a form leaves out the fields."""

    padding: float = Field(description="What a crop shows around its box, as a share of the box's longer side.")
    background: str = Field(description="What is not garment.")
    aspect: str = Field(description="Width by height; original for that of the box.")
    format: str = Field(description="Of the pictures.")


class CropInfo(BaseModel):
    """What a crop is made of."""

    part_share: float = Field(
        default=PART,
        description="A part of a mask is kept if it has at least this share of the largest part's area. "
        "A pair of shoes has two parts.",
    )
    original_pixels: bool = Field(
        default=True, description="Whether a crop has the photo's own pixels, in their full number."
    )
    longest_side: int = Field(
        default=LONGEST,
        description="Pixels of the longest side of what the models see. A larger photo is made smaller for them, "
        "so its masks have this resolution, and its crops do not.",
    )


class InfoAnswer(ModelAnswer):
    """What this server is."""

    device: str = Field(description="On which the models run, as torch names it.")
    segmenter: str = Field(description="The variant of SAM 2: large, base-plus, small or tiny.")
    versions: dict[str, str] = Field(description="Of the packages that decide what is found.")
    phases: dict[str, float] = Field(
        description="Seconds of each part of the cold start, or of the one that a snapshot was taken of; ready is all."
    )
    limits: Limits
    defaults: Defaults
    rendering: RenderingDefaults
    crops: CropInfo


class StateAnswer(BaseModel):
    """That all is well."""

    status: str = Field(examples=["alive", "ready"], description="In one word.")


def of_photo(photo: Photo) -> ImageAnswer:
    """Describe a photo."""
    return ImageAnswer(width=photo.width, height=photo.height, sha256=photo.sha256)


def of_detection(found: Detection) -> DetectionAnswer:
    """Describe something that was found."""
    return DetectionAnswer(label=found.label, score=round(found.score, 4), box_xyxy=_rounded(found.box))


def of_garment(garment: crops.Garment) -> GarmentFacts:
    """Describe a garment."""
    return GarmentFacts(
        id=garment.id,
        label=garment.label,
        score=round(garment.score, 4),
        mask_score=round(garment.mask_score, 4),
        person=garment.person,
        box_xyxy=_rounded(garment.box),
        area_px=garment.area,
    )


def _rounded(box: Box) -> list[float]:
    return [round(each, 2) for each in box]
