"""The page in a real browser: what an option changes at once, and what the server is asked again for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import Browser, expect

from browsing import Visit, file, visiting
from fakes import Gate
from fashion_crop.models.detection import Box, Detection
from fashion_crop.models.pipeline import GARMENTS, Options
from page_server import CLOTHES, Told, backend_of
from serving import photo, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

HAT = Detection("hat", 0.28, Box(30, 2, 50, 12))


@pytest.fixture
def three(browser: Browser) -> Iterator[Visit]:
    """A page whose server finds a shirt, pants, and a hat of a low score, after one photo was chosen."""
    with serving(backend_of(Told([*CLOTHES, HAT]))) as client, visiting(browser, client) as visit:
        visit.choose()
        expect(visit.cards).to_have_count(2)
        yield visit


def sizes(visit: Visit) -> list[list[int]]:
    return visit.cards.locator("canvas").evaluate_all("all => all.map(({width, height}) => [width, height])")


def corner(visit: Visit) -> list[int]:
    """The colour of the first pixel of the first crop, which lies outside of the garment."""
    return visit.cards.locator("canvas").first.evaluate(
        """canvas => {
            const copy = new OffscreenCanvas(1, 1).getContext("2d");  // the browser warns of what reads a canvas often
            copy.drawImage(canvas, 0, 0);
            return [...copy.getImageData(0, 0, 1, 1).data];
        }"""
    )


# At once.


def test_strictness_changes_what_is_shown_without_a_request(three: Visit) -> None:
    expect(three.page.get_by_text("1 below the strictness")).to_be_visible()
    three.slide("Strictness", 0.26)
    expect(three.cards).to_have_count(3)
    expect(three.page.locator(".box")).to_have_count(3)
    expect(three.row("photo.png")).to_contain_text("3 garments")
    three.slide("Strictness", 0.8)
    expect(three.cards).to_have_count(1)
    assert three.labels() == ["shirt"]
    expect(three.page.locator(".box")).to_have_count(1)
    expect(three.said).to_have_text("photo.png: 1 garment found: shirt")
    three.slide("Strictness", 0.95)
    expect(three.page.get_by_text("Nothing found", exact=True)).to_be_visible()
    expect(three.page.get_by_role("button", name="Download zip")).to_be_hidden()
    three.page.get_by_role("button", name="Restore defaults").click()
    expect(three.cards).to_have_count(2)
    expect(three.page.get_by_role("slider", name="Strictness")).to_be_focused()  # the button is gone
    assert len(three.posts) == 1


def test_a_rendering_changes_the_crops_without_a_request(three: Visit) -> None:
    three.stop_clock()
    assert corner(three) == [0, 0, 0, 0]
    three.option("White")
    three.page.clock.run_for(100)
    assert corner(three) == [255, 255, 255, 255]
    three.option("Colour")
    three.page.get_by_label("Background colour").fill("#00ff7f")
    three.page.clock.run_for(100)
    assert corner(three) == [0, 255, 127, 255]
    three.option("Photo")
    three.page.clock.run_for(100)
    assert corner(three)[3] == 255
    small = sizes(three)
    three.slide("Padding", 0.3)
    three.page.clock.run_for(100)
    assert all(after[0] > before[0] for before, after in zip(small, sizes(three), strict=True))
    for name, ratio in {"1:1": 1.0, "4:5": 0.8}.items():
        three.option(name)
        three.page.clock.run_for(100)
        assert [width / height for width, height in sizes(three)] == pytest.approx([ratio] * 2, rel=0.1)
    three.option("WebP")
    three.page.clock.run_for(10_000)
    expect(three.page.get_by_role("button", name="Download photo_01_shirt.webp")).to_be_visible()
    assert len(three.posts) == 1


def test_jpeg_without_a_background_is_white_and_the_page_says_so(three: Visit) -> None:
    said = three.page.get_by_text("JPEG has no transparency: the background is white.")
    expect(said).to_have_count(0)
    three.option("JPEG")
    expect(said).to_be_visible()
    assert corner(three) == [255, 255, 255, 255]
    three.option("Photo")
    expect(said).to_have_count(0)
    three.option("Transparent")
    three.option("PNG")
    expect(said).to_have_count(0)


def test_a_format_that_the_browser_cannot_write_cannot_be_chosen(browser: Browser, client: httpx.Client) -> None:
    no_webp = """const own = HTMLCanvasElement.prototype.toDataURL;
        HTMLCanvasElement.prototype.toDataURL = function(type) {
            return own.call(this, type === "image/webp" ? "image/png" : type);
        };"""
    with visiting(browser, client, script=no_webp) as visit:
        expect(visit.state).to_contain_text("Ready")
        expect(visit.page.get_by_role("radio", name="WebP")).to_be_disabled()
        expect(visit.page.get_by_role("radio", name="JPEG")).to_be_enabled()


# By a request.


def test_less_strictness_than_was_asked_for_is_a_request(browser: Browser) -> None:
    pipeline = Told([*CLOTHES, Detection("hat", 0.12, HAT.box)])
    with serving(backend_of(pipeline)) as client, visiting(browser, client) as visit:
        visit.choose()
        expect(visit.cards).to_have_count(2)
        visit.slide("Strictness", 0.1)
        expect(visit.cards).to_have_count(3)
        assert [each.box_threshold for each in pipeline.asked] == [0.25, 0.1]
        visit.slide("Strictness", 0.2)
        expect(visit.cards).to_have_count(2)
        assert len(visit.posts) == 2


def test_every_option_reaches_the_models(browser: Browser) -> None:
    pipeline = Told()
    with serving(backend_of(pipeline)) as client, visiting(browser, client) as visit:
        visit.choose()
        expect(visit.cards).to_have_count(2)
        assert pipeline.asked == [Options(box_threshold=0.25)]
        visit.show_options()
        visit.page.get_by_role("textbox", name="Look for").fill("shirt, red dress\npants")
        with visit.page.expect_response("**/v1/masks"):
            for name, value in {"Strictness": 0.1, "Text threshold": 0.2, "Overlap": 0.3}.items():
                visit.slide(name, value)
        expect(visit.row("photo.png")).to_contain_text("2 garments")
        assert pipeline.asked[-1] == Options(("shirt", "red dress", "pants"), 0.1, 0.2, 0.3)


def test_every_photo_follows_the_options_the_selected_one_first(browser: Browser) -> None:
    pipeline = Told()
    with serving(backend_of(pipeline)) as client, visiting(browser, client) as visit:
        visit.choose_all(file("one.png"), file("two.png", photo(50, 40)))
        expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()
        visit.page.get_by_role("button", name=re.compile("^two.png")).click()
        visit.page.get_by_role("textbox", name="Look for").fill("shirt")
        visit.page.get_by_role("textbox", name="Look for").press("Enter")
        expect(visit.page.get_by_text("1 of 2 done").or_(visit.page.get_by_text("0 of 2 done"))).to_be_visible()
        expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()
        assert [each.prompts for each in pipeline.asked[2:]] == [("shirt",)] * 2
        assert [width for _, width in (call["shape"] for call in pipeline.calls[2:])] == [50, 60]


def test_many_changes_are_one_request(visit: Visit) -> None:
    visit.stop_clock()
    visit.choose()
    expect(visit.cards).to_have_count(2)
    for value in range(20, 4, -2):
        visit.slide("Strictness", value / 100)
    assert len(visit.posts) == 1
    with visit.page.expect_response("**/v1/masks"):
        visit.page.clock.run_for(1000)
    expect(visit.row("photo.png")).to_contain_text("2 garments")
    assert len(visit.posts) == 2


def test_an_answer_that_comes_while_somebody_types_is_no_request(browser: Browser) -> None:
    pipeline = Told(gate=(gate := Gate()))
    with serving(backend_of(pipeline)) as client, visiting(browser, client) as visit:
        try:
            expect(visit.state).to_contain_text("Ready")
            visit.stop_clock()
            visit.choose()
            assert gate.entered.acquire(timeout=20)
            visit.page.get_by_role("textbox", name="Look for").fill("shi")
            gate.opened.set()
            expect(visit.row("photo.png")).to_contain_text("2 garments")
            assert len(visit.posts) == 1
            visit.page.get_by_role("textbox", name="Look for").fill("shirt, pants")
            with visit.page.expect_response("**/v1/masks"):
                visit.page.clock.run_for(1000)
        finally:
            gate.opened.set()
        expect(visit.row("photo.png")).to_contain_text("2 garments")
        assert [each.prompts for each in pipeline.asked] == [GARMENTS, ("shirt", "pants")]


def test_the_defaults_are_those_of_the_server(visit: Visit) -> None:
    visit.show_options()
    expect(visit.page.get_by_role("textbox", name="Look for")).to_have_value(", ".join(GARMENTS))
    for name in ("Transparent", "Original", "PNG"):
        expect(visit.page.get_by_role("radio", name=name)).to_be_checked()
    for name, value in {"Strictness": 0.35, "Text threshold": 0.25, "Overlap": 0.5, "Padding": 0.05}.items():
        expect(visit.page.get_by_role("slider", name=name)).to_have_value(str(value))


def test_a_field_says_what_is_wrong_with_it(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[422]) as visit:
        prompts = visit.page.get_by_role("textbox", name="Look for")
        prompts.fill(",".join(f"thing {number}" for number in range(300)))
        visit.choose_all(file("one.png"), file("two.png"))
        expect(visit.page.locator("#prompts-problem")).to_contain_text("must be at most 50 prompts, got 300")
        expect(prompts).to_have_attribute("aria-invalid", "true")
        expect(visit.row("one.png")).to_contain_text("Failed")
        expect(visit.row("two.png")).to_contain_text("Waiting")  # its form would be as wrong
        prompts.fill("shirt, pants")
        prompts.press("Enter")
        expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()
        expect(visit.cards).to_have_count(2)
        expect(prompts).to_have_value("shirt, pants")
        expect(prompts).to_have_attribute("aria-invalid", "false")
        expect(visit.page.locator("#prompts-problem")).to_be_empty()
