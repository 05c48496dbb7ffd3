"""Crops: the pixels of the original, on the background, in the aspect ratio and the format that were asked for."""

from __future__ import annotations

import io
import math
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageColor

import fashion_crop
from fakes import FakeDetector, FakeSegmenter, ellipse
from fashion_crop.models import crops
from fashion_crop.models.crops import MAX_PIXELS, Garment, Rendering, crop_box, encode, file_name, render
from fashion_crop.models.detection import Box, Detection, OptionsError
from fashion_crop.models.photo import Photo, PhotoError
from fashion_crop.models.pipeline import Options, Pipeline

RATIOS = {"1:1": 1.0, "4:5": 0.8}
BACKGROUNDS = ["transparent", "white", "#20fF01", "original"]


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(height: int, width: int, seed: int = 0) -> Photo:
    pixels = noise(height, width, seed)
    return Photo(pixels, pixels, "0" * 64)


def garment(box: Box, mask: NDArray[np.uint8], mask_box: tuple[int, int, int, int]) -> Garment:
    return Garment(0, "shirt", 0.9, 0.8, None, box, 1, mask, mask_box)


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int) -> Box:
    """A box of some area in a photo."""
    left, right = sorted((draw(st.floats(0, width - 0.1)), draw(st.floats(0, width - 0.1))))
    top, bottom = sorted((draw(st.floats(0, height - 0.1)), draw(st.floats(0, height - 0.1))))
    return Box(left, top, right + 0.1, bottom + 0.1)


# What a crop shows.


@given(st.data(), st.floats(0, 1), st.sampled_from(["original", *RATIOS]))
def test_the_box_of_a_crop(data: st.DataObject, padding: float, aspect: str) -> None:
    """The arithmetic that the page has too, step by step."""
    width, height = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    left, top, right, bottom = data.draw(boxes(width, height))
    box = crop_box(Box(left, top, right, bottom), width, height, Rendering(padding, aspect=aspect))

    right, bottom = max(right, left + 1), max(bottom, top + 1)
    side = padding * max(right - left, bottom - top)
    left, top, right, bottom = left - side, top - side, right + side, bottom + side
    if aspect == "original":
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    else:
        w, h, x, y = right - left, bottom - top, (left + right) / 2, (top + bottom) / 2
        w, h = (h * RATIOS[aspect], h) if w / h < RATIOS[aspect] else (w, w / RATIOS[aspect])
        left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    for got, exact, rounded in zip(
        box, (left, top, right, bottom), (math.floor, math.floor, math.ceil, math.ceil), strict=True
    ):
        assert got in {rounded(exact - 1e-9), rounded(exact + 1e-9)}  # which differ in the last bit of a float


@given(st.data(), st.floats(0, 1), st.sampled_from([*RATIOS]))
def test_an_aspect_ratio_grows_the_padded_box_and_never_cuts_it(
    data: st.DataObject, padding: float, aspect: str
) -> None:
    box = data.draw(boxes(900, 700))
    left, top, right, bottom = crop_box(box, 900, 700, Rendering(padding, aspect=aspect))
    box = Box(box.left, box.top, max(box.right, box.left + 1), max(box.bottom, box.top + 1))
    side = padding * max(box.right - box.left, box.bottom - box.top) - 1e-6
    assert (left <= box.left - side, right >= box.right + side) == (True, True)
    assert (top <= box.top - side, bottom >= box.bottom + side) == (True, True)
    wide, high = right - left, bottom - top
    assert abs(wide - RATIOS[aspect] * high) <= 2  # whole pixels
    assert min(wide - (box.right - box.left + 2 * side), high - (box.bottom - box.top + 2 * side)) <= 2.1


@pytest.mark.parametrize(
    ("padding", "aspect", "expected"),
    [
        (0.0, "original", (150, 20, 180, 60)),
        (0.05, "original", (148, 18, 182, 62)),
        (1.0, "original", (110, 0, 200, 100)),
        (0.0, "1:1", (145, 20, 185, 60)),
        (0.25, "1:1", (135, 10, 195, 70)),
        (1.0, "1:1", (105, -20, 225, 100)),
        (0.0, "4:5", (149, 20, 181, 60)),
    ],
)
def test_some_boxes(padding: float, aspect: str, expected: tuple[int, ...]) -> None:
    assert crop_box(Box(150, 20, 180, 60), 200, 100, Rendering(padding, aspect=aspect)) == expected


# What is seen.


def expected_crop(shown: Garment, of: Photo, rendering: Rendering, box: tuple[int, ...]) -> NDArray[np.uint8]:
    """Every pixel on its own. The mask has the resolution of the original."""
    ground = (0, 0, 0, 0)
    if rendering.background != "transparent":
        name = "white" if rendering.background == "original" else rendering.background
        ground = (*ImageColor.getrgb(name), 255)
    image = np.empty((box[3] - box[1], box[2] - box[0], 4), np.uint8)
    left, top, right, bottom = shown.mask_box
    for y in range(box[1], box[3]):
        for x in range(box[0], box[2]):
            opacity, colour = 0, np.array(ground[:3])
            if 0 <= x < of.width and 0 <= y < of.height:
                colour = of.original[y, x].astype(int)
                if left <= x < right and top <= y < bottom:
                    opacity = int(shown.mask[y - top, x - left])
                if rendering.background == "original":
                    opacity = 255
            alpha = opacity if rendering.background == "transparent" else 255
            if rendering.background == "transparent":
                colour = colour if opacity else np.zeros(3)
            else:
                colour = np.rint((colour * opacity + np.array(ground[:3]) * (255 - opacity)) / 255)
            image[y - box[1], x - box[0]] = (*colour, alpha)
    return image


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.builds(Rendering, st.floats(0, 1), st.sampled_from(BACKGROUNDS), st.sampled_from(["original", *RATIOS])),
    st.integers(1, 12),
)
def test_every_pixel_of_a_crop(data: st.DataObject, rendering: Rendering, strip: int) -> None:
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    box = data.draw(boxes(width, height))
    mask_box = crop_box(box, width, height, Rendering(crops.MARGIN))
    size = mask_box[3] - mask_box[1], mask_box[2] - mask_box[0]
    mask = np.random.default_rng(width).choice(np.array([0, 1, 128, 255], np.uint8), size)
    of, shown = photo(height, width), garment(box, mask, mask_box)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "STRIP", strip)
        crop = render(shown, of, rendering)
    assert crop.box == crop_box(box, width, height, rendering)
    assert crop.image.mode == ("RGBA" if rendering.background == "transparent" else "RGB")
    image = np.asarray(crop.image.convert("RGBA")).astype(int)
    np.testing.assert_allclose(image, expected_crop(shown, of, rendering, crop.box), atol=1)


def bag(background: str, scale: int = 4) -> tuple[NDArray[np.uint8], Photo]:
    """An ellipse, found in a photo with that many times the pixels of what the models get."""
    small, large = np.zeros((100, 200, 3), np.uint8), noise(100 * scale, 200 * scale)
    of = Photo(small, large, "0" * 64)
    found = Detection("bag", 0.8, Box(150, 20, 180, 60))
    (shown,) = Pipeline(FakeDetector([found]), FakeSegmenter()).segment(of, Options(("bag",)))
    return np.asarray(render(shown, of, Rendering(0.5, background)).image), of


def test_a_crop_has_the_pixels_of_the_original() -> None:
    crop, of = bag("original")
    assert (crop == of.original[0:320, 520:800]).all()


def test_within_the_mask_a_crop_has_the_pixels_of_the_original() -> None:
    for background in BACKGROUNDS:
        crop, of = bag(background)
        assert (crop[120:200, 100:180, :3] == of.original[120:200, 620:700]).all()


def test_what_is_cut_off_is_not_in_the_file() -> None:
    """Only opacity would hide it, which anybody can drop."""
    crop, _ = bag("transparent")
    inside = ellipse(Box(80, 80, 200, 240), 320, 280)
    hidden = crop[..., 3] == 0
    assert (crop[hidden] == 0).all()
    assert hidden[~ellipse(Box(72, 72, 208, 248), 320, 280)].all()
    assert not hidden[ellipse(Box(86, 86, 194, 234), 320, 280)].any()
    assert np.abs(np.diff(crop[..., 3].astype(int), axis=1)).max() < 100  # the mask is enlarged without steps
    assert abs(np.count_nonzero(crop[..., 3] > 127) / np.count_nonzero(inside) - 1) < 0.08


def test_a_mask_that_reaches_its_border_ends_there() -> None:
    """With more padding than the mask has, everything beyond is background."""
    of, shown = photo(20, 20), garment(Box(5, 5, 15, 15), np.full((11, 11), 255, np.uint8), (4, 4, 15, 15))
    opacity = np.asarray(render(shown, of, Rendering(1)).image)[..., 3]
    assert (opacity[4:15, 4:15] == 255).all()
    assert np.count_nonzero(opacity) == 121


# Files.


@pytest.mark.parametrize(("form", "magic"), [("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpeg", b"\xff\xd8\xff")])
@pytest.mark.parametrize("background", ["transparent", "white"])
def test_a_crop_is_written_in_each_format(form: str, magic: bytes, background: str) -> None:
    if (form, background) == ("jpeg", "transparent"):
        return
    pixels = np.asarray(Image.linear_gradient("L").resize((60, 40)).convert("RGB"))
    of, shown = (
        Photo(pixels, pixels, "0" * 64),
        garment(Box(0, 0, 60, 40), np.full((40, 60), 255, np.uint8), (0, 0, 60, 40)),
    )
    shown.mask[:, :20] = 0
    image = render(shown, of, Rendering(0, background, format=form)).image
    data = encode(image, form)
    assert data.startswith(magic)
    assert crops.MEDIA_TYPES[form] == Image.MIME[form.upper()]
    read = Image.open(io.BytesIO(data))
    assert (read.size, read.mode) == ((60, 40), "RGBA" if background == "transparent" else "RGB")
    difference = np.abs(np.asarray(read).astype(int) - np.asarray(image))
    assert difference[:, 30:].max() <= (0 if form == "png" else 12)
    if background == "transparent":
        assert (np.asarray(read)[:, :20, 3] == 0).all()


def test_the_names_of_files() -> None:
    assert file_name("holiday.JPG", 1, "t-shirt", "png") == "holiday_01_t-shirt.png"
    assert file_name("C:\\photos\\été 2.5.jpeg", 12, "robe d'été", "webp") == "été_2_5_12_robe_d_été.webp"
    assert file_name("", 100, "", "jpeg") == "photo_100_garment.jpg"
    assert file_name("../../etc/passwd", 3, "../a", "jpeg") == "passwd_03_a.jpg"
    assert file_name(".png", 2, "帽子", "png") == "png_02_帽子.png"


@given(st.text(), st.integers(1, 99), st.text(), st.sampled_from(["png", "webp", "jpeg"]))
@example("a" * 300 + ".png", 1, "b" * 300, "png")
def test_a_name_is_safe(name: str, number: int, label: str, form: str) -> None:
    made = file_name(name, number, label, form)
    stem, _, extension = made.rpartition(".")
    assert extension == {"jpeg": "jpg"}.get(form, form)
    assert all(each.isalnum() or each in "-_" or unicodedata.category(each)[0] == "M" for each in stem)
    assert f"_{number:02}_" in stem
    assert len(stem) <= 40 + 4 + 40
    assert not made.startswith(("_", "."))


# What is asked for.


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf])
def test_padding_is_from_0_to_1(value: float) -> None:
    with pytest.raises(OptionsError) as caught:
        Rendering(value)
    assert caught.value.problems == [("padding", f"must be from 0 to 1, got {value}")]
    assert Rendering(1).padding == 1


@pytest.mark.parametrize("field", ["background", "aspect", "format"])
@pytest.mark.parametrize("value", ["", "red", "#fff", "#12345g", "#123456\n", "PNG", "16:9", "x" * 10_000])
def test_a_word_that_there_is_not(field: str, value: str) -> None:
    with pytest.raises(OptionsError) as caught:
        Rendering(**{field: value})
    assert [name for name, _ in caught.value.problems] == [field]
    assert len(str(caught.value)) < 200


def test_a_jpeg_with_a_transparent_background_is_refused() -> None:
    with pytest.raises(OptionsError) as caught:
        Rendering(format="jpeg")
    assert caught.value.problems == [("format", "JPEG has no transparency: choose a background, or PNG or WebP")]
    for background in BACKGROUNDS[1:]:
        assert Rendering(background=background, format="jpeg").format == "jpeg"


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong: dict[str, Any] = {"padding": -1, "background": "none", "aspect": "", "format": "gif"}
    with pytest.raises(OptionsError) as caught:
        Rendering(**wrong)
    assert {field for field, _ in caught.value.problems} == set(wrong)


# Large ones.


def strip_of(width: int, height: int) -> tuple[Garment, Photo]:
    """A garment that is all of a photo, of one colour and without memory."""
    pixels = np.broadcast_to(np.uint8(9), (height, width, 3))
    return garment(Box(0, 0, width, height), np.full((1, 1), 255, np.uint8), (0, 0, width, height)), Photo(
        pixels, pixels, "0" * 64
    )


@pytest.mark.parametrize(
    ("width", "height", "rendering", "field"),
    [
        (40_000, 1000, Rendering(aspect="1:1"), "padding"),
        (6000, 6000, Rendering(1, aspect="4:5"), "padding"),
        (16_384, 9, Rendering(format="webp"), "format"),
        (9, 65_501, Rendering(background="white", format="jpeg"), "format"),
    ],
)
def test_a_crop_that_is_too_large_is_refused(width: int, height: int, rendering: Rendering, field: str) -> None:
    with pytest.raises(OptionsError) as caught:
        render(*strip_of(width, height), rendering)
    ((name, message),) = caught.value.problems
    assert (name, "choose" in message, len(message) < 200) == (field, True, True)


@pytest.mark.parametrize(("form", "side"), [("webp", 16_383), ("jpeg", 65_500), ("png", 70_000)])
def test_the_longest_crops(form: str, side: int) -> None:
    image = render(*strip_of(side, 1), Rendering(0, "white", format=form)).image
    assert Image.open(io.BytesIO(encode(image, form))).size == (side, 1)


def test_every_photo_can_be_a_crop() -> None:
    from fashion_crop.models import photo as of

    assert MAX_PIXELS >= of.MAX_PIXELS


FORTY_MILLION = """
import io, sys
import numpy as np
from PIL import Image
from fakes import FakeDetector, FakeSegmenter
from fashion_crop.models.crops import Rendering, render
from fashion_crop.models.detection import Box, Detection
from fashion_crop.models.photo import open_photo
from fashion_crop.models.pipeline import Options, Pipeline

def peak(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1000

photo = open_photo(open(sys.argv[1], "rb").read())
pipeline = Pipeline(FakeDetector([Detection("coat", 0.9, Box(0, 0, 2048, 2048))]), FakeSegmenter())
(garment,) = pipeline.segment(photo, Options(("coat",)))
for background in ("transparent", "white", "original"):
    open("/proc/self/clear_refs", "w").write("5")
    before = peak("VmRSS")
    image = render(garment, photo, Rendering(0, background)).image
    print(background, image.size == (6300, 6300), peak("VmHWM") - before)
    for spot in ((3150, 3150), (3000, 2000), (2001, 3003)):
        assert (image.getpixel(spot)[:3] == photo.original[spot[1], spot[0]]).all()
    del image
"""


def test_a_crop_of_40_million_pixels_has_all_of_them_and_memory_is_bounded(tmp_path: Path) -> None:
    rows = np.arange(6300, dtype=np.uint16)
    pixels = np.stack(np.broadcast_arrays(rows[:, None] % 251, rows % 241, 90), axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png", compress_level=1)
    paths = Path(fashion_crop.__file__).parents[1], Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", FORTY_MILLION, str(tmp_path / "large.png")],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == ["True"] * 3
    assert max(float(line[2]) for line in lines) < 270


@pytest.mark.parametrize("aspect", ["original", "1:1", "4:5"])
@pytest.mark.parametrize("box", [Box(10, 100, 60, 100), Box(20, 5, 20, 5), Box(10, 99.99, 60, 100)])
def test_a_flat_box_has_a_crop(box: Box, aspect: str) -> None:
    left, top, right, bottom = crop_box(box, 200, 100, Rendering(padding=0, aspect=aspect))
    assert right > left
    assert bottom > top


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Cafe\u0301", "Caf\u00e9"),
        ("\u0938\u093e\u0921\u093c\u0940", "\u0938\u093e\u0921\u093c\u0940"),
        ("a\u20e3/b", "a\u20e3_b"),
    ],
)
def test_a_name_keeps_the_marks_of_its_letters(label: str, expected: str) -> None:
    assert file_name("photo.jpg", 1, label, "png") == f"photo_01_{expected}.png"


def test_an_error_can_leave_its_process() -> None:
    options = pickle.loads(pickle.dumps(OptionsError([("padding", "must be less")])))
    assert (str(options), options.problems) == ("padding: must be less", [("padding", "must be less")])
    error = pickle.loads(pickle.dumps(PhotoError("unsupported", "the file is HEIC")))
    assert (str(error), error.reason) == ("the file is HEIC", "unsupported")
