"""Write the masks and crops of an answer, as JSON or as a zip."""

from __future__ import annotations

import io
import zipfile
from base64 import b64encode
from typing import TYPE_CHECKING

from PIL import Image
from pydantic_core import to_json

from fashion_crop.models import crops

from . import answers
from .answers import Answer, CropAnswer, CropFacts, CropFile, CropsAnswer, Manifest, MaskAnswer, MasksAnswer
from .errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from fashion_crop.models.crops import Garment, Rendering
    from fashion_crop.models.photo import Photo

    Cut = tuple[CropFacts, bytes]

MAX_PIXELS = 400_000_000  # of all crops of an answer
_LESS = "raise a threshold, ask for fewer things, use less padding, or send a smaller photo"


class Pictures:
    """The encoded pictures of one answer.

    Args:
        max_bytes: Limit for all of them.
        check: Called before each one; raises if the client has disconnected.
    """

    def __init__(self, max_bytes: int, check: Callable[[], None]) -> None:
        self._max_bytes, self._check = max_bytes, check

    def masks(self, garments: Sequence[Garment]) -> list[bytes]:
        """Return the mask of each garment as a PNG of one channel.

        Raises:
            ServiceError: They have too many bytes together.
        """
        return self._all("masks", [lambda mask=each.mask: _grey(mask) for each in garments])

    def crops(self, garments: Sequence[Garment], photo: Photo, rendering: Rendering) -> list[Cut]:
        """Return what is said about each garment, and its picture.

        They are rendered one after the other: a crop in original pixels may take hundreds of megabytes of memory.

        Raises:
            ServiceError: They have too many bytes or pixels together.
            OptionsError: One would have too many pixels.
        """
        facts: list[CropFacts] = []
        pixels = 0

        def picture(garment: Garment) -> bytes:
            nonlocal pixels
            crop = crops.render(garment, photo, rendering)
            pixels += crop.image.width * crop.image.height
            if pixels > MAX_PIXELS:  # plain pictures have few bytes, and each takes seconds of the only worker
                text = f"the {len(garments)} crops have over {MAX_PIXELS:,} pixels: "
                raise ServiceError(422, "answer-too-large", text + _LESS)
            facts.append(CropFacts(**dict(answers.of_garment(garment)), crop_box=list(crop.box)))
            return crops.encode(crop.image, rendering.format)

        pictures = self._all("crops", [lambda garment=each: picture(garment) for each in garments])
        return list(zip(facts, pictures, strict=True))

    def _all(self, kind: str, makers: Sequence[Callable[[], bytes]]) -> list[bytes]:
        made, size = [], 0
        for make in makers:
            self._check()
            made.append(make())
            size += len(made[-1])
            if size > self._max_bytes:
                text = f"the {len(makers)} {kind} are over {self._max_bytes:,} bytes: "
                raise ServiceError(422, "answer-too-large", text + _LESS)
        return made


def _grey(mask: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def masks_as_json(answer: Answer, garments: Sequence[Garment], masks: Sequence[bytes]) -> bytes:
    """Write masks as JSON."""
    described = [
        MaskAnswer(**dict(answers.of_garment(garment)), mask_box=list(garment.mask_box), mask=b64encode(mask).decode())
        for garment, mask in zip(garments, masks, strict=True)
    ]
    return to_json(MasksAnswer(**dict(answer), garments=described))


def crops_as_json(answer: Answer, cuts: Sequence[Cut], rendering: Rendering) -> bytes:
    """Write crops as JSON, each picture within its garment."""
    described = [CropAnswer(**dict(facts), picture=b64encode(picture).decode()) for facts, picture in cuts]
    return to_json(CropsAnswer(**dict(answer), media_type=crops.MEDIA_TYPES[rendering.format], garments=described))


def crops_as_zip(answer: Answer, cuts: Sequence[Cut], rendering: Rendering, photo_name: str) -> bytes:
    """Write crops as a zip: ``manifest.json``, and each picture as a file that the manifest names.

    Pictures do not become smaller, so they are stored as they are: that is the default of `ZipInfo`.
    """
    files = [
        CropFile(**dict(facts), file=crops.file_name(photo_name, facts.id + 1, facts.label, rendering.format))
        for facts, _ in cuts
    ]
    manifest = Manifest(**dict(answer), media_type=crops.MEDIA_TYPES[rendering.format], garments=files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("manifest.json"), to_json(manifest, indent=2))
        for file, (_, picture) in zip(files, cuts, strict=True):
            archive.writestr(zipfile.ZipInfo(file.file), picture)
    return buffer.getvalue()
