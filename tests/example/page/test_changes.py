"""The page in a real browser: an answer and the options change while crops are shown, drawn and downloaded."""

from __future__ import annotations

import io
import json
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, expect

from browsing import Visit, file, unzipped, visiting
from fakes import fake_backend
from page_server import CLOTHES
from serving import photo, serving

HELD = """const own = window.createImageBitmap.bind(window);  // reads a mask; waits until the test lets it go on
window.held = [];
window.createImageBitmap = async (blob) => {
    if (window.hold) await new Promise((goOn) => window.held.push(goOn));
    return own(blob);
};"""
DRAWN = "() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
# wait_for_function asks again with eval, which the policy of the page forbids, unless the first answer is yes.
THREE_HELD = """() => new Promise((held) => {
    const look = () => window.held.length === 3 ? held() : requestAnimationFrame(look);
    look();
})"""


def look_for(visit: Visit, prompts: str) -> None:
    field = visit.page.get_by_role("textbox", name="Look for")
    field.fill(prompts)
    field.press("Enter")


def test_cards_show_the_answer_to_the_new_words(browser: Browser) -> None:
    with serving(fake_backend()) as client, visiting(browser, client) as visit:
        expect(visit.state).to_contain_text("Ready")
        look_for(visit, "shirt, hat")
        visit.choose()
        expect(visit.cards.locator(".label")).to_have_text(["shirt", "hat"])
        look_for(visit, "boots, coat")
        expect(visit.cards.locator(".label")).to_have_text(["boots", "coat"])
        expect(visit.page.get_by_role("img", name="boots, cut out")).to_be_visible()
        expect(visit.page.get_by_role("button", name="Download photo_01_boots.png")).to_be_visible()


def test_crops_are_drawn_of_one_answer(browser: Browser) -> None:
    with serving(fake_backend()) as client, visiting(browser, client, script=HELD) as visit:
        expect(visit.state).to_contain_text("Ready")
        look_for(visit, "shirt, hat")
        visit.choose()
        expect(visit.cards).to_have_count(2)
        visit.page.evaluate("window.hold = true")
        look_for(visit, "boots, coat, dress")
        visit.page.evaluate(THREE_HELD)
        visit.slide("Padding", 0.3)  # which draws the crops while the masks of the new answer are not read
        visit.page.evaluate(DRAWN)
        assert visit.wrong == []
        assert visit.labels() == ["shirt", "hat"]
        expect(visit.page.locator(".tag")).to_have_text(["shirt 0.95", "hat 0.95"])
        visit.page.evaluate("window.hold = false; window.held.forEach((goOn) => goOn())")
        expect(visit.cards.locator(".label")).to_have_text(["boots", "coat", "dress"])


def test_a_crop_has_the_name_of_the_format_that_it_has(browser: Browser, client: httpx.Client, tmp_path: Path) -> None:
    with visiting(browser, client) as visit:
        visit.choose()
        expect(visit.cards).to_have_count(2)
        with visit.page.expect_download() as download:
            visit.page.evaluate(
                """() => {  // before the next frame, so before the cards are drawn again
                    document.querySelector("[name=format][value=webp]").click();
                    document.querySelector(".card button").click();
                    document.querySelector("[name=format][value=jpeg]").click();
                }"""
            )
        assert download.value.suggested_filename == "photo_01_shirt.webp"
        download.value.save_as(tmp_path / "saved")
        with Image.open(tmp_path / "saved") as image:
            assert image.format == "WEBP"


def test_a_zip_is_made_with_the_options_of_its_beginning(
    browser: Browser, client: httpx.Client, tmp_path: Path
) -> None:
    with visiting(browser, client) as visit:
        visit.choose_all(file("one.png"), file("two.png", photo(50, 40)))
        expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()
        visit.page.evaluate(
            """() => {
                const own = HTMLCanvasElement.prototype.toBlob;
                HTMLCanvasElement.prototype.toBlob = function(...all) {
                    document.querySelector("[name=format][value=jpeg]").click();
                    document.getElementById("box_threshold").value = 0.8;
                    return own.apply(this, all);
                };
            }"""
        )
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Download zip").click()
        saved = unzipped(download.value, tmp_path)
    names = [f"{stem}_{end}.png" for stem in ("one", "two") for end in ("01_shirt", "02_pants")]
    assert list(saved) == ["manifest.json", *names]
    assert {Image.open(io.BytesIO(saved[name])).format for name in names} == {"PNG"}
    listed = json.loads(saved["manifest.json"])["photos"]
    assert [each["rendering"]["format"] for each in listed] == ["png", "png"]
    assert [len(each["garments"]) for each in listed] == [len(CLOTHES)] * 2
