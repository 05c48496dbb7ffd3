"""The page in a real browser: a crop that it renders is the one of the API, and so are its file and the zip."""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, expect

from browsing import Visit, contents, file, unzipped, visiting
from fashion_crop.models.detection import Box, Detection
from page_server import CLOTHES, Told, backend_of
from serving import photo, serving

BACKGROUNDS = {"Transparent": "transparent", "White": "white", "Colour": "#00ff7f", "Photo": "original"}
LARGE = [Detection("shirt", 0.9, Box(300.25, 40.5, 540.75, 200.5)), Detection("hat", 0.8, Box(1900, 0, 2048, 160))]
WIDTH, HEIGHT = 2400, 900


@functools.cache
def colourful(kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """A photo with more pixels than the models see, and other colours everywhere."""
    coarse = np.random.default_rng(1).integers(0, 256, (24, 32, len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse, mode).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def large(browser: Browser) -> Any:
    """A page and its server, with a photo of which the models see less pixels than it has."""
    with serving(backend_of(Told(LARGE))) as client, visiting(browser, client) as visit:
        visit.choose("large.png", colourful())
        expect(visit.cards).to_have_count(2)
        yield visit, client


def downloaded(visit: Visit, name: str, folder: Path) -> Image.Image:
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name=f"Download {name}").click()
    assert download.value.suggested_filename == name
    download.value.save_as(folder / name)
    return Image.open(folder / name)


def of_api(client: httpx.Client, data: bytes, **fields: Any) -> list[Image.Image]:
    answer = client.post("/v1/crops", files={"image": data}, data=fields)
    assert answer.status_code == 200, answer.text
    return [Image.open(io.BytesIO(base64.b64decode(each["picture"]))) for each in answer.json()["garments"]]


def weighted(image: Image.Image) -> NDArray[np.float64]:
    """Colours times opacity, and opacity: the colour of a pixel that is nearly transparent means little."""
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float64)
    pixels[..., :3] *= pixels[..., 3:] / 255
    return pixels


def assert_alike(one: Image.Image, other: Image.Image, at_most: float = 16) -> None:
    """Alike but for the edges of a mask, which browsers and Pillow scale a little differently."""
    assert one.size == other.size
    difference = np.abs(weighted(one) - weighted(other))
    assert difference.max() <= at_most
    assert difference.mean() < 0.5


@pytest.mark.parametrize("padding", [0, 0.5])
@pytest.mark.parametrize("aspect", ["Original", "1:1", "4:5"])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_crop_is_that_of_the_api(
    large: tuple[Visit, httpx.Client], background: str, aspect: str, padding: float, tmp_path: Path
) -> None:
    visit, client = large
    visit.option(background)
    if background == "Colour":
        visit.page.get_by_label("Background colour").fill(BACKGROUNDS[background])
    visit.option(aspect)
    visit.slide("Padding", padding)
    wanted = {"background": BACKGROUNDS[background], "aspect": aspect.lower(), "padding": str(padding)}
    crops = of_api(client, colourful(), **wanted)
    for number, label in enumerate(("hat", "shirt")):
        mine = downloaded(visit, f"large_{number + 1:02}_{label}.png", tmp_path)
        assert mine.mode == ("RGBA" if background == "Transparent" else mine.mode)
        assert_alike(mine, crops[number])
    assert len(visit.posts) == 1


@pytest.mark.parametrize(("name", "ending", "kind"), [("WebP", "webp", "WEBP"), ("JPEG", "jpg", "JPEG")])
def test_a_format_is_that_of_the_api(browser: Browser, name: str, ending: str, kind: str, tmp_path: Path) -> None:
    with serving(backend_of(Told(LARGE))) as client, visiting(browser, client) as visit:
        visit.choose("large.png", colourful())
        expect(visit.cards).to_have_count(2)
        visit.option("White")
        visit.option(name)
        crop = of_api(client, colourful(), background="white", format=kind.lower())[0]
        mine = downloaded(visit, f"large_01_hat.{ending}", tmp_path)
        assert (mine.format, crop.format) == (kind, kind)
        assert mine.size == crop.size
        assert np.abs(weighted(mine) - weighted(crop)).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG with transparency"])
def test_a_crop_of_another_photo_is_that_of_the_api(browser: Browser, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = (
        colourful("JPEG", quality=95, subsampling=0, exif=exif.tobytes())
        if kind == "JPEG"
        else colourful("PNG", "RGBA")
    )
    found = [Detection("shirt", 0.9, Box(300.25, 40.5, 900.75, 400.5))]
    with serving(backend_of(Told(found))) as client, visiting(browser, client) as visit:
        visit.choose("other.png", data)
        expect(visit.cards).to_have_count(1)
        crop = of_api(client, data)[0]
        mine = downloaded(visit, "other_01_shirt.png", tmp_path)
        assert_alike(mine, crop)
        assert len(visit.posts) == 1


# What the browser does not show as the server sees it.


def turned_webp() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return colourful("WEBP", quality=95, exif=exif.tobytes())


def xmp_jpeg() -> bytes:
    buffer = io.BytesIO()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    Image.open(io.BytesIO(colourful())).save(buffer, "JPEG", xmp=xmp)
    return buffer.getvalue()


UNREADABLE = "HTMLImageElement.prototype.decode = () => Promise.reject(new Error('no such format'))"
OTHER_SIZE = """for (const name of ["naturalWidth", "naturalHeight"]) {
    const own = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, name).get;
    const other = Object.getOwnPropertyDescriptor(
        HTMLImageElement.prototype, name === "naturalWidth" ? "naturalHeight" : "naturalWidth").get;
    Object.defineProperty(HTMLImageElement.prototype, name, {get() { own.call(this); return other.call(this); }});
}"""
LEFT_TO_SERVER = {
    "a WebP that is turned": (turned_webp(), "", "The file says that the photo must be turned", 1),
    "a JPEG that XMP turns": (xmp_jpeg(), "", "The file says that the photo must be turned", 1),
    "a photo of another size": (colourful(), OTHER_SIZE, "The file says that the photo must be turned", 2),
    "a photo that only the server reads": (colourful(), UNREADABLE, "This browser cannot read the photo", 1),
}


@pytest.mark.parametrize("case", LEFT_TO_SERVER)
def test_the_server_renders_what_the_browser_does_not_see_as_it_does(
    browser: Browser, case: str, tmp_path: Path
) -> None:
    data, script, reason, requests = LEFT_TO_SERVER[case]
    with serving(backend_of(Told(LARGE))) as client, visiting(browser, client, script=script) as visit:
        visit.choose("large.webp", data)
        expect(visit.cards).to_have_count(2)
        expect(visit.page.get_by_role("region", name="Garments")).to_contain_text(reason)
        expect(visit.page.locator("#photo")).not_to_have_attribute("role", "img")  # it would lie beside its boxes
        expect(visit.page.locator(".box")).to_have_count(2)
        frame = visit.page.locator("#frame").bounding_box()
        assert frame is not None
        assert frame["width"] / frame["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.02)
        assert len(visit.posts) == requests
        assert visit.posts[-1].endswith("/v1/crops")
        assert_alike(downloaded(visit, "large_01_hat.png", tmp_path), of_api(client, data)[0], 0)
        with visit.page.expect_response("**/v1/crops"):
            visit.option("White")
            visit.option("1:1")
        expect(visit.row("large.webp")).to_contain_text("2 garments")
        crop = of_api(client, data, background="white", aspect="1:1")[1]
        expect(visit.cards.locator("img")).to_have_count(2)
        assert_alike(downloaded(visit, "large_02_shirt.png", tmp_path), crop, 0)
        before = len(visit.posts)
        visit.slide("Strictness", 0.85)  # for which the answer is enough
        expect(visit.cards).to_have_count(1)
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Download zip").click()
        saved = unzipped(download.value, tmp_path)
        assert list(saved) == ["manifest.json", "large_01_shirt.png"]
        assert len(visit.posts) == before


# Files.


def test_the_zip_has_the_files_of_the_api(browser: Browser, tmp_path: Path) -> None:
    found = [*CLOTHES, Detection("日本 dress/../x", 0.5, Box(0, 0, 60, 40))]
    prompts = "shirt, pants, 日本 dress/../x"
    with serving(backend_of(Told(found))) as client, visiting(browser, client) as visit:
        visit.page.get_by_role("textbox", name="Look for").fill(prompts)
        visit.choose("on the beach.png")
        expect(visit.cards).to_have_count(3)
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Download zip").click()
        assert download.value.suggested_filename == "on_the_beach_garments.zip"
        expect(visit.said).to_have_text("The zip has 3 crops of 1 photo")
        saved = unzipped(download.value, tmp_path)
        answer = client.post(
            "/v1/crops",
            files={"image": ("on the beach.png", photo())},
            data={"prompts": prompts},
            headers={"Accept": "application/zip"},
        )
        made = contents(answer.content)
    assert list(saved) == list(made)
    mine, of_server = (json.loads(each["manifest.json"]) for each in (saved, made))
    [listed] = mine["photos"]
    assert listed["photo"] == "on the beach.png"
    assert listed["rendering"] == {"padding": 0.05, "background": "transparent", "aspect": "original", "format": "png"}
    for name in ("image", "model", "garments"):
        assert listed[name] == of_server[name]
    for name in set(saved) - {"manifest.json"}:
        assert_alike(Image.open(io.BytesIO(saved[name])), Image.open(io.BytesIO(made[name])))


def test_one_zip_has_all_photos_and_each_has_its_own_names(browser: Browser, tmp_path: Path) -> None:
    with serving(backend_of(Told())) as client, visiting(browser, client) as visit:
        visit.choose_all(file("look.png"), file("Look.jpg", photo(50, 40)), file("x" * 60 + ".png"), file("..png"))
        expect(visit.page.get_by_text("4 of 4 done")).to_be_visible()
        visit.option("JPEG")
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Download zip").click()
        assert download.value.suggested_filename == "garments.zip"
        expect(visit.said).to_have_text("The zip has 8 crops of 4 photos")
        saved = unzipped(download.value, tmp_path)
    stems = ["look", "Look-2", "x" * 40, "photo"]
    names = [f"{stem}_{end}.jpg" for stem in stems for end in ("01_shirt", "02_pants")]
    assert list(saved) == ["manifest.json", *names]
    manifest = json.loads(saved["manifest.json"])
    assert [each["photo"] for each in manifest["photos"]] == ["look.png", "Look.jpg", "x" * 60 + ".png", "..png"]
    assert [garment["file"] for each in manifest["photos"] for garment in each["garments"]] == names
    assert all(Image.open(io.BytesIO(saved[name])).format == "JPEG" for name in names)


def test_a_crop_that_the_browser_cannot_make_is_an_error(visit: Visit) -> None:
    visit.choose()
    expect(visit.cards).to_have_count(2)
    visit.page.evaluate("() => { HTMLCanvasElement.prototype.toBlob = (found) => found(null); }")
    visit.page.get_by_role("button", name="Download photo_01_shirt.png").click()
    expect(visit.alert).to_contain_text("photo_01_shirt.png: this browser cannot make a picture of")
    visit.page.get_by_role("button", name="Download zip").click()
    expect(visit.alert).to_contain_text("The zip cannot be made: this browser cannot make a picture of")
    expect(visit.page.get_by_role("button", name="Download zip")).to_be_enabled()
