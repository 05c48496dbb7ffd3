"""Render the picture of a garment: background, padding, aspect ratio and format, without another look at the photo.

The box arithmetic of `crop_box` is simple on purpose: the page does the same in JavaScript.
"""

from __future__ import annotations

import io
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from . import boxes
from .detection import Box, OptionsError
from .photo import STRIP

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .photo import Photo

Region = tuple[int, int, int, int]  # whole pixels: left, top, right, bottom, as of a `Box`

BACKGROUNDS = "transparent|white|original|#[0-9a-fA-F]{6}"  # as a regular expression
ASPECTS = {"original": None, "1:1": 1 / 1, "4:5": 4 / 5}  # width by height
MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}  # by format
MAX_PIXELS = 80_000_000  # of a crop, which padding and an aspect ratio can make larger than any photo
MARGIN = 0.05  # of the longer side of a box: how far a mask goes beyond it

# PNG: a third of the time of Pillow's own 6, for 7 % more bytes (1200 by 1600 pixels, half of them transparent).
_ENCODING = {"png": {"compress_level": 3}, "webp": {"quality": 90}, "jpeg": {"quality": 92}}
_SIDES = {"webp": 16_383, "jpeg": 65_500}  # pixels that these formats, as Pillow writes them, have at most


@dataclass(frozen=True)
class Rendering:
    """How a garment is shown.

    Attributes:
        padding: What a crop shows on each side of its box, as a share of the box's longer side, 0 to 1.
        background: What is not garment: ``"transparent"``, ``"white"``, a colour such as ``"#f4f4f4"``, or
            ``"original"`` for the photo itself.
        aspect: Width by height, ``"1:1"`` or ``"4:5"``; ``"original"`` for that of the box.
        format: ``"png"``, ``"webp"`` or ``"jpeg"``.

    Raises:
        OptionsError: A value is not one of these; the message names every wrong one.
    """

    padding: float = 0.05
    background: str = "transparent"
    aspect: str = "original"
    format: str = "png"

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.padding <= 1:  # which NaN is not, either
            problems.append(("padding", f"must be from 0 to 1, got {self.padding}"))
        if not re.fullmatch(BACKGROUNDS, self.background):
            message = f"must be transparent, white, original or a colour as #rrggbb, got {self.background[:40]!r}"
            problems.append(("background", message))
        if self.aspect not in ASPECTS:
            problems.append(("aspect", f"must be original, 1:1 or 4:5, got {self.aspect[:40]!r}"))
        if self.format not in MEDIA_TYPES:
            problems.append(("format", f"must be png, webp or jpeg, got {self.format[:40]!r}"))
        if self.format == "jpeg" and self.background == "transparent":
            problems.append(("format", "JPEG has no transparency: choose a background, or PNG or WebP"))
        if problems:
            raise OptionsError(problems)


@dataclass(frozen=True)
class Garment:
    """One garment: where it is in the photo, and which pixels belong to it.

    Attributes:
        id: Its place in the result, from 0.
        label: One of the prompts.
        score: How sure the detector is, 0 to 1.
        mask_score: How good the segmenter thinks the mask is, 0 to 1.
        person: The person that wears it, numbered from the left; ``None`` if none was found.
        box: Where it is, in pixels of the upright original.
        area: Of its mask, in pixels of the original.
        mask: Its opacity, 0 to 255, soft at the edge: height by width, at the resolution of `Photo.pixels`.
        mask_box: What ``mask`` covers when it is scaled to it, in whole pixels of the original: the box and `MARGIN`.
            Outside of it everything is background.
    """

    id: int
    label: str
    score: float
    mask_score: float
    person: int | None
    box: Box
    area: int
    mask: NDArray[np.uint8]
    mask_box: Region


@dataclass(frozen=True)
class Crop:
    """The picture of a garment.

    Attributes:
        image: All pixels that the original has there: RGBA on a transparent background, else RGB.
        box: What ``image`` shows, in whole pixels of the original. With an aspect ratio it may go beyond the photo.
    """

    image: Image.Image
    box: Region


def render(garment: Garment, photo: Photo, rendering: Rendering) -> Crop:
    """Make the picture of a garment from the original pixels of its photo.

    Only the pixels of the crop are processed. What lies beyond the photo is transparent or has the colour of the
    background; with the photo itself as background it is white. A crop of 40 million pixels takes 250 MB meanwhile, and
    then 160.

    Raises:
        OptionsError: The crop would be too large, for `MAX_PIXELS` or for its format.
    """
    box = crop_box(garment.box, photo.width, photo.height, rendering)
    size = box[2] - box[0], box[3] - box[1]
    _refuse_large(*size, rendering.format)
    if rendering.background == "original":
        image = Image.new("RGB", size, "white")
        _paste(image, photo, box, None)
    elif rendering.background == "transparent":
        opacity = _opacity(garment, box)
        image = Image.new("RGBA", size)
        # Black outside the mask: else the file would contain the background for programs that ignore opacity.
        _paste(image, photo, box, opacity.point([0] + [255] * 255))
        image.putalpha(opacity)
    else:
        image = Image.new("RGB", size, rendering.background)
        _paste(image, photo, box, _opacity(garment, box))
    return Crop(image, box)


def crop_box(box: Box, width: int, height: int, rendering: Rendering) -> Region:
    """Return what a crop shows, in whole pixels of a photo of that size.

    The padded box grows around its centre to the aspect ratio, and is never cut, so it may go beyond the photo. Without
    an aspect ratio it ends at the photo's borders. A box counts as at least one pixel wide and high.
    """
    box = Box(box.left, box.top, max(box.right, box.left + 1), max(box.bottom, box.top + 1))
    left, top, right, bottom = boxes.padded(box, rendering.padding)
    aspect = ASPECTS[rendering.aspect]
    if aspect is None:
        return boxes.whole_pixels(Box(left, top, right, bottom), width, height)
    wide, high = right - left, bottom - top
    if wide < aspect * high:
        left, right = (left + right - high * aspect) / 2, (left + right + high * aspect) / 2
    else:
        top, bottom = (top + bottom - wide / aspect) / 2, (top + bottom + wide / aspect) / 2
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def encode(image: Image.Image, format: str) -> bytes:  # noqa: A002 (it is what Rendering calls it)
    """Write a crop as ``"png"``, ``"webp"`` or ``"jpeg"``."""
    buffer = io.BytesIO()
    image.save(buffer, format, **_ENCODING[format])
    return buffer.getvalue()


def file_name(photo_name: str, number: int, label: str, format: str) -> str:  # noqa: A002 (as above)
    """Return the name of a crop's file, such as ``holiday_01_shirt.png``.

    Args:
        photo_name: Of the file that was sent; a path before it and its extension are left out.
        number: From 1.
        label: What it shows.
        format: As `encode` takes it.
    """
    stem = re.split(r"[/\\]", photo_name)[-1]
    stem = stem.rpartition(".")[0] or stem
    extension = "jpg" if format == "jpeg" else format
    return f"{_safe(stem) or 'photo'}_{number:02}_{_safe(label) or 'garment'}.{extension}"


def in_original(box: Box, photo: Photo) -> Box:
    """Return a box of `Photo.pixels` in pixels of the upright original, to a hundredth.

    Answers have the same digits, so a client that renders a crop computes the same whole pixels.
    """
    x, y = photo.scale
    return Box(*(round(each, 2) for each in (box.left * x, box.top * y, box.right * x, box.bottom * y)))


def _safe(text: str) -> str:
    """Return letters, their marks and digits of any script, and nothing that a path is made of."""
    composed = unicodedata.normalize("NFC", text)  # some systems give a letter and its accent apart
    kept = "".join(each if each in "-_" or unicodedata.category(each)[0] in "LMN" else " " for each in composed)
    return re.sub(" +", "_", kept).strip("_")[:40]


def _opacity(garment: Garment, box: Region) -> Image.Image:
    """Return the mask as large as the crop, scaled to the original's pixels."""
    left, top, right, bottom = garment.mask_box
    mask = Image.fromarray(garment.mask).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    opacity = Image.new("L", (box[2] - box[0], box[3] - box[1]))
    opacity.paste(mask, (left - box[0], top - box[1]))
    return opacity


def _paste(image: Image.Image, photo: Photo, box: Region, opacity: Image.Image | None) -> None:
    """Put the photo's pixels of a box into an image of that size, a strip at a time: Pillow copies what it pastes."""
    left, right = max(box[0], 0), min(box[2], photo.width)
    rows = max(1, STRIP // image.width)
    for top in range(max(box[1], 0), min(box[3], photo.height), rows):
        strip = Image.fromarray(photo.original[top : min(top + rows, box[3]), left:right])
        x, y = left - box[0], top - box[1]
        image.paste(strip, (x, y), opacity and opacity.crop((x, y, x + strip.width, y + strip.height)))


def _refuse_large(width: int, height: int, format: str) -> None:  # noqa: A002 (as above)
    if width * height > MAX_PIXELS:
        text = f"a crop would have {width:,} by {height:,} pixels, and at most {MAX_PIXELS:,} are made"
        raise OptionsError([("padding", f"{text}: choose less padding, or the aspect ratio original")])
    if max(width, height) > (most := _SIDES.get(format, MAX_PIXELS)):
        text = f"a crop would have {width:,} by {height:,} pixels, and this format has at most {most:,} a side"
        raise OptionsError([("format", f"{text}: choose png, or less padding")])
