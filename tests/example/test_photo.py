"""Photos: what cameras and programs make comes out as it should be seen, and what people send instead is refused."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps

import fashion_crop
from fashion_crop.models import photo as photo_module
from fashion_crop.models.photo import LONGEST, MAX_SCANS, PhotoError, open_photo

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as photo.py does; pytest forgets it

RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXCHANGED = SRGB.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")  # red and blue
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}}


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **(LOSSLESS.get(form, {"quality": 95}) | options))
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    """Red grows to the right and green downwards, so that no turn of it looks like another."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], axis=-1).astype(np.uint8))


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *more: bytes, depth: int = 8, colours: int = 2, lace: int = 0) -> bytes:
    """A PNG written by hand; ``colours``: 0 grey, 2 RGB."""
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, lace)
    pixels = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND")])


def interlaced(image: Image.Image) -> bytes:
    pixels = np.asarray(image)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    return png(*image.size, rows, lace=1)


def colour(photo: Any) -> tuple[int, ...]:
    """The one colour of a photo."""
    first = photo.pixels[0, 0]
    assert (photo.pixels == first).all()
    assert (photo.original == first).all()
    return tuple(int(each) for each in first)


def refusal(data: bytes, **options: Any) -> PhotoError:
    with pytest.raises(PhotoError) as caught:
        open_photo(data, **options)
    assert len(str(caught.value)) < 200
    return caught.value


# What is taken


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("JPEG", {}, 8),
        ("JPEG", {"progressive": True}, 8),
        ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (40, 24))]}, 8),
        ("PNG", {}, 0),
        ("WEBP", {}, 0),
        ("WEBP", {"lossless": False, "quality": 95}, 12),
    ],
)
def test_a_photo_is_what_it_shows(form: str, options: dict[str, Any], tolerance: int) -> None:
    data = encoded(gradient(), form, **options)
    photo = open_photo(data)
    assert np.abs(photo.pixels.astype(int) - np.asarray(gradient())).max() <= tolerance
    assert (photo.original == photo.pixels).all()
    assert (photo.width, photo.height, photo.scale) == (40, 24, (1, 1))
    assert photo.sha256 == hashlib.sha256(data).hexdigest()


def test_an_interlaced_png() -> None:
    assert (open_photo(interlaced(gradient())).pixels == np.asarray(gradient())).all()


def test_pixels_can_be_written_to_by_whoever_gets_them() -> None:
    photo = open_photo(encoded(gradient()))
    photo.pixels[0, 0] = RED
    assert (photo.original == np.asarray(gradient())).all()


@pytest.mark.parametrize(
    ("image", "form", "options", "shown"),
    [
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", {}, (254, 0, 0)),
        (Image.new("L", (8, 8), 128), "JPEG", {}, GREY),
        (Image.new("1", (8, 8), 1), "PNG", {}, WHITE),
        (Image.new("L", (8, 8), 128), "PNG", {"transparency": 128}, WHITE),
        (Image.new("RGB", (8, 8), RED), "PNG", {"transparency": RED}, WHITE),
        (Image.new("LA", (8, 8), (0, 127)), "PNG", {}, GREY),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 127)), "PNG", {}, GREY),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "WEBP", {}, WHITE),
        (Image.new("RGB", (8, 8), RED).quantize(2), "PNG", {}, RED),
        (Image.new("RGB", (8, 8), RED).quantize(2), "PNG", {"transparency": bytes([0, 0])}, WHITE),
        (Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)), "PNG", {}, GREY),
        (Image.fromarray(np.full((8, 8), 65535, np.uint16)), "PNG", {}, WHITE),
        (Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)), "PNG", {"transparency": 7}, GREY),
        (Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)), "PNG", {"transparency": 128 * 257}, WHITE),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_kind_of_pixel(image: Image.Image, form: str, options: dict[str, Any], shown: tuple[int, ...]) -> None:
    assert np.abs(np.subtract(colour(open_photo(encoded(image, form, **options))), shown)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_strips_of_a_photo_are_parts_of_the_same_photo(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = (
        gradient().convert(mode)
        if mode != "I;16"
        else Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40) * 60)
    )
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG", icc_profile=EXCHANGED)
    whole = open_photo(data)
    monkeypatch.setattr(photo_module, "STRIP", 200)
    assert (open_photo(data).original == whole.original).all()


def test_sixteen_bits_of_each_colour() -> None:
    rows = (b"\0" + struct.pack(">HHH", 65535, 128 * 257, 0) * 4) * 4
    assert colour(open_photo(png(4, 4, rows, depth=16))) == (255, 128, 0)


def test_what_is_transparent_is_not_mixed_in_when_a_photo_is_made_smaller() -> None:
    """Blue is transparent in one half; scaling first would leave a seam of red mixed with it."""
    pixels = np.zeros((8, 2 * LONGEST, 3), np.uint8)
    pixels[:, ::2] = RED
    pixels[:, 1::2] = (0, 0, 255)
    photo = open_photo(encoded(Image.fromarray(pixels), transparency=(0, 0, 255)))
    inner = photo.pixels[:, 8:-8].astype(int)
    assert (np.abs(inner - [255, 127, 127]) <= 3).all()


def test_the_colours_of_a_palette_are_mixed_when_a_photo_is_made_smaller() -> None:
    pixels = np.zeros((8, 2 * LONGEST), np.uint8)
    pixels[:, ::2] = 1
    image = Image.fromarray(pixels, "L").copy()
    image.putpalette([0, 0, 255, 255, 0, 0])
    for each in (image, Image.fromarray(pixels > 0)):
        inner = open_photo(encoded(each)).pixels[:, 8:-8].astype(int)
        assert (np.abs(inner[..., 0] - 127) <= 3).all()


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_of_an_animation_the_first_picture(form: str) -> None:
    others = [Image.new("RGB", (8, 8), each) for each in ("blue", "green")]
    data = encoded(Image.new("RGB", (8, 8), RED), form, save_all=True, append_images=others)
    assert colour(open_photo(data)) == RED


# Which way is up


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 12), height=st.integers(1, 12), seed=st.integers(0, 99), form=st.sampled_from(sorted(LOSSLESS))
)
def test_all_eight_orientations_give_the_same_photo(width: int, height: int, seed: int, form: str) -> None:
    upright = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    for orientation in range(1, 9):
        data = encoded(stored(upright, orientation), form, exif=exif(orientation))
        with patch.object(photo_module, "STRIP", 20):
            photo = open_photo(data)
        assert (photo.pixels == upright).all()
        assert (photo.original == upright).all()
        assert (photo.width, photo.height) == (width, height)
        assert (photo.pixels == np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))).all()


def stored(upright: NDArray[np.uint8], orientation: int) -> Image.Image:
    """Return what a camera writes: Exif says where its first row and first column are displayed."""
    # Row and column: 1 top left, 2 top right, 3 bottom right, 4 bottom left; 5 left top, 6 right top, 7 right bottom,
    # 8 left bottom.
    pixels = upright.swapaxes(0, 1) if orientation > 4 else upright
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))


def exif(orientation: int) -> Image.Exif:
    facts = Image.Exif()
    facts[ExifTags.Base.Orientation] = orientation
    return facts


def test_a_large_jpeg_has_all_its_pixels() -> None:
    upright = gradient(3000, 4500)
    data = encoded(stored(np.asarray(upright), 6), "JPEG", exif=exif(6))
    photo = open_photo(data)
    assert (photo.width, photo.height, photo.pixels.shape) == (3000, 4500, (2048, 1365, 3))
    assert (photo.original == np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))).all()
    expected = np.asarray(upright.resize((1365, 2048)))
    assert np.abs(photo.pixels.astype(int) - expected).max() <= 8


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    photo = open_photo(encoded(gradient(), exif=exif(orientation)))
    assert (photo.pixels == np.asarray(gradient())).all()


@pytest.mark.parametrize("garbage", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + bytes(range(256))])
def test_garbage_in_the_place_of_exif_turns_nothing(garbage: bytes) -> None:
    assert open_photo(encoded(gradient(), "JPEG", exif=garbage)).width == 40


def test_an_exif_that_is_no_number_turns_nothing() -> None:
    """As some programs write it into a PNG's text, where it is in hexadecimal."""
    text = chunk(b"tEXt", b"Raw profile type exif\0\n\n\nno number")
    assert open_photo(png(4, 4, (b"\0" + bytes(12)) * 4, text)).width == 4


# Colours


def test_colours_are_converted_to_srgb() -> None:
    """A profile whose red and blue are exchanged: what it calls red is to be seen as blue."""
    for form in ("PNG", "JPEG", "WEBP"):
        red, green, blue = colour(open_photo(encoded(Image.new("RGB", (8, 8), RED), form, icc_profile=EXCHANGED)))
        assert (red < 8, green < 8, blue > 247) == (True, True, True)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_profile_that_does_not_fit_changes_nothing(mode: str) -> None:
    grey = Image.new("RGB", (8, 8), GREY).convert(mode)
    for profile in (b"garbage", SRGB[:200], SRGB):
        assert np.abs(np.subtract(colour(open_photo(encoded(grey, icc_profile=profile))), GREY)).max() <= 1


# Sizes


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((1, 1), (1, 1)),
        ((2048, 2048), (2048, 2048)),
        ((2049, 10), (2048, 10)),
        ((6000, 4000), (2048, 1365)),
        ((6000, 1), (2048, 1)),
        ((1, 6000), (1, 2048)),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_longest_side_has_2048_pixels_at_most(size: tuple[int, int], kept: tuple[int, int], form: str) -> None:
    photo = open_photo(encoded(Image.new("RGB", size, RED), form))
    assert (photo.pixels.shape, photo.original.shape) == ((kept[1], kept[0], 3), (size[1], size[0], 3))
    assert (photo.width, photo.height) == size
    assert photo.scale == (size[0] / kept[0], size[1] / kept[1])


def test_a_large_photo_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels are not there, and nothing looks for them."""
    jpeg = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    height = jpeg.index(b"\xff\xc0") + 5  # where a JPEG has its height, then its width
    animation = encoded(
        gradient(8, 8).convert("RGBA"), "WEBP", save_all=True, append_images=[Image.new("RGBA", (8, 8))]
    )
    for side in (6325, 13_000, 65_000):
        jpeg[height : height + 4] = struct.pack(">HH", side, side)
        canvas = struct.pack("<I", side - 1)[:3] * 2
        for data in (bytes(jpeg), png(side, side, b""), animation[:24] + canvas + animation[30:]):
            with monkeypatch.context() as patch:
                patch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it is decoded"))
                error = refusal(data)
            assert error.reason == "too-large"
            assert "40,000,000" in str(error)


def test_the_largest_photo_that_is_taken() -> None:
    data = encoded(gradient(40, 25))
    assert open_photo(data, max_pixels=1000).width == 40
    error = refusal(data, max_pixels=999)
    assert (error.reason, "40 by 25 = 1,000" in str(error)) == ("too-large", True)


MEASURE = """
import sys
from fashion_crop.models.photo import PhotoError, open_photo

def peak():  # not getrusage: its peak is that of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1000

open_photo(open(sys.argv[1], "rb").read())  # what is imported on the way
data = open(sys.argv[2], "rb").read()
before = peak()
try:
    open_photo(data)
except PhotoError as error:
    print(error.reason, file=sys.stderr)
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("form", "side", "most"),
    [
        pytest.param("JPEG", 6300, 310, id="40 million pixels are there twice, as Pillow has them and as an array"),
        pytest.param("PNG", 6300, 310, id="those of a PNG too"),
        pytest.param("WEBP", 6300, 660, id="those of a WebP more often"),
        pytest.param("header", 65_000, 10, id="a header takes nothing"),
    ],
)
def test_memory_is_bounded(tmp_path: Path, form: str, side: int, most: int) -> None:
    kind = "JPEG" if form == "header" else form
    small = encoded(Image.new("RGB", (8, 8), RED), kind)
    (tmp_path / "small").write_bytes(small)
    if form != "header":
        data = encoded(Image.new("RGB", (side, side), RED), kind)
    else:
        place = small.index(b"\xff\xc0") + 5
        data = small[:place] + struct.pack(">HH", side, side) + small[place + 4 :]
    (tmp_path / "large").write_bytes(data)
    megabytes = float(python(MEASURE, tmp_path / "small", tmp_path / "large").stdout)
    assert megabytes < most


def python(code: str, *arguments: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(Path(fashion_crop.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"},
    )


# What is refused


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", encoded(gradient(), "JPEG"))
    return buffer.getvalue()


OTHER_FILES = {
    "text": b"hello",
    "zip": zipped(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "pdf": b"%PDF-1.7\n",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "21 MB": bytes(21_000_000),
    "wave": b"RIFF\0\0\0\0WAVEfmt ",
} | {form: encoded(gradient(), form) for form in ("GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "JPEG2000")}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_not_taken(kind: str) -> None:
    error = refusal(OTHER_FILES[kind])
    assert (error.reason, "JPEG, PNG or WebP" in str(error)) == ("unsupported", True)


def boxed(brand: bytes, *compatible: bytes) -> bytes:
    """The beginning of a file of boxes, as HEIC, AVIF and films are."""
    head = b"ftyp" + brand + b"\0\0\0\0" + b"".join(compatible)
    return (len(head) + 4).to_bytes(4, "big") + head + b"\0\0\0\x08meta" + bytes(100)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (boxed(b"heic", b"mif1", b"heic"), "is HEIC"),
        (boxed(b"mif1", b"heic", b"miaf"), "is HEIC"),
        (boxed(b"heix"), "is HEIC"),
        (boxed(b"msf1", b"hevc"), "is HEIC"),
        (boxed(b"mif1", b"miaf"), "is HEIF"),
        (boxed(b"avif", b"mif1", b"miaf"), "is AVIF"),
        (boxed(b"mif1", b"avif"), "is AVIF"),
        (boxed(b"avis", b"msf1"), "is AVIF"),
        (boxed(b"qt  "), "is QuickTime film"),
        (boxed(b"isom", b"mp41"), "is MP4 film"),
        (b"\xff\x0a" + bytes(50), "is JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is JPEG XL"),
        (b"%PDF-1.7\n", "is PDF"),
        (b"II*\0" + bytes(50), "is TIFF"),
        (b"GIF89a", "is GIF"),
    ],
)
def test_a_kind_of_file_that_is_not_taken_is_named_with_what_to_do(data: bytes, kind: str) -> None:
    error = refusal(data)
    assert error.reason == "unsupported"
    assert kind in str(error)
    assert "only JPEG, PNG or WebP are taken" in str(error)
    assert ("iPhone" in str(error)) == (kind in {"is HEIC", "is HEIF"})


@pytest.mark.parametrize("size", range(24))
def test_a_file_of_boxes_that_is_cut_off_is_refused_too(size: int) -> None:
    assert refusal(boxed(b"heic", b"mif1")[:size]).reason in {"unsupported", "undecodable"}


def test_an_empty_file() -> None:
    error = refusal(b"")
    assert (error.reason, "empty" in str(error)) == ("undecodable", True)


PHOTOS = {form: encoded(gradient(), form) for form in ("JPEG", "PNG", "WEBP")}
PHOTOS["progressive"] = encoded(gradient(), "JPEG", progressive=True)


@pytest.mark.parametrize("form", PHOTOS)
def test_a_photo_that_is_cut_off(form: str) -> None:
    whole = PHOTOS[form]
    for length in (16, len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
        assert refusal(whole[:length]).reason == "undecodable"


@settings(max_examples=300, deadline=None)
@given(form=st.sampled_from(sorted(PHOTOS)), place=st.floats(0, 1, exclude_max=True), value=st.binary(max_size=4))
def test_a_photo_that_is_damaged_is_decoded_or_refused(form: str, place: float, value: bytes) -> None:
    whole = PHOTOS[form]
    at = int(place * len(whole))
    try:
        photo = open_photo(whole[:at] + value + whole[at + len(value) :], max_pixels=10_000)
    except PhotoError:
        return
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.shape[2] == 3


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_much_metadata_in_few_bytes_is_not_unpacked(kind: bytes) -> None:
    bomb = chunk(kind, b"name\0\0" + zlib.compress(bytes(50_000_000)))
    assert refusal(png(4, 4, (b"\0" + bytes(12)) * 4, bomb)).reason == "undecodable"


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again; each costs as much as the image has pixels."""
    jpeg = encoded(Image.new("L", (16, 16), 128), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xc4")  # the table that the scan needs, and the scan
    return jpeg[:-2] + jpeg[last:-2] * (count - jpeg.count(b"\xff\xda")) + jpeg[-2:]


def test_a_jpeg_that_goes_over_the_image_for_ever() -> None:
    assert open_photo(with_scans(MAX_SCANS)).width == 16
    error = refusal(with_scans(MAX_SCANS + 1))
    assert (error.reason, f"{MAX_SCANS} scans" in str(error)) == ("unsupported", True)


def test_scans_cannot_be_hidden_in_what_looks_like_a_segment() -> None:
    """A marker without a length stands before each scan, and after it what would be a length that skips the scan."""
    jpeg = with_scans(MAX_SCANS + 1)
    first, rest = jpeg[:2], jpeg[2:]
    for marker in (b"\xff\x01", b"\xff\xd0", b"\xff\x00", b"\xff"):
        assert (
            refusal(first + b"\xff\xe0\0\2" + rest.replace(b"\xff\xda", marker + b"\xff\xda")).reason == "unsupported"
        )


def test_what_only_looks_like_scans_is_not_counted() -> None:
    """Thumbnails and films lie in a photo's metadata and behind its end."""
    jpeg = encoded(gradient(), "JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 500)
    assert open_photo(jpeg + b"\xff\xda\0\2" * 20_000).width == 40


def test_what_pillow_warns_of_does_not_get_out() -> None:
    """Even where a warning is an error: a JPEG with the header of an MPO, without its second image."""
    code = """
        import io, warnings
        from PIL import Image
        from fashion_crop.models.photo import open_photo

        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG")
        jpeg, mpf = buffer.getvalue(), b"MPF\\0" + b"MM\\0*\\0\\0\\0\\x08" + b"\\0\\1" + b"\\xb0\\0" + bytes(14)
        jpeg = jpeg[:2] + b"\\xff\\xe2" + (len(mpf) + 2).to_bytes(2, "big") + mpf + jpeg[2:]
        assert open_photo(jpeg).width == 8
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Image.open(io.BytesIO(jpeg))
        assert "malformed MPO" in str(caught[0].message)
    """
    assert python(code, options=("-W", "error")).stderr == ""
