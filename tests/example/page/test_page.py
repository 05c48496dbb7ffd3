"""The page in a real browser: a photo goes in, and its boxes and crops are on the page."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from browsing import Visit, unzipped, visiting
from fashion_crop.models.detection import Box, Detection
from fashion_crop.models.pipeline import GARMENTS
from page_server import SHIRT, Told, backend_of
from serving import photo, process, serving

# A photo goes in.


def test_a_photo_becomes_crops(visit: Visit) -> None:
    visit.choose()
    expect(visit.cards).to_have_count(2)
    assert visit.labels() == ["shirt", "pants"]
    expect(visit.page.get_by_role("img", name="shirt, cut out")).to_be_visible()
    expect(visit.page.get_by_role("img", name="The photo photo.png")).to_be_visible()
    expect(visit.said).to_have_text("photo.png: 2 garments found: shirt, pants")
    expect(visit.page.get_by_text(re.compile("60 . 40 pixels"))).to_be_visible()
    expect(visit.row("photo.png")).to_contain_text("2 garments")
    assert [each.rpartition("/")[2] for each in visit.posts] == ["masks"]


def test_a_box_lies_where_its_garment_is(visit: Visit) -> None:
    visit.choose()
    expect(visit.cards).to_have_count(2)
    frame, box = (visit.page.locator(each).bounding_box() for each in ("#photo", ".box[data-garment='0']"))
    assert frame is not None
    assert box is not None
    scale = frame["width"] / 60
    assert frame["height"] == pytest.approx(40 * scale, abs=1)
    assert box["x"] - frame["x"] == pytest.approx(SHIRT.box.left * scale, abs=1)
    assert box["y"] - frame["y"] == pytest.approx(SHIRT.box.top * scale, abs=1)
    assert box["width"] == pytest.approx((SHIRT.box.right - SHIRT.box.left) * scale, abs=1)
    assert box["height"] == pytest.approx((SHIRT.box.bottom - SHIRT.box.top) * scale, abs=1)


@pytest.mark.parametrize("turned", [3, 5, 6, 8])
def test_a_photo_is_upright_as_its_boxes_are(browser: Browser, client: httpx.Client, turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    data = photo(60, 40, "JPEG", exif=exif)
    with visiting(browser, client) as visit:
        visit.choose("turned.jpeg", data, "image/jpeg")
        expect(visit.cards).to_have_count(2)
        size = client.post("/v1/detect", files={"image": data}).json()["image"]
        seen = visit.page.locator("#photo").evaluate("photo => [photo.width, photo.height]")
        assert seen == [size["width"], size["height"]]
        frame = visit.page.locator("#frame").bounding_box()
        assert frame is not None
        assert frame["width"] / frame["height"] == pytest.approx(size["width"] / size["height"], rel=0.02)
        assert [each.rpartition("/")[2] for each in visit.posts] == ["masks"]


GIVE = """([how, files]) => {
    const data = new DataTransfer();
    for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
    const options = {bubbles: true, cancelable: true};
    const event = how === "paste"
        ? new ClipboardEvent("paste", {...options, clipboardData: data})
        : new DragEvent("drop", {...options, dataTransfer: data});
    if (document.body.dispatchEvent(event)) throw new Error("the browser would have opened the file itself");
}"""


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_photos_are_pasted_or_dropped(visit: Visit, how: str) -> None:
    visit.page.evaluate(GIVE, [how, [["one.png", list(photo())], ["two.png", list(photo(50, 30))]]])
    expect(visit.rows).to_have_count(2)
    for name in ("one.png", "two.png"):
        expect(visit.row(name)).to_contain_text("2 garments")
    visit.page.evaluate(GIVE, [how, [["three.png", list(photo())]]])
    expect(visit.row("three.png")).to_contain_text("2 garments")
    expect(visit.page.get_by_role("img", name="The photo three.png")).to_be_visible()


def test_text_is_pasted_into_a_field_as_ever(visit: Visit) -> None:
    prompts = visit.page.get_by_role("textbox", name="Look for")
    expect(prompts).to_be_enabled()
    left_alone = prompts.evaluate(
        """prompts => {
            const data = new DataTransfer();
            data.setData("text/plain", "kimono");
            return prompts.dispatchEvent(
                new ClipboardEvent("paste", {bubbles: true, cancelable: true, clipboardData: data}));
        }"""
    )
    assert left_alone


def test_what_is_dropped_must_be_a_file(visit: Visit) -> None:
    visit.page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.setData("text/uri-list", "https://example.com/photo.jpg");
            const event = {bubbles: true, cancelable: true, dataTransfer: data};
            document.body.dispatchEvent(new DragEvent("dragover", event));
            document.body.dispatchEvent(new DragEvent("drop", event));
        }"""
    )
    expect(visit.alert).to_contain_text("This is not a file")
    expect(visit.page.locator("body")).not_to_have_class(re.compile("dragging"))
    assert visit.posts == []


def test_a_photo_to_try_is_credited(visit: Visit) -> None:
    expect(visit.page.get_by_text("NASA, public domain")).to_be_visible()
    visit.page.get_by_role("button", name="Try a photo").click()
    expect(visit.cards).to_have_count(2)
    expect(visit.page.get_by_role("img", name="The photo astronaut.jpg")).to_be_visible()
    expect(visit.page.get_by_text("Eileen Collins, astronaut. Photo: NASA, public domain")).to_be_visible()
    expect(visit.page.get_by_role("button", name=re.compile("^astronaut.jpg"))).to_be_focused()  # the button is gone
    visit.choose()
    expect(visit.page.get_by_role("img", name="The photo photo.png")).to_be_visible()
    expect(visit.page.get_by_text("Eileen Collins")).to_be_hidden()


def test_a_photo_to_try_that_does_not_come(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[503]) as visit:
        visit.page.route("**/sample.jpg", lambda route: route.fulfill(status=503))
        visit.page.get_by_role("button", name="Try a photo").click()
        expect(visit.alert).to_contain_text("The sample cannot be loaded")
        visit.page.unroute("**/sample.jpg")
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.cards).to_have_count(2)


def test_nothing_that_is_found_is_no_error(browser: Browser) -> None:
    with serving(backend_of(Told([]))) as client, visiting(browser, client) as visit:
        visit.choose()
        expect(visit.page.get_by_text("Nothing found", exact=True)).to_be_visible()
        expect(visit.said).to_have_text("photo.png: Nothing found")
        expect(visit.page.get_by_role("button", name="Download zip")).to_be_hidden()


def test_persons_have_their_own_garments(browser: Browser) -> None:
    found = [
        Detection("person", 0.9, Box(0, 0, 28, 40)),
        Detection("person", 0.8, Box(32, 0, 60, 40)),
        Detection("shirt", 0.9, Box(36, 8, 56, 24)),
        Detection("hat", 0.7, Box(6, 2, 18, 8)),
    ]
    with serving(backend_of(Told(found))) as client, visiting(browser, client) as visit:
        visit.choose()
        expect(visit.page.get_by_role("heading", name="Person")).to_have_text(["Person 1", "Person 2"])
        assert visit.labels() == ["hat", "shirt"]


def test_the_page_says_how_crops_are_made(visit: Visit) -> None:
    expect(visit.page.get_by_role("contentinfo")).to_contain_text("Crops are cut from all pixels of the photo.")
    expect(visit.page.get_by_role("contentinfo")).to_contain_text("2,048 pixels on the longer side")
    expect(visit.page.get_by_role("contentinfo")).to_contain_text("less than 10 % of its largest part's area")


# Boxes and cards.


def test_a_crop_shows_its_box_and_a_box_its_crop(visit: Visit) -> None:
    visit.choose()
    expect(visit.cards).to_have_count(2)
    lit = visit.page.locator(".lit")
    visit.cards.nth(1).hover()
    assert set(lit.evaluate_all("all => all.map(each => each.dataset.garment)")) == {"1"}
    expect(lit).to_have_count(3)  # its box, the tag of the box, its card
    visit.page.locator(".box[data-garment='0']").hover()
    assert set(lit.evaluate_all("all => all.map(each => each.dataset.garment)")) == {"0"}
    visit.page.get_by_role("heading", name="Options").hover()
    expect(lit).to_have_count(0)
    visit.page.get_by_role("button", name="Download photo_02_pants.png").focus()
    expect(lit).to_have_count(3)
    visit.page.locator(".box[data-garment='0']").click()
    expect(visit.page.get_by_role("button", name="Download photo_01_shirt.png")).to_be_focused()


def test_tags_lie_on_the_photo_and_on_no_other_tag(browser: Browser) -> None:
    corners = [Box(0, 0, 4, 4), Box(56, 0, 60, 4), Box(0, 36, 4, 40), Box(56, 36, 60, 40)]
    middle = [Box(left, top, left + 12, top + 9) for left in range(0, 48, 5) for top in range(4, 30, 5)]
    found = [Detection("a rather long name", 0.9 - 0.005 * n, box) for n, box in enumerate([*corners, *middle])]
    with serving(backend_of(Told(found))) as client, visiting(browser, client) as visit:
        visit.page.get_by_role("textbox", name="Look for").fill("a rather long name")
        visit.choose()
        expect(visit.cards).not_to_have_count(0)
        frame = visit.page.locator("#frame").bounding_box()
        tags = visit.page.locator(".tag:not(.crowded)").evaluate_all(
            """all => all.map((each) => each.getBoundingClientRect())
                .map(({left, top, right, bottom}) => [left, top, right, bottom])"""
        )
    assert frame is not None
    assert len(tags) >= 4
    for number, (left, top, right, bottom) in enumerate(tags):
        assert left >= frame["x"] - 0.1
        assert top >= frame["y"] - 0.1
        assert right <= frame["x"] + frame["width"] + 0.1
        assert bottom <= frame["y"] + frame["height"] + 0.1
        for other in tags[:number]:
            assert (
                left >= other[2] - 0.1 or other[0] >= right - 0.1 or top >= other[3] - 0.1 or other[1] >= bottom - 0.1
            )


# All of it.


def test_make_fashion_from_its_start_to_a_zip(browser: Browser, tmp_path: Path) -> None:
    """The server as a process of its own, the stand-ins in it, the page from loading to a zip of crops."""
    code = "import sys; from fashion_crop.web.serve import main; sys.exit(main(sys.argv[1:]))"
    with process(code, "--port", "0", "--cache", str(tmp_path / "cache")) as server:
        url = re.search(r"http://127\.0\.0\.1:\d+", server.line())
        assert url is not None
        with httpx.Client(base_url=url[0]) as client, visiting(browser, client, expected=[503]) as visit:
            visit.page.set_default_timeout(120_000)
            expect(visit.state).to_have_text("The models are being loaded")
            visit.choose(data=photo(300, 400))
            expect(visit.state).to_have_text("Ready, on cpu", timeout=120_000)
            expect(visit.page.get_by_text("the results are meaningless")).to_be_visible()
            expect(visit.row("photo.png")).to_contain_text(re.compile(r"\d garment"), timeout=120_000)
            expect(visit.page.get_by_text(re.compile("300 . 400 pixels"))).to_be_visible()
            visit.show_options()
            visit.slide("Strictness", 0.2)
            visit.slide("Text threshold", 0)
            expect(visit.cards).not_to_have_count(0, timeout=120_000)
            expect(visit.row("photo.png")).to_contain_text(re.compile(r"\d garment"), timeout=120_000)
            assert set(visit.labels()) <= set(GARMENTS)
            with visit.page.expect_download() as download:
                visit.page.get_by_role("button", name="Download zip").click()
            saved = unzipped(download.value, tmp_path)
            assert len(saved) == 1 + visit.cards.count()
            assert all(Image.open(io.BytesIO(data)).mode == "RGBA" for name, data in saved.items() if ".png" in name)
            visit.page.get_by_text("This server was ready after").click()
            expect(visit.page.get_by_role("row", name=re.compile(r"torch 2\.13"))).to_be_visible()
