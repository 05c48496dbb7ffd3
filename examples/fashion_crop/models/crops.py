"""Make the picture of a garment from a detection and its mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from . import masks
from .boxes import whole_pixels
from .detection import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .detection import Detection
    from .photo import Photo

Region = tuple[int, int, int, int]  # whole pixels: left, top, right, bottom, as of a `Box`


@dataclass
class Cut:
    """A detection and its mask.

    Attributes:
        found: What was found, its box in pixels of `Photo.pixels`.
        region: The box with padding, in the same pixels.
        mask: Of the region: height by width.
        quality: How good the segmenter thinks the mask is, 0 to 1.
        person: The person that wears it, numbered from the left; ``None`` if none was found.
    """

    found: Detection
    region: Region
    mask: NDArray[np.bool_]
    quality: float
    person: int | None = None


@dataclass(frozen=True)
class Garment:
    """One garment, cut out.

    Attributes:
        id: Its place in the result, from 0.
        label: One of the prompts.
        score: How sure the detector is, 0 to 1.
        mask_score: How good the segmenter thinks the mask is, 0 to 1.
        box: Where it is, in pixels of the upright original.
        crop_box: What ``image`` shows: left, top, right, bottom in whole pixels of the original.
        area: Of its mask within the crop, in pixels of the original.
        person: The person that wears it, numbered from the left; ``None`` if none was found.
        image: The crop: RGBA on a transparent background, else RGB. It is cut from `Photo.pixels`, so of a photo with
            more pixels than those it is smaller than ``crop_box``.
    """

    id: int
    label: str
    score: float
    mask_score: float
    box: Box
    crop_box: Region
    area: int
    person: int | None
    image: Image.Image


def garment(number: int, cut: Cut, photo: Photo, background: str) -> Garment:
    """Make the picture of a garment, with its coordinates in pixels of the original.

    Args:
        number: Its index in the result.
        cut: The detection and its mask.
        photo: The photo.
        background: ``"transparent"``, ``"original"`` for the photo itself, ``"white"``, or a colour as ``"#rrggbb"``.
    """
    left, top, right, bottom = cut.region
    x, y = photo.scale
    return Garment(
        id=number,
        label=cut.found.label,
        score=cut.found.score,
        mask_score=cut.quality,
        box=in_original(cut.found.box, photo),
        crop_box=whole_pixels(in_original(Box(*cut.region), photo), photo.width, photo.height),
        area=round(np.count_nonzero(cut.mask) * x * y),
        person=cut.person,
        image=_picture(photo.pixels[top:bottom, left:right], cut.mask, background),
    )


def in_original(box: Box, photo: Photo) -> Box:
    """Return a box of `Photo.pixels` in pixels of the upright original."""
    x, y = photo.scale
    return Box(box.left * x, box.top * y, box.right * x, box.bottom * y)


def _picture(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], background: str) -> Image.Image:
    image = Image.fromarray(pixels)
    if background == "original":
        return image
    opacity = Image.fromarray(masks.soften(mask))
    if background == "transparent":
        # Black outside the mask: else the file would contain the background for programs that ignore opacity.
        image = Image.composite(image, Image.new("RGB", image.size), Image.fromarray(mask))
        image.putalpha(opacity)
        return image
    return Image.composite(image, Image.new("RGB", image.size, background), opacity)
