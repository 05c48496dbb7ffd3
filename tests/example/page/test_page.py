"""The page in a real browser: a photo goes in, crops and boxes come out, and what is asked for reaches the models."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from browsing import Visit, contents, unzipped, visiting
from fakes import Gate
from fashion_crop.models.detection import Box, Detection
from fashion_crop.models.pipeline import GARMENTS, Options
from serving import photo, process, serving

if TYPE_CHECKING:
    pass
from page_server import CLOTHES, SHIRT, Told, backend_of, crops

# A photo goes in.


def test_a_photo_becomes_crops(visit: Visit, client: httpx.Client) -> None:
    visit.choose()
    expect(visit.cards).to_have_count(2)
    assert visit.labels() == ["shirt", "pants"]
    expect(visit.page.get_by_role("img", name="shirt, cut out")).to_be_visible()
    expect(visit.page.get_by_role("img", name="The photo photo.png")).to_be_visible()
    expect(visit.said).to_have_text("2 garments found: shirt, pants")
    expect(visit.page.get_by_text(re.compile("60 . 40 pixels"))).to_be_visible()


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("turned", [3, 5, 6, 8])
def test_a_photo_is_upright_as_its_boxes_are(browser: Browser, client: httpx.Client, kind: str, turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    data = photo(60, 40, kind, exif=exif)
    with visiting(browser, client) as visit:
        visit.choose(f"turned.{kind.lower()}", data, f"image/{kind.lower()}")
        expect(visit.cards).to_have_count(2)
        size = client.post("/v1/detect", files={"image": data}).json()["image"]
        seen = visit.page.locator("#photo").evaluate("photo => [photo.naturalWidth, photo.naturalHeight]")
        assert seen == [size["width"], size["height"]]
        frame = visit.page.locator("#frame").bounding_box()
        assert frame is not None
        assert frame["width"] / frame["height"] == pytest.approx(size["width"] / size["height"], rel=0.02)


def test_a_photo_that_the_browser_does_not_turn_is_not_shown_beside_its_boxes(
    browser: Browser, client: httpx.Client
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with visiting(browser, client) as visit:
        visit.choose("turned.webp", photo(60, 40, "WEBP", exif=exif), "image/webp")  # Chromium turns no WebP
        expect(visit.page.get_by_text(re.compile("40 . 60 pixels"))).to_be_visible()
        expect(visit.page.locator("#photo")).to_have_attribute("alt", "")
        assert visit.page.locator("#photo").evaluate("photo => photo.naturalWidth") == 0
        frame = visit.page.locator("#frame").bounding_box()
        assert frame is not None
        assert frame["width"] / frame["height"] == pytest.approx(40 / 60, rel=0.02)


def test_a_photo_that_only_the_server_can_read_has_its_crops_and_boxes(browser: Browser, client: httpx.Client) -> None:
    unreadable = "HTMLImageElement.prototype.decode = () => Promise.reject(new Error('no such format'))"
    with visiting(browser, client, script=unreadable) as visit:
        visit.choose()
        expect(visit.cards).to_have_count(2)
        expect(visit.page.locator(".box")).to_have_count(2)
        frame = visit.page.locator("#frame").bounding_box()
        assert frame is not None
        assert frame["width"] / frame["height"] == pytest.approx(60 / 40, rel=0.02)


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_a_photo_is_pasted_or_dropped(visit: Visit, how: str) -> None:
    visit.page.evaluate(
        """([how, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "from-elsewhere.png", {type: "image/png"}));
            const options = {bubbles: true, cancelable: true};
            const event = how === "paste"
                ? new ClipboardEvent("paste", {...options, clipboardData: data})
                : new DragEvent("drop", {...options, dataTransfer: data});
            if (document.body.dispatchEvent(event)) throw new Error("the browser would have opened the file itself");
        }""",
        [how, list(photo())],
    )
    expect(visit.cards).to_have_count(2)
    expect(visit.page.get_by_text("from-elsewhere.png")).to_be_visible()


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


def test_a_second_photo_takes_the_place_of_the_first(browser: Browser) -> None:
    gate = Gate()
    with serving(backend_of(Told(gate=gate))) as client, visiting(browser, client) as visit:
        try:
            visit.choose("first.png", photo(30, 60))
            assert gate.entered.acquire(timeout=20)
            with visit.page.expect_event("requestfailed") as ended:
                visit.choose("second.png")
            assert ended.value.failure == "net::ERR_ABORTED"
        finally:
            gate.opened.set()
        expect(visit.cards).to_have_count(2)
        expect(visit.page.get_by_text(re.compile("60 . 40 pixels"))).to_be_visible()
        expect(visit.page.get_by_text("second.png")).to_be_visible()


def test_what_runs_can_be_cancelled(browser: Browser) -> None:
    gate = Gate()
    gate.opened.set()
    with serving(backend_of(Told(gate=gate))) as client, visiting(browser, client) as visit:
        visit.choose("first.png")
        expect(visit.cards).to_have_count(2)
        gate.opened.clear()
        try:
            visit.choose("second.png", photo(30, 60))
            expect(visit.page.get_by_role("progressbar")).to_be_visible()
            expect(visit.page.get_by_role("region", name="Garments")).to_have_attribute("aria-busy", "true")
            visit.page.get_by_role("button", name="Cancel").click()
            expect(visit.page.get_by_role("progressbar")).to_be_hidden()
            expect(visit.page.get_by_role("region", name="Garments")).not_to_have_attribute("aria-busy", "true")
        finally:
            gate.opened.set()
        expect(visit.page.get_by_text("first.png")).to_be_visible()
        expect(visit.page.locator(".box")).to_have_count(2)
        assert visit.labels() == ["shirt", "pants"]


def test_nothing_that_is_found_is_no_error(browser: Browser) -> None:
    with serving(backend_of(Told([]))) as client, visiting(browser, client) as visit:
        visit.choose()
        expect(visit.page.get_by_text("Nothing found", exact=True).first).to_be_visible()
        expect(visit.said).to_have_text("Nothing found")
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


# What is asked for.


def test_a_threshold_changes_what_is_found(visit: Visit) -> None:
    visit.choose()
    expect(visit.cards).to_have_count(2)
    visit.slide("Box threshold", 0.8)
    expect(visit.cards).to_have_count(1)
    assert visit.labels() == ["shirt"]
    expect(visit.page.locator(".box")).to_have_count(1)
    visit.page.get_by_role("button", name="Restore defaults").click()
    expect(visit.cards).to_have_count(2)
    assert visit.page.get_by_role("slider", name="Box threshold").input_value() == "0.35"


def test_every_option_reaches_the_models(browser: Browser) -> None:
    pipeline = Told()
    with serving(backend_of(pipeline)) as client, visiting(browser, client) as visit:
        visit.choose()
        expect(visit.cards).to_have_count(2)
        assert pipeline.asked == [Options()]
        visit.page.get_by_role("textbox", name="Look for").fill("shirt, red dress\npants")
        for name, value in {"Box threshold": 0.1, "Text threshold": 0.2, "Overlap": 0.3, "Padding": 0.4}.items():
            visit.slide(name, value)
        visit.page.get_by_role("radio", name="Colour").check()
        with visit.page.expect_response("**/v1/crops"):
            visit.page.get_by_label("Background colour").fill("#00ff7f")
        expect(visit.page.get_by_role("progressbar")).to_be_hidden()
        assert pipeline.asked[-1] == Options(("shirt", "red dress", "pants"), 0.1, 0.2, 0.3, 0.4, "#00ff7f")


def test_many_changes_are_one_request(visit: Visit) -> None:
    visit.page.clock.install()
    visit.choose()
    expect(visit.cards).to_have_count(2)
    for value in range(40, 80, 4):
        visit.slide("Box threshold", value / 100)
    assert len(visit.posts) == 1
    visit.page.clock.run_for(1000)
    expect(visit.cards).to_have_count(1)
    assert len(visit.posts) == 2


def test_the_defaults_are_those_of_the_server(visit: Visit) -> None:
    expect(visit.page.get_by_role("textbox", name="Look for")).to_have_value(", ".join(GARMENTS))
    expect(visit.page.get_by_role("radio", name="Transparent")).to_be_checked()
    for name, value in {"Box threshold": 0.35, "Text threshold": 0.25, "Overlap": 0.5, "Padding": 0.05}.items():
        expect(visit.page.get_by_role("slider", name=name)).to_have_value(str(value))


# What comes out.


def test_the_zip_is_the_one_that_the_server_makes(browser: Browser, tmp_path: Path) -> None:
    found = [*CLOTHES, Detection("日本 dress/../x", 0.5, Box(0, 0, 60, 40))]
    with serving(backend_of(Told(found))) as client, visiting(browser, client) as visit:
        visit.page.get_by_role("textbox", name="Look for").fill("shirt, pants, 日本 dress/../x")
        visit.choose("on the beach.png")
        expect(visit.cards).to_have_count(3)
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Download zip").click()
        assert download.value.suggested_filename == "on the beach-garments.zip"
        saved = unzipped(download.value, tmp_path)
        made = contents(crops(client, "application/zip", prompts="shirt, pants, 日本 dress/../x").content)
    assert list(saved) == list(made)
    manifests = [json.loads(each["manifest.json"]) for each in (saved, made)]
    assert [list(manifest.pop("timings_ms")) for manifest in manifests] == [
        ["waiting", "decoding", "models", "encoding"]
    ] * 2
    assert manifests[0] == manifests[1]
    assert {name: data for name, data in saved.items() if name.endswith(".png")} == {
        name: data for name, data in made.items() if name.endswith(".png")
    }


def test_one_crop_is_downloaded(visit: Visit, client: httpx.Client, tmp_path: Path) -> None:
    visit.choose()
    with visit.page.expect_download() as download:
        visit.page.get_by_role("link", name="Download 01_pants.png").click()
    assert download.value.suggested_filename == "01_pants.png"
    download.value.save_as(tmp_path / "pants.png")
    zipped = contents(crops(client, "application/zip").content)
    assert (tmp_path / "pants.png").read_bytes() == zipped["01_pants.png"]
    assert Image.open(io.BytesIO(zipped["01_pants.png"])).mode == "RGBA"


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
    visit.page.get_by_role("link", name="Download 01_pants.png").focus()
    expect(lit).to_have_count(3)
    visit.page.locator(".box[data-garment='0']").click()
    expect(visit.page.get_by_role("link", name="Download 00_shirt.png")).to_be_focused()


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
        with httpx.Client(base_url=url[0]) as client, visiting(browser, client, expected=[503, 415]) as visit:
            visit.page.set_default_timeout(120_000)
            expect(visit.state).to_have_text("The models are being loaded")
            visit.choose(data=photo(300, 400))
            expect(visit.state).to_have_text("Ready, on cpu", timeout=120_000)
            expect(visit.page.get_by_text("the results are meaningless")).to_be_visible()
            expect(visit.page.get_by_role("progressbar")).to_be_hidden(timeout=120_000)
            expect(visit.page.get_by_text(re.compile("300 . 400 pixels"))).to_be_visible()
            visit.slide("Box threshold", 0.2)
            visit.slide("Text threshold", 0)
            expect(visit.cards).not_to_have_count(0, timeout=120_000)
            expect(visit.page.get_by_role("progressbar")).to_be_hidden()
            assert set(visit.labels()) <= set(GARMENTS)
            with visit.page.expect_download() as download:
                visit.page.get_by_role("button", name="Download zip").click()
            saved = unzipped(download.value, tmp_path)
            assert len(saved) == 1 + visit.cards.count()
            assert all(Image.open(io.BytesIO(data)).mode == "RGBA" for name, data in saved.items() if ".png" in name)
            visit.choose("notes.txt", b"no photo", "text/plain")
            expect(visit.alert).to_contain_text("notes.txt: ")
            visit.page.get_by_text("This server was ready after").click()
            expect(visit.page.get_by_role("row", name=re.compile(r"torch 2\.13"))).to_be_visible()
