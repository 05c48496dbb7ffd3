"""Decode an uploaded photo safely: untrusted bytes in, upright sRGB pixels out."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP")
LONGEST = 2048  # pixels of the longest side that the models get: GroundingDINO looks at 1,333 of them, SAM 2 at 1,024
MAX_PIXELS = 40_000_000
STRIP = 1_000_000  # pixels that are converted at once, so that no step makes another copy of a whole photo
MAX_SCANS = 100  # of a progressive JPEG, which has about ten; each costs 35 ms at 40 million pixels, and 60 bytes

# What Pillow warns of is metadata that it cannot read, and sizes, which are checked here. (Not warnings.catch_warnings:
# that is for one thread.)
warnings.filterwarnings("ignore", module=r"PIL\.")

Reason = Literal["undecodable", "unsupported", "too-large"]


class PhotoError(ValueError):
    """These bytes are no photo that can be used.

    Attributes:
        reason: ``"undecodable"``: empty, damaged or cut off; ``"unsupported"``: a kind of file that is not taken;
            ``"too-large"``: too many pixels.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, str(self))  # else it cannot leave the process that raised it


@dataclass(frozen=True)
class Photo:
    """A photo, upright and in sRGB.

    Attributes:
        pixels: For the models: height by width by 3; the longest side has at most `LONGEST` pixels.
        original: All pixels of the photo: height by width by 3.
        sha256: Of the bytes that were sent, lower-case hex.
    """

    pixels: NDArray[np.uint8]
    original: NDArray[np.uint8]
    sha256: str

    @property
    def width(self) -> int:
        """Of the original, upright, in pixels."""
        return self.original.shape[1]

    @property
    def height(self) -> int:
        """Of the original, upright, in pixels."""
        return self.original.shape[0]

    @property
    def scale(self) -> tuple[float, float]:
        """How many pixels of the original's width and height one of ``pixels`` is."""
        height, width = self.pixels.shape[:2]
        return self.width / width, self.height / height


def open_photo(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Decode a JPEG, PNG or WebP; of an animation the first picture.

    What the camera says of its orientation and colours is applied, and what is transparent becomes white. Of a photo
    with too many pixels only the header is read. One of 40 million takes 290 MB while it is decoded, as a WebP 630, and
    then 135: its pixels, and those for the models.

    Raises:
        PhotoError: They cannot be used; ``reason`` and the text say why.
    """
    _refuse_other_files(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_large(*image.size, max_pixels)
            original = _decode(image)
    except PhotoError:
        raise
    except Image.DecompressionBombError as error:  # of Pillow, over 179 million pixels
        raise PhotoError("too-large", f"the photo has far over {max_pixels:,} pixels: send a smaller one") from error
    except Exception as error:  # decoders of hostile bytes raise whatever they like
        raise PhotoError(
            "undecodable",
            "the photo is damaged, cut off, or has far too much metadata: if it opens elsewhere, save it there again",
        ) from error
    return Photo(_small(original), original, hashlib.sha256(data).hexdigest())


def _refuse_other_files(data: bytes) -> None:
    """Check the first bytes; a file name proves nothing."""
    if not data:
        raise PhotoError("undecodable", "the file is empty: send a JPEG, PNG or WebP")
    if data.startswith(b"\xff\xd8\xff"):
        if (scans := _scans(data)) > MAX_SCANS:
            raise PhotoError("unsupported", f"the JPEG has over {MAX_SCANS} scans, got {scans:,}: save it as another")
    elif not data.startswith(b"\x89PNG\r\n\x1a\n") and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        raise PhotoError("unsupported", _named(data))


_BRANDS = {  # of a file of boxes, by what it says that it is
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    "AVIF": (b"avif", b"avis"),
    "HEIF": (b"mif1", b"msf1", b"mif2"),
    "QuickTime film": (b"qt  ",),
    "MP4 film": (b"isom", b"iso2", b"mp41", b"mp42", b"avc1"),
    "Canon raw photo": (b"crx ",),
}
_BEGINNINGS = {
    "GIF": (b"GIF8",),
    "TIFF or a camera's raw photo": (b"II*\0", b"MM\0*"),
    "BMP": (b"BM",),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "PDF": (b"%PDF-",),
    "Photoshop file": (b"8BPS",),
    "SVG": (b"<svg",),
}
_WANTED = "and only JPEG, PNG or WebP are taken"
_EXPORT = "export it as JPEG; on an iPhone, choose Settings > Camera > Formats > Most Compatible for the next photos"


def _named(data: bytes) -> str:
    """Return the message for an unsupported kind of file."""
    if data[4:8] == b"ftyp":
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 256), 4))]
        for kind, own in _BRANDS.items():
            if any(brand in own for brand in brands):
                return f"the file is {kind}, {_WANTED}: {_EXPORT if kind in {'HEIC', 'HEIF'} else 'export it as JPEG'}"
    for kind, beginnings in _BEGINNINGS.items():
        if data.startswith(beginnings):
            return f"the file is {kind}, {_WANTED}: save it as one of these"
    return "the file is no JPEG, PNG or WebP, whatever its name says: save it as one"


_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")  # of what has a length, which a scan's own bytes cannot be
_START_OF_SCAN, _END = b"\xda", b"\xd9"


def _scans(data: bytes) -> int:
    """Count how many times a JPEG goes over the image."""
    count, position = 0, 2
    while (marker := _MARKER.search(data, position)) and marker[1] != _END:
        count += marker[1] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return count


def _refuse_large(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise PhotoError(
            "too-large",
            f"the photo has {width:,} by {height:,} = {width * height:,} pixels, and at most {most:,} are taken: "
            "send a smaller one",
        )


def _decode(image: Image.Image) -> NDArray[np.uint8]:
    """Return all pixels, upright and in sRGB."""
    image.load()
    width, height = image.size
    orientation = _orientation(image)  # after load: a PNG may have it at its end
    upright = np.empty((width, height, 3) if orientation > 4 else (height, width, 3), np.uint8)
    stored = _as_stored(upright, orientation)
    in_rgb, rows = _ToRgb(image), max(1, STRIP // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        stored[top : top + rows] = np.asarray(in_rgb(strip))
    return upright


def _as_stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return a view whose first row and column are those of the file, by what Exif says of them.

    1 is top left, 2 top right, 3 bottom right, 4 bottom left; 5 left top, 6 right top, 7 right bottom, 8 left bottom.
    """
    view = upright.swapaxes(0, 1) if orientation > 4 else upright
    if orientation in (3, 4, 6, 7):
        view = view[::-1]
    return view[:, ::-1] if orientation in (2, 3, 7, 8) else view


def _small(original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the photo as the models get it, always a copy."""
    height, width = original.shape[:2]
    shrink = LONGEST / max(width, height)
    if shrink >= 1:
        return original.copy()
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return cv2.resize(original, size, interpolation=cv2.INTER_AREA)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 (what cannot be read says nothing)
        return 1
    return orientation if orientation in range(1, 9) else 1


class _ToRgb:
    """Lays parts of an image on white, and converts them to sRGB."""

    def __init__(self, image: Image.Image) -> None:
        self._profile = image.info.get("icc_profile")
        self._transform: ImageCms.ImageCmsTransform | None = None

    def __call__(self, image: Image.Image) -> Image.Image:
        if "transparency" in image.info:
            image = _with_opacity(image)
        elif image.mode in ("1", "P"):
            image = image.convert("RGB")
        if image.mode == "I;16":  # Pillow's own conversion cuts off what is over 255
            image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
        if image.mode in ("LA", "RGBA"):
            ground = Image.new(image.mode[:-1], image.size, "white")
            ground.paste(image, mask=image.getchannel("A"))
            image = ground
        return self._in_srgb(image).convert("RGB")

    def _in_srgb(self, image: Image.Image) -> Image.Image:
        if not self._profile:
            return image
        try:
            if self._transform is None:
                own = ImageCms.ImageCmsProfile(io.BytesIO(self._profile))
                self._transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), image.mode, "RGB")
            return ImageCms.applyTransform(image, self._transform) or image
        except Exception:  # noqa: BLE001 (a broken profile, or one of other colours, says nothing)
            self._profile = None
            return image


def _with_opacity(image: Image.Image) -> Image.Image:
    if image.mode != "I;16":
        return image.convert("RGBA")
    grey = np.asarray(image)  # which Pillow would cut off, as below
    opaque = (grey != image.info["transparency"]).astype(np.uint8) * 255
    image = Image.fromarray((grey // 257).astype(np.uint8))
    image.putalpha(Image.fromarray(opaque))
    return image
