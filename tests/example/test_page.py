"""The page in a real browser, Debian's Chromium: with fakes, and once with all that `make fashion` starts."""

from __future__ import annotations

import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from browsing import Visit, contents, file, unzipped, visiting
from fakes import FakeDetector, FakeSegmenter, Gate, fake_backend
from fashion_crop.detection import Box, Detection
from fashion_crop.pipeline import GARMENTS, Options, Pipeline
from serving import photo, process, serving
from support import lacking

if TYPE_CHECKING:
    from fashion_crop.startup import Backend

SHIRT = Detection("shirt", 0.91, Box(10, 4, 40, 20))
PANTS = Detection("pants", 0.62, Box(14, 20, 36, 38))
CLOTHES = [SHIRT, PANTS]
KEY = "schlüssel €"


class Result(Pipeline):
    """A pipeline that keeps what it is asked for."""

    def __init__(self, found: list[Detection] | None = None, gate: Gate | None = None) -> None:
        super().__init__(FakeDetector(CLOTHES if found is None else found, gate), FakeSegmenter())
        self.asked: list[Options] = []

    def crop(self, photo: Any, options: Options, **more: Any) -> Any:
        self.asked.append(options)
        return super().crop(photo, options, **more)


def backend_of(pipeline: Pipeline, **changed: Any) -> Backend:
    backend = fake_backend()
    backend.pipeline = pipeline
    for name, value in changed.items():
        setattr(backend, name, value)
    return backend


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or lacking("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A server that finds a shirt and pants in every photo."""
    with serving(backend_of(Result())) as client:
        yield client


@pytest.fixture
def visit(browser: Browser, client: httpx.Client) -> Iterator[Visit]:
    with visiting(browser, client) as visit:
        yield visit


def crops(client: httpx.Client, accept: str = "application/json", **fields: Any) -> httpx.Response:
    return client.post("/v1/crops", files={"image": photo()}, data=fields, headers={"Accept": accept})


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
    with serving(backend_of(Result(gate=gate))) as client, visiting(browser, client) as visit:
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
    with serving(backend_of(Result(gate=gate))) as client, visiting(browser, client) as visit:
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
    with serving(backend_of(Result([]))) as client, visiting(browser, client) as visit:
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
    with serving(backend_of(Result(found))) as client, visiting(browser, client) as visit:
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
    pipeline = Result()
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
    with serving(backend_of(Result(found))) as client, visiting(browser, client) as visit:
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
    with serving(backend_of(Result(found))) as client, visiting(browser, client) as visit:
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


# What goes wrong.


def test_a_text_is_no_photo_and_the_page_stays_as_it_is(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[415]) as visit:
        visit.choose("first.png")
        expect(visit.cards).to_have_count(2)
        visit.choose("notes.txt", b"this is no photo", "text/plain")
        told = client.post("/v1/crops", files={"image": b"this is no photo"}).json()["error"]["message"]
        expect(visit.alert).to_have_text(f"notes.txt: {told}")
        assert visit.labels() == ["shirt", "pants"]
        expect(visit.page.locator(".box")).to_have_count(2)
        expect(visit.page.get_by_text("first.png")).to_be_visible()
        visit.slide("Box threshold", 0.8)  # of the photo that is there
        expect(visit.cards).to_have_count(1)
        expect(visit.alert).to_be_empty()


def test_a_text_as_the_first_file(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[415]) as visit:
        visit.choose("notes.txt", b"this is no photo", "text/plain")
        expect(visit.alert).to_contain_text("notes.txt: ")
        expect(visit.page.get_by_text("Drop a photo here")).to_be_visible()
        expect(visit.page.get_by_text("notes.txt", exact=True)).to_be_hidden()


def test_a_photo_of_too_many_bytes_is_not_sent(browser: Browser) -> None:
    with serving(backend_of(Result()), max_bytes=1000) as client, visiting(browser, client) as visit:
        visit.choose("large.png", b"x" * 1001)
        expect(visit.alert).to_have_text(
            "large.png: the photo has 1,001 bytes, and at most 1,000 are taken: send a smaller one"
        )
        assert visit.posts == []


def test_a_field_tells_what_is_wrong_with_it(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[422]) as visit:
        prompts = visit.page.get_by_role("textbox", name="Look for")
        prompts.fill(",".join(f"thing {number}" for number in range(300)))
        visit.choose()
        expect(visit.page.locator("#prompts-problem")).to_contain_text("must be 50 at most, got 300")
        expect(prompts).to_have_attribute("aria-invalid", "true")
        expect(visit.alert).to_contain_text("photo.png: ")
        prompts.fill("shirt, pants")
        prompts.press("Enter")
        expect(visit.cards).to_have_count(2)
        expect(prompts).to_have_value("shirt, pants")
        expect(prompts).to_have_attribute("aria-invalid", "false")
        expect(visit.page.locator("#prompts-problem")).to_be_empty()


@contextmanager
def full(gate: Gate) -> Iterator[httpx.Client]:
    """A server with one place, and somebody who has it until the gate opens."""
    with (
        serving(backend_of(Result(gate=gate)), max_queue=0) as client,
        httpx.Client(base_url=client.base_url, timeout=60) as other,
        ThreadPoolExecutor() as pool,
    ):
        taken = pool.submit(crops, other)
        try:
            assert gate.entered.acquire(timeout=20)
            yield client
        finally:
            gate.opened.set()
            assert taken.result().status_code == 200


@pytest.mark.parametrize("patient", [True, False])
def test_when_the_queue_is_full_the_photo_is_tried_again(browser: Browser, patient: bool) -> None:
    gate = Gate()
    with full(gate) as client, visiting(browser, client, expected=[503]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.clock.install()
        visit.choose()
        expect(visit.alert).to_contain_text("try again in 5 seconds. This page retries automatically.")
        gate.opened.set()
        if patient:
            with visit.page.expect_response("**/v1/crops") as answer:
                visit.page.clock.run_for(5000)
            while answer.value.status == 503:  # who was there first is not quite gone
                with visit.page.expect_response("**/v1/crops") as answer:
                    visit.page.clock.run_for(5000)
        else:
            while not visit.cards.count():
                with visit.page.expect_response("**/v1/crops"):
                    visit.page.get_by_role("button", name="Try now").click()
                expect(visit.page.get_by_role("progressbar")).to_be_hidden()
        expect(visit.cards).to_have_count(2)
        expect(visit.alert).to_be_empty()


def test_a_photo_that_is_tried_again_can_be_given_up(browser: Browser) -> None:
    gate = Gate()
    with full(gate) as client, visiting(browser, client, expected=[503]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.clock.install()
        visit.choose()
        visit.page.get_by_role("button", name="Stop trying").click()
        expect(visit.alert).to_be_empty()
        expect(visit.page.get_by_text("Drop a photo here")).to_be_visible()
        asked = []
        visit.page.on("request", lambda request: asked.append(request.url))
        visit.page.clock.run_for(60_000)
        assert asked == []


def test_a_server_that_is_away(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.route("**/v1/crops", lambda route: route.abort("connectionrefused"))
        visit.choose()
        expect(visit.alert).to_contain_text("photo.png: the server cannot be reached")
        visit.page.unroute("**/v1/crops")
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.cards).to_have_count(2)
        assert [each for each in visit.wrong if "ERR_CONNECTION_REFUSED" not in each] == []
        visit.wrong.clear()


def test_an_answer_that_is_not_the_servers(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[502]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.route("**/v1/crops", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
        visit.choose()
        expect(visit.alert).to_contain_text("photo.png: the server answered with status 502")


def test_a_photo_waits_for_the_models(browser: Browser) -> None:
    loaded = threading.Event()

    def load() -> Backend:
        assert loaded.wait(60)
        phases = {"look": 0.5, "download": 0.0, "prefetch": 3.0, "imports": 4.0, "build": 0.25, "load": 0.25}
        return backend_of(Result(), phases={**phases, "ready": 5.5}, weights={"sam2": "7442e4e9b732" + "0" * 52})

    with serving(load) as client, visiting(browser, client, expected=[503]) as visit:
        try:
            expect(visit.state).to_have_text("The models are being loaded")
            expect(visit.page.get_by_role("slider", name="Box threshold")).to_be_disabled()
            visit.choose()
            expect(visit.page.get_by_text("Waiting for the models").first).to_be_visible()
            assert visit.posts == []
        finally:
            loaded.set()
        expect(visit.cards).to_have_count(2)
        expect(visit.state).to_have_text("Ready, on cpu")
        visit.page.get_by_text("This server was ready after 5.5 s").click()
        for name in ("imports 4.00 s", "prefetch 3.00 s", "ready 5.50 s", "sam2 sha256 7442e4e9b732…"):
            expect(visit.page.get_by_role("row", name=name)).to_be_visible()
        whole, imports, beside = (
            visit.page.locator(each).bounding_box() for each in ("#phases", "#phases .imports", "#beside .prefetch")
        )
        assert whole is not None
        assert imports is not None
        assert beside is not None
        assert imports["width"] == pytest.approx(whole["width"] * 4.0 / 5.5, abs=12)  # there are gaps between the parts
        assert beside["width"] == pytest.approx(whole["width"] * 3.0 / 5.5, abs=3)


def test_models_that_cannot_be_loaded(browser: Browser) -> None:
    def load() -> Backend:
        raise ImportError("the models cannot be imported: install torch")

    with serving(load) as client, visiting(browser, client, expected=[503]) as visit:
        expect(visit.alert).to_contain_text("install torch")
        expect(visit.state).to_have_text("Not ready")
        visit.choose()
        expect(visit.alert).to_contain_text("photo.png: the models cannot be loaded")


@pytest.mark.parametrize("stand_ins", [True, False])
def test_the_page_says_whether_the_weights_are_stand_ins(browser: Browser, stand_ins: bool) -> None:
    with serving(backend_of(Result(), stand_ins=stand_ins)) as client, visiting(browser, client) as visit:
        expect(visit.state).to_contain_text("Ready")
        note = visit.page.get_by_text("Stand-in weights: the results are meaningless.")
        expect(note).to_be_visible(visible=stand_ins)


def test_a_key_is_asked_for_when_the_server_wants_one(browser: Browser) -> None:
    with serving(backend_of(Result()), api_key=KEY) as client, visiting(browser, client, expected=[401]) as visit:
        field = visit.page.get_by_label("API key", exact=True)
        expect(visit.state).to_contain_text("Ready")
        expect(field).to_be_hidden()
        visit.choose()
        expect(field).to_be_focused()
        expect(visit.page.get_by_text("This server needs an API key.")).to_be_visible()
        field.fill("another")
        field.press("Enter")
        expect(visit.page.get_by_text("The server does not accept this key.")).to_be_visible()
        expect(field).to_be_focused()
        field.fill(KEY)
        visit.page.get_by_role("button", name="Use this key").click()
        expect(visit.cards).to_have_count(2)
        expect(field).to_be_hidden()
        expect(visit.page.get_by_label("Choose a photo")).to_be_focused()  # the button that was pressed is gone
        visit.page.reload()
        visit.choose()
        expect(visit.cards).to_have_count(2)
        assert KEY not in visit.page.content()


def test_a_key_works_where_the_browser_keeps_nothing(browser: Browser) -> None:
    nothing_kept = "Object.defineProperty(window, 'sessionStorage', {get() { throw new DOMException('denied') }})"
    with (
        serving(backend_of(Result()), api_key=KEY) as client,
        visiting(browser, client, expected=[401], script=nothing_kept) as visit,
    ):
        visit.choose()
        visit.page.get_by_label("API key", exact=True).fill(KEY)
        visit.page.keyboard.press("Enter")
        expect(visit.cards).to_have_count(2)


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_what_others_write_is_text(browser: Browser) -> None:
    found = [Detection(HOSTILE, 0.9, Box(5, 5, 50, 35))]
    with serving(backend_of(Result(found))) as client, visiting(browser, client, expected=[413]) as visit:
        visit.page.get_by_role("textbox", name="Look for").fill(HOSTILE)
        visit.choose("<b onmouseover=alert(3)>.png")
        expect(visit.cards).to_have_count(1)
        assert visit.labels() == [HOSTILE]
        expect(visit.page.locator(".tag")).to_have_text(f"{HOSTILE} 0.90")
        name = visit.page.get_by_role("link").get_attribute("download")
        assert name == "00_img_src_x_onerror_alert_1_script_alert_2.png"
        error = {"code": "image-too-large", "message": HOSTILE, "fields": [{"field": "image", "message": HOSTILE}]}
        visit.page.route("**/v1/crops", lambda route: route.fulfill(status=413, json={"error": error}))
        visit.choose()
        expect(visit.alert).to_have_text(f"photo.png: {HOSTILE}")
        written = "#list :is(script, b, img[onerror]), #boxes :is(script, b, img), [role=alert] :is(script, b, img)"
        assert visit.page.locator(written).count() == 0


# For everybody.


def test_the_keyboard_is_enough(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    expect(visit.state).to_contain_text("Ready")
    # `expect_file_chooser` asks Chromium to report the dialog, and does not wait until Chromium does: a key that is
    # pressed at once can come first, and then nothing is reported. This listener asks long before the first key.
    page.on("filechooser", lambda chooser: None)

    def tab_to(role: Any, name: str) -> None:
        wanted = page.get_by_role(role, name=name) if role else page.get_by_label(name)
        for _ in range(30):
            page.keyboard.press("Tab")
            if wanted.evaluate("element => element === document.activeElement"):
                break
        expect(wanted).to_be_focused()
        assert page.evaluate(
            """() => [document.activeElement, ...document.activeElement.labels ?? []].some((element) =>
                [element, ...element.querySelectorAll("*")].some((each) => {
                    const {outlineStyle, outlineWidth} = getComputedStyle(each);
                    return each.checkVisibility() && outlineStyle !== "none" && parseFloat(outlineWidth) >= 1;
                }))"""
        ), f"nothing shows that {name} has the focus"

    for key in ("Enter", "Space"):
        page.evaluate("document.activeElement.blur()")
        tab_to(None, "Choose a photo")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press(key)
        chooser.value.set_files(file(f"{key}.png"))
        expect(page.get_by_text(f"{key}.png")).to_be_visible()
        expect(page.get_by_role("progressbar")).to_be_hidden()
    expect(visit.cards).to_have_count(2)

    tab_to("slider", "Box threshold")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    expect(visit.cards).to_have_count(1)
    page.keyboard.press("Home")
    expect(visit.cards).to_have_count(2)

    tab_to("radio", "Transparent")
    with page.expect_response("**/v1/crops"):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="White")).to_be_checked()
    expect(page.get_by_role("progressbar")).to_be_hidden()

    tab_to("button", "Restore defaults")
    with page.expect_response("**/v1/crops"):
        page.keyboard.press("Space")
    expect(page.get_by_role("textbox", name="Look for")).to_be_focused()  # the button is gone
    expect(page.get_by_role("progressbar")).to_be_hidden()

    tab_to("button", "Download zip")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert len(unzipped(download.value, tmp_path)) == 3
    tab_to("link", "Download 00_shirt.png")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "00_shirt.png"
    tab_to("link", "Download 01_pants.png")


def test_the_focus_is_kept_when_what_has_it_goes(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client) as visit:
        visit.choose()
        visit.page.get_by_role("link", name="Download 01_pants.png").focus()
        visit.slide("Box threshold", 0.8)
        visit.page.get_by_role("link", name="Download 01_pants.png").focus()
        expect(visit.cards).to_have_count(1)
        expect(visit.page.get_by_role("heading", name="Garments")).to_be_focused()


def test_everything_has_a_name(visit: Visit) -> None:
    visit.choose()
    expect(visit.cards).to_have_count(2)
    page = visit.page
    for name in ("Photo", "Garments"):
        expect(page.get_by_role("region", name=name)).to_be_visible()
    expect(page.get_by_role("form", name="Options")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Fashion crop")
    expect(page.get_by_role("group", name="Background").get_by_role("radio")).to_have_count(4)
    nameless = page.locator("button, a, input, textarea, img, progress, summary").evaluate_all(
        """all => all.filter((each) => each.checkVisibility() && !each.closest("[aria-hidden=true]")
            && !(each.ariaLabel || each.alt || each.labels?.length || each.textContent.trim()))
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    ids = page.locator("[id]").evaluate_all("all => all.map(each => each.id)")
    assert len(ids) == len(set(ids))
    pointed = page.locator("[aria-labelledby], [aria-describedby], label[for]").evaluate_all(
        """all => all.flatMap((each) => [each.getAttribute("aria-labelledby"), each.getAttribute("aria-describedby"),
            each.htmlFor].filter(Boolean).join(" ").split(" "))"""
    )
    assert set(pointed) <= set(ids)


@pytest.mark.parametrize("width", [320, 360, 800, 1240])
def test_nothing_is_wider_than_the_screen(browser: Browser, width: int) -> None:
    long = "averylongwordthatnobodywouldeverwritebutsomebodydoes" * 2
    found = [*CLOTHES, Detection(long, 0.5, Box(0, 0, 60, 40))]
    with (
        serving(backend_of(Result(found), versions={long: long})) as client,
        visiting(
            browser, client, expected=[415], viewport={"width": width, "height": 640}, has_touch=width < 800
        ) as visit,
    ):
        expect(visit.state).to_contain_text("Ready")
        assert not visit.scrolls_sideways()
        visit.page.get_by_role("heading", name="Options").click()
        visit.page.locator("#options-open").evaluate("each => { each.open = true }")
        visit.page.get_by_role("textbox", name="Look for").fill(f"shirt, pants, {long}")
        visit.choose(f"{long}.png")
        expect(visit.cards).to_have_count(3)
        visit.page.locator("#server").evaluate("each => { each.open = true }")
        visit.page.get_by_role("radio", name="Colour").check()
        assert not visit.scrolls_sideways()
        visit.choose(f"{long}.txt", b"text", "text/plain")
        expect(visit.alert).to_contain_text(long)
        assert not visit.scrolls_sideways()
        fingers = visit.page.locator("button:visible, .card a").evaluate_all(
            "all => all.map(each => Math.min(each.offsetWidth, each.offsetHeight))"
        )
        assert min(fingers) >= (44 if width < 800 else 36)


def test_a_phone_has_the_crops_right_below_the_photo(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, viewport={"width": 360, "height": 740}) as visit:
        visit.choose()
        expect(visit.cards).to_have_count(2)
        expect(visit.page.get_by_role("slider", name="Box threshold")).to_be_hidden()
        visit.page.get_by_role("heading", name="Options").click()
        expect(visit.page.get_by_role("slider", name="Box threshold")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Browser, scheme: str) -> None:
    refused: list[int] = [401, 415, 422]
    with (
        serving(backend_of(Result()), api_key=KEY) as client,
        visiting(browser, client, expected=refused, color_scheme=scheme, reduced_motion="reduce") as visit,
    ):
        expect(visit.state).to_contain_text("Ready")
        seen = visit.contrasts()
        visit.choose()
        expect(visit.page.get_by_label("API key", exact=True)).to_be_focused()
        seen |= visit.contrasts()
        visit.page.get_by_label("API key", exact=True).fill(KEY)
        visit.page.keyboard.press("Enter")
        expect(visit.cards).to_have_count(2)
        visit.page.get_by_text("This server was ready").click()
        visit.page.get_by_role("radio", name="Colour").check()
        visit.cards.nth(1).hover()
        expect(visit.page.locator(".tag.lit")).to_have_count(1)
        seen |= visit.contrasts()
        visit.page.get_by_role("textbox", name="Look for").fill(",")
        visit.page.get_by_role("textbox", name="Look for").press("Enter")
        expect(visit.page.locator("#prompts-problem")).not_to_be_empty()
        seen |= visit.contrasts()
        ground = visit.page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert {"Drop a photo here", "Choose a photo", "Use this key", "shirt", "pants 0.62", "Options"} <= set(seen)
    assert {text: ratio for text, ratio in seen.items() if ratio < 4.5} == {}
    red, *_ = (int(each) for each in re.findall(r"\d+", ground))
    assert (red < 64) == (scheme == "dark")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_who_does_not_want_it(browser: Browser, motion: str) -> None:
    gate = Gate()
    with serving(backend_of(Result(gate=gate))) as client, visiting(browser, client, reduced_motion=motion) as visit:
        try:
            visit.choose()
            assert gate.entered.acquire(timeout=20)
            expect(visit.said).to_have_text("Looking for garments")
            moving = visit.page.evaluate("document.getAnimations().length")
        finally:
            gate.opened.set()
        expect(visit.cards).to_have_count(2)
    assert (moving > 0) == (motion == "no-preference")


# All of it.


def test_make_fashion_from_its_start_to_a_zip(browser: Browser, tmp_path: Path) -> None:
    """The server as a process of its own, the stand-ins in it, the page from loading to a zip of crops."""
    code = "import sys; from fashion_crop.serve import main; sys.exit(main(sys.argv[1:]))"
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
